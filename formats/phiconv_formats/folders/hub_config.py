"""config.json of a folder that transformers loads, of version 4 and 5 alike.

It is the source's own, in the keys of the hub: transformers 5 reads those as well as its own, and version 4
reads no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.architectures import ARCHITECTURES
from phiconv_formats.folders.companions import corrected_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir.model import Hyperparameters, Model

__all__ = ["make_config"]

# Remote code, which is not copied, and how the source was quantized.
_DROPPED = ("auto_map", "quantization", "quantization_config", "dtype")

_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
_LONGROPE = ("longrope", "su")
_ORIGINAL = "original_max_position_embeddings"


def make_config(model: Model, recipe: str) -> dict[str, Any]:
    """The object of config.json.

    Args:
        model: An open model of a known architecture.
        recipe: The float type of the weights.
    """
    assert model.hyperparameters is not None  # noqa: S101 - wherever there is a configuration
    assert model.architecture is not None  # noqa: S101 - the same
    architecture = ARCHITECTURES[model.architecture]
    config = {key: value for key, value in model.card.config.items() if key not in _DROPPED}
    rope = config.pop("rope_parameters", None) or _with_top_keys(config.get("rope_scaling"))
    if rope:
        config |= _hub_style(rope, config)
    if architecture.mscales and isinstance(scaling := config.get("rope_scaling"), dict):
        config["rope_scaling"] = _complete(scaling, model.hyperparameters)
    return config | corrected_keys(model) | {"torch_dtype": _DTYPES[recipe]}


def _with_top_keys(scaling: Any) -> dict[str, Any]:
    """A ``rope_scaling`` with keys that the hub has at the top; {} for any other."""
    inside = isinstance(scaling, dict) and {"rope_theta", "partial_rotary_factor"} & scaling.keys()
    return scaling if inside else {}


def _hub_style(rope: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``rope_parameters`` of transformers 5 in the older keys."""
    rest = dict(rope)
    kind = rest.pop("rope_type", None) or rest.pop("type", None)
    top: dict[str, Any] = {
        key: rest.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rest
    }
    if kind not in {None, "default", *_LONGROPE}:
        return top | {"rope_scaling": {"rope_type": kind, **rest}}
    if _ORIGINAL in rest:
        top[_ORIGINAL] = config.get(_ORIGINAL) or rest.pop(_ORIGINAL)
        rest.pop(_ORIGINAL, None)  # version 4 allows a Phi-3 three keys in rope_scaling
    if kind in {None, "default"}:
        return top | {"rope_scaling": None}
    return top | {"rope_scaling": {"type": "longrope", **rest}}


def _complete(scaling: Mapping[str, Any], hp: Hyperparameters) -> dict[str, Any]:
    """The ``rope_scaling`` of a phimoe with all keys that version 4 looks for."""
    defaults = {
        "short_mscale": hp.rope.short_mscale,
        "long_mscale": hp.rope.long_mscale,
        _ORIGINAL: hp.rope.original_context,
    }
    return defaults | dict(scaling)
