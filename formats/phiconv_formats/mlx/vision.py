"""Models that see, for mlx-vlm: what it calls their tensors, what its config.json says, what it does wrong.

Facts from mlx-vlm 0.7.10 (``models/phi3_v``, ``models/phi4_siglip``, ``utils.py``). It holds all tensors of
the encoder, those of layers that it does not compute, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.errors import UnsupportedModelError
from phiconv.ir import FloatEncoding
from phiconv.ir.model import Role
from phiconv.ir.patches import colour_by_colour
from phiconv.ir.senses import flat_rows
from phiconv_formats.folders.companions import json_bytes, portable
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir import Tensor
    from phiconv.ir.model import Model
    from phiconv.ir.senses import Senses

__all__ = [
    "as_on_the_hub",
    "check_vision",
    "encoder_tensors",
    "hub_name",
    "runtime_name",
    "vision_config",
    "vision_files",
    "vision_notes",
]

_PREFIXES = {
    "phi4-siglip": {
        "model.mm_projector.0.": "mm_projector.linear_1.",
        "model.mm_projector.2.": "mm_projector.linear_2.",
        "model.vision_tower.": "vision_tower.",
        "model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
}
"""What the hub's names begin with, and mlx-vlm's, by the kind of model; the first that fits counts."""

_TEXT_KEYS = (
    "hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads "
    "partial_rotary_factor rms_norm_eps rope_scaling rope_theta vocab_size"
).split()
"""What it reads of the language model of a ``phi4-siglip`` in a section of its own, and there alone."""

_ABSENT = ".vision_model.head."
"""Tensors that it has no place for have this in their names."""

_CLIP_L = (1024, 4096, 23)
"""Width, inner width and layers of the only CLIP that it builds."""

_NOTES = {
    "phi3_v": "mlx-vlm 0.7 lays the crops of a picture out one after the other, and not side by side: its "
    "answers are off for pictures more than one crop wide",
    "phi4-siglip": "mlx-vlm 0.7 resizes the table of positions otherwise than the model: its answers are off "
    "for pictures that are not 16 x 16 patches (256 x 256 pixels)",
}


def runtime_name(kind: str, name: str) -> str:
    """What mlx-vlm calls a tensor of a model of this kind."""
    return _renamed(name, _PREFIXES.get(kind, {}))


def hub_name(kind: str, name: str) -> str:
    """The inverse of `runtime_name`; a name of the hub stays what it is."""
    return _renamed(name, {ours: hub for hub, ours in _PREFIXES.get(kind, {}).items()})


def as_on_the_hub(name: str, tensor: Tensor) -> Tensor:
    """A tensor with its numbers in the hub's order; mlx-vlm itself has colours last in a convolution."""
    side = tensor.shape[1] if len(tensor.shape) == 4 else 0
    last = name.endswith(".patch_embedding.weight") and tensor.shape[1:] == (side, side, 3) and side != 3
    if not last or not isinstance(tensor.encoding, FloatEncoding):
        return tensor
    return colour_by_colour(flat_rows(tensor), side)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(found, "") + name.removeprefix(found)


def encoder_tensors(model: Model) -> list[OutputTensor]:
    """What a model sees with, in the order of the hub's names; nothing where it does not see."""
    senses = model.senses
    if senses is None or senses.vision is None:
        return []
    roles = {name: role for role, name in senses.vision.names.items()}
    return [
        OutputTensor(runtime_name(senses.kind, name), tensor, roles.get(name, Role("vision.unused")))
        for name, tensor in sorted(senses.vision.stored.items())
        if _ABSENT not in name
    ]


def vision_config(senses: Senses, text: Mapping[str, Any]) -> dict[str, Any]:
    """The whole model's config.json, with what mlx-lm would read in that of its language model.

    mlx-vlm asks transformers for the tokenizer, which knows no ``phi3_v``: it then takes config.json for one
    of its own, and fails at LongRoPE by that name. By the older one, ``su``, it passes it over.
    """
    whole = portable(senses.config)
    own = {key: whole[key] for key in ("architectures",) if key in whole}
    if senses.kind == "phi4-siglip":
        own["text_config"] = {key: text[key] for key in _TEXT_KEYS if key in text}
    scaling = text.get("rope_scaling")
    if isinstance(scaling, dict):
        own["rope_scaling"] = scaling | {"type": "su"}
    return whole | dict(text) | {"model_type": senses.kind} | own


def vision_files(senses: Senses) -> dict[str, bytes]:
    """How a picture is made ready, for mlx-vlm's own code that does it."""
    return {"preprocessor_config.json": json_bytes(portable(senses.preprocessor))}


def check_vision(model: Model) -> None:
    """Refuses what mlx-vlm would load and compute wrongly.

    Raises:
        UnsupportedModelError: A scaled rotary embedding in a kind of model for which it has none.
    """
    hp, senses = model.hyperparameters, model.senses
    if senses is not None and senses.kind == "phi4-siglip" and hp is not None and hp.rope.long_factor:
        raise UnsupportedModelError(
            "mlx-vlm does not support longrope in a phi4-siglip",
            path=model.path,
            hint="give --text-only, or choose another format",
        )


def vision_notes(senses: Senses) -> list[str]:
    """What to know of such a folder, and what mlx-vlm is known to do wrong with it, whoever writes it."""
    assert senses.vision is not None  # noqa: S101 - else there is no such folder
    v = senses.vision.parameters
    notes = ["this folder is for mlx-vlm, which sees; for mlx-lm give --text-only", _NOTES[senses.kind]]
    size = (v.hidden_size, v.intermediate_size, v.num_hidden_layers)
    if senses.kind == "phi3_v" and size != _CLIP_L:
        notes.append("mlx-vlm builds CLIP-L alone, and does not load an encoder of other sizes")
    return notes
