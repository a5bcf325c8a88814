"""What llama.cpp calls things: architectures, tensors and metadata keys, per family.

Names are those of the `gguf` package and of llama.cpp's own converter (conversion/phi.py); fused tensors stay
fused as its graphs expect them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.ir.model import Model

__all__ = ["ARCHITECTURE_NAMES", "output_tensors", "runtime_notes"]

ARCHITECTURE_NAMES = {"phi": "phi2", "phi3": "phi3", "phimoe": "phimoe"}
"""phiconv's name of an architecture -> llama.cpp's."""

_NAMES = {
    "token_embedding": "token_embd",
    "output_norm": "output_norm",
    "output": "output",
    "attn_norm": "attn_norm",
    "attn_q": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_output": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "router": "ffn_gate_inp",
    "experts_gate": "ffn_gate_exps",
    "experts_up": "ffn_up_exps",
    "experts_down": "ffn_down_exps",
}

# Parts of names that llama-quantize leaves alone, among the architectures that phiconv knows.
_KEPT = ("_norm.weight", "ffn_gate_inp.weight")

# What the runtime wants in one matrix, by its first row's role: the name, and the roles in order.
_JOINED = {
    "phi3": {
        "attn_q": ("attn_qkv", ("attn_q", "attn_k", "attn_v")),
        "ffn_gate": ("ffn_up", ("ffn_gate", "ffn_up")),
    },
}


def output_tensors(model: Model) -> list[OutputTensor]:
    """The tensors of the GGUF in the order that llama-quantize writes: by layer, then by name.

    Vectors, normalisations, biases and the router stay float32, as llama.cpp's converter keeps them.
    """
    if model.format == "gguf":
        return sorted((_stored(name, tensor) for name, tensor in model.stored.items()), key=_order)
    if model.architecture is None:
        return [_plain(name, tensor) for name, tensor in model.stored.items()]
    if model.architecture not in ARCHITECTURE_NAMES:
        raise UnsupportedModelError(f"llama.cpp does not know {model.architecture}", path=model.path)
    return sorted(_model_tensors(model), key=_order)


def _order(tensor: OutputTensor) -> tuple[int, str]:
    """By layer, then by name; what belongs to no layer comes first."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    return int(layer[1]) if layer else -1, tensor.name


def _model_tensors(model: Model) -> Iterator[OutputTensor]:
    joined = _JOINED.get(model.architecture or "", {})
    inner = {role for _, roles in joined.values() for role in roles[1:]}
    for role, tensor in model.tensors.items():
        if role.name in joined:
            name, roles = joined[role.name]
            parts = [model.tensors[role._replace(name=r)] for r in roles]
            yield _named(_full_name(name, role), join(parts), role)
        elif role.name not in inner:
            yield _named(_full_name(_NAMES[role.name], role), tensor, role)
    yield from _rope_factors(model)


def _full_name(name: str, role: Role) -> str:
    layer = "" if role.layer is None else f"blk.{role.layer}."
    return f"{layer}{name}.{role.part}"


def _named(name: str, tensor: ir.Tensor, role: Role) -> OutputTensor:
    keep = len(tensor.shape) == 1 or role.part != "weight" or role.name == "router"
    return OutputTensor(name, tensor, role, ir.F32 if keep else None)


def _rope_factors(model: Model) -> Iterator[OutputTensor]:
    """LongRoPE's two lists of divisors are tensors of the file."""
    assert model.hyperparameters is not None  # noqa: S101 - set wherever an architecture is
    rope = model.hyperparameters.rope
    for name, factors in (("rope_factors_long", rope.long_factor), ("rope_factors_short", rope.short_factor)):
        if factors:
            yield OutputTensor(f"{name}.weight", ir.constant(factors, name), Role(name), ir.F32)


def _stored(name: str, tensor: ir.Tensor) -> OutputTensor:
    """A tensor of another GGUF: what llama-quantize does not touch stays as it is stored."""
    free = len(tensor.shape) > 1 and name.endswith("weight") and not any(part in name for part in _KEPT)
    return OutputTensor(name, tensor, None, None if free else tensor.encoding)


def _plain(name: str, tensor: ir.Tensor) -> OutputTensor:
    """A tensor of a file that is no known model: its own name; only matrices of floats may be quantized."""
    if isinstance(tensor.encoding, ir.RawEncoding):
        return OutputTensor(name, tensor, None, tensor.encoding)
    return OutputTensor(name, tensor, None, ir.F32 if len(tensor.shape) <= 1 else None)


def runtime_notes(model: Model) -> list[str]:
    """What llama.cpp (release v0.5.0) is known to do wrong with this model, whoever writes the file."""
    hp = model.hyperparameters
    if hp is None:
        return []
    notes = []
    if model.architecture == "phimoe":
        notes.append(
            "llama.cpp computes phimoe with other norms and another router than the model was trained with"
        )
        if hp.num_attention_heads * hp.head_dim != hp.hidden_size:
            notes.append(
                "llama.cpp does not load a phimoe whose heads do not add up to hidden_size (Phi-tiny-MoE)"
            )
    if model.architecture != "phi3" and hp.tie_word_embeddings:
        notes.append(f"llama.cpp does not load a {model.architecture} whose output is tied to its embedding")
    return notes
