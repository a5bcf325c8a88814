"""What llama.cpp calls tensors, by their roles, and which of them it wants in one.

Names are those of the `gguf` package and of llama.cpp's own converter. What the hub fuses stays fused, as its
graphs expect it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from phiconv import ir
from phiconv.architectures import ARCHITECTURES
from phiconv.errors import UnsupportedModelError
from phiconv.ir.interleaving import halves_by_turns
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.architectures import Architecture
    from phiconv.ir.model import Hyperparameters, Model

__all__ = [
    "ARCHITECTURE_OF_NAME",
    "LLAMA3_FACTORS",
    "Stored",
    "check_model",
    "heads_of",
    "name_of_role",
    "output_tensors",
    "parse_name",
    "rows_in_order",
    "runtime_notes",
]

ARCHITECTURE_OF_NAME = {a.gguf.name: a for a in ARCHITECTURES.values()}
"""By llama.cpp's name of it."""

_NAMES = {
    "token_embedding": "token_embd",
    "output_norm": "output_norm",
    "output": "output",
    "attn_norm": "attn_norm",
    "attn_q": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_q_norm": "attn_q_norm",
    "attn_k_norm": "attn_k_norm",
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
_FUSED = {("attn_q", "attn_k", "attn_v"): "attn_qkv", ("ffn_gate", "ffn_up"): "ffn_up"}
"""Of matrices that hold the rows of several roles."""

_ROLES = {name: role for role, name in _NAMES.items()}
_NAME = re.compile(r"(?:blk\.([0-9]+)\.)?([a-z_]+)\.(weight|bias)")
_QUERIES_AND_KEYS = ("attn_q", "attn_k")

# Parts of names that llama-quantize leaves alone, among the architectures that phiconv knows; and what of an
# encoder of pictures ggml wants in floats.
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "patch_embd.weight")

LLAMA3_FACTORS = "rope_freqs.weight"
"""What rotary frequencies are divided by, at every length."""


class Stored(NamedTuple):
    """What a tensor of a file is.

    Attributes:
        layer: Its layer, None for the ends of the model.
        roles: Whose rows it holds, in order.
        part: "weight" or "bias".
    """

    layer: int | None
    roles: tuple[str, ...]
    part: str


def parse_name(name: str, architecture: Architecture) -> Stored | None:
    """What llama.cpp means by the name of a tensor; None where it is no weight of this architecture."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, base, part = match.groups()
    for roles, fused in _FUSED.items():
        if base == fused and (base not in _ROLES or architecture.group(roles[0]) == roles):
            return None if layer is None else Stored(int(layer), roles, part)
    role = _ROLES.get(base, "")
    is_end = role in ("token_embedding", "output_norm", "output")
    if role not in architecture.names or is_end != (layer is None):
        return None
    return Stored(None if layer is None else int(layer), (role,), part)


def output_tensors(model: Model) -> list[OutputTensor]:
    """The tensors of the GGUF in the order that llama-quantize writes: by layer, then by name.

    Vectors, normalisations, biases and the router stay float32, as llama.cpp's converter keeps them.
    """
    if model.format == "gguf":
        return sorted((_stored(name, tensor) for name, tensor in model.stored.items()), key=_order)
    if model.architecture is None:
        return [_plain(name, tensor) for name, tensor in model.stored.items()]
    return sorted(_model_tensors(model, ARCHITECTURES[model.architecture]), key=_order)


def _order(tensor: OutputTensor) -> tuple[int, str]:
    """By layer, then by name; what belongs to no layer comes first."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    return int(layer[1]) if layer else -1, tensor.name


def _model_tensors(model: Model, architecture: Architecture) -> Iterator[OutputTensor]:
    assert model.hyperparameters is not None  # noqa: S101 - set wherever an architecture is
    for role in model.tensors:
        group = architecture.group(role.name)
        if role.name != group[0]:
            continue
        parts = [
            rows_in_order(model.tensors[r], r, model) for r in (role._replace(name=each) for each in group)
        ]
        yield _named(name_of_role(role, architecture), join(parts), role)
    yield from _rope_factors(model.hyperparameters)


def rows_in_order(tensor: ir.Tensor, role: Role, model: Model) -> ir.Tensor:
    """A weight, or what has a row for each of its own, with the rows as the runtime wants them."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - set wherever an architecture is
    assert model.architecture is not None  # noqa: S101 - the same
    architecture = ARCHITECTURES[model.architecture]
    if not architecture.gguf.neighbours or role.name not in _QUERIES_AND_KEYS:
        return tensor
    return halves_by_turns(tensor, heads_of(role.name, hp))


def heads_of(role: str, hp: Hyperparameters) -> int:
    """Heads of the queries or of the keys."""
    return hp.num_attention_heads if role == "attn_q" else hp.num_key_value_heads


def name_of_role(role: Role, architecture: Architecture) -> str:
    """The tensor that holds a role, maybe with others."""
    group = architecture.group(role.name)
    name = _FUSED[group] if len(group) > 1 else _NAMES[role.name]
    layer = "" if role.layer is None else f"blk.{role.layer}."
    return f"{layer}{name}.{role.part}"


def _named(name: str, tensor: ir.Tensor, role: Role) -> OutputTensor:
    keep = len(tensor.shape) == 1 or role.part != "weight" or role.name == "router"
    return OutputTensor(name, tensor, role, ir.F32 if keep else None)


def _rope_factors(hp: Hyperparameters) -> Iterator[OutputTensor]:
    """What rotary frequencies are divided by is a tensor of the file, of LongRoPE two."""
    rope = hp.rope
    lists = [("rope_factors_long", rope.long_factor), ("rope_factors_short", rope.short_factor)]
    if rope.scaling is not None and rope.scaling.kind == "llama3":  # "linear" is two keys
        lists.append((LLAMA3_FACTORS.removesuffix(".weight"), rope.divisors()))
    for name, factors in lists:
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


def check_model(model: Model) -> None:
    """Refuses what llama.cpp (release v0.5.0) would not load.

    Raises:
        UnsupportedModelError: Heads of their own size, or biases, in an architecture that has none there.
    """
    hp = model.hyperparameters
    if hp is None or model.architecture is None or model.format == "gguf":
        return
    architecture = ARCHITECTURES[model.architecture]
    problem = ""
    if not architecture.gguf.head_dim and hp.num_attention_heads * hp.head_dim != hp.hidden_size:
        problem = f"heads of {hp.head_dim} dimensions that do not add up to hidden_size"
    biased = {role.name for role in model.tensors if role.part == "bias"} & architecture.optional_biases
    if biased and not architecture.gguf.bias_keys:
        problem = f"biases of {', '.join(sorted(biased))} ({', '.join(architecture.bias_keys)})"
    if problem:
        raise UnsupportedModelError(
            f"llama.cpp does not load a {architecture.name} with {problem}",
            path=model.path,
            hint="choose another format",
        )


def runtime_notes(model: Model) -> list[str]:
    """What llama.cpp (release v0.5.0) is known to do wrong with this model, whoever writes the file."""
    hp = model.hyperparameters
    if hp is None or model.architecture is None:
        return []
    gguf = ARCHITECTURES[model.architecture].gguf
    notes = [gguf.note] if gguf.note else []
    if hp.experts is not None and hp.num_attention_heads * hp.head_dim != hp.hidden_size:
        notes.append(
            f"llama.cpp does not load a {model.architecture} whose heads do not add up to hidden_size "
            "(Phi-tiny-MoE)"
        )
    if not gguf.tied and hp.tie_word_embeddings:
        notes.append(f"llama.cpp does not load a {model.architecture} whose output is tied to its embedding")
    return notes
