"""config.json of an MLX folder: the model's own, with the keys that mlx-lm reads.

mlx-lm 0.32 knows only the older style of the rotary keys (``rope_theta``, ``rope_scaling``, ...) and takes
its own defaults where they are missing, without a word: a config.json of transformers 5
(``rope_parameters``) gives wrong logits. So the older keys stand beside whatever keys the model has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv.architectures import ARCHITECTURES
from phiconv.errors import UnsupportedModelError
from phiconv.ir.rope import Rope
from phiconv_formats.folders.companions import model_config, own_config, rotary_section, scaling_object
from phiconv_formats.mlx.names import announced_biases
from phiconv_formats.mlx.vision import check_vision, vision_config, vision_notes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures import Architecture
    from phiconv.ir.model import Model

__all__ = ["check_model", "encoding_of", "make_config", "quantization_of", "runtime_notes"]

_DTYPES = {ir.F16: "float16", ir.BF16: "bfloat16", ir.F32: "float32"}

_TINY = "Phi-tiny-MoE"

_MICROSCALING = {
    ir.MLX_MXFP4: {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    ir.MLX_MXFP8: {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    ir.MLX_NVFP4: {"group_size": 16, "bits": 4, "mode": "nvfp4"},
}


def quantization_of(encoding: ir.Encoding) -> dict[str, Any] | None:
    """What mlx calls an encoding: group size, bits and mode; None for a float."""
    if isinstance(encoding, ir.BlockEncoding):
        return {"group_size": encoding.block_size, "bits": encoding.bits, "mode": "affine"}
    if isinstance(encoding, ir.CodebookEncoding):
        return dict(_MICROSCALING[encoding])
    return None


def encoding_of(quantization: Mapping[str, Any], scales: ir.Encoding) -> ir.Encoding | None:
    """The inverse of `quantization_of`, given how scales are stored; None for what phiconv does not know."""
    group_size, bits = quantization.get("group_size"), quantization.get("bits")
    mode = quantization.get("mode", "affine")
    if mode != "affine":
        wanted = {"group_size": group_size, "bits": bits, "mode": mode}
        return next((e for e, known in _MICROSCALING.items() if known == wanted), None)
    known = (e for e in ir.MLX_AFFINE if e.scale_type == scales)
    return next((e for e in known if (e.bits, e.block_size) == (bits, group_size)), None)


def make_config(model: Model, dtype: ir.FloatEncoding, matrices: Mapping[str, ir.Encoding]) -> dict[str, Any]:
    """The object of config.json.

    Args:
        model: Where everything else comes from.
        dtype: The float type of the folder.
        matrices: The encoding of every matrix, by the path of its module.

    Returns:
        Keys in alphabetical order, as mlx-lm writes them.
    """
    assert model.architecture is not None  # noqa: S101 - MLX has no files of plain tensors
    config = own_config(model)
    if rotary_section(config).get("long_factor", []) != list(_rope(model).long_factor):
        config = model_config(model)
    config |= _older_keys(ARCHITECTURES[model.architecture], model, config)
    config |= {"model_type": model.architecture, "torch_dtype": _DTYPES[dtype]}
    if "dtype" in config:
        config["dtype"] = _DTYPES[dtype]
    if (eos := model.card.generation.get("eos_token_id")) is not None:
        config["eos_token_id"] = eos
    if model.senses is not None:
        config = vision_config(model.senses, config) | {"tie_word_embeddings": False}
    if quantization := _quantization(matrices):
        config |= {"quantization": quantization, "quantization_config": quantization}
    return dict(sorted(config.items()))


def _rope(model: Model) -> Rope:
    assert model.hyperparameters is not None  # noqa: S101 - wherever there is an architecture
    return model.hyperparameters.rope


def _quantization(matrices: Mapping[str, ir.Encoding]) -> dict[str, Any] | None:
    """The scheme of most matrices for all, and the others by name."""
    schemes = {path: quantization_of(encoding) for path, encoding in matrices.items()}
    quantized = [s for s in schemes.values() if s is not None]
    if not quantized:
        return None
    usual = max(quantized, key=quantized.count)
    # A matrix that is a float is known by having no scales; naming it as well does no harm, and tells people.
    others = {path: scheme or False for path, scheme in schemes.items() if scheme != usual}
    return usual | others


def _older_keys(architecture: Architecture, model: Model, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding and the shape in the keys that mlx-lm reads."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - make_config has looked
    values = {
        "partial_rotary_factor": hp.rope.dimensions / hp.head_dim,
        "layer_norm_eps": hp.norm_epsilon,
        "rms_norm_eps": hp.norm_epsilon,
        "head_dim": hp.head_dim,
        "original_max_position_embeddings": hp.rope.original_context,
        "rope_scaling": _rope_scaling(architecture, hp.rope, config),
        **{key: key in announced_biases(architecture, model.tensors) for key in architecture.bias_keys},
    }
    return {
        "rope_theta": hp.rope.theta,
        "num_key_value_heads": hp.num_key_value_heads,
        "tie_word_embeddings": hp.tie_word_embeddings and architecture.mlx.tied,
        **{key: values[key] for key in architecture.mlx.keys},
    }


def _rope_scaling(architecture: Architecture, rope: Rope, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if rope.scaling is not None:
        return scaling_object(rope.scaling)
    if not rope.long_factor:
        return None
    result = dict(config.get("rope_scaling") or {})
    # What mlx-lm does not read counts for transformers, to which a rope_scaling is the whole of it.
    section = rotary_section(config)
    result |= {key: section[key] for key in ("factor", "attention_factor") if key in section}
    result |= {
        "type": "longrope",
        "short_factor": list(rope.short_factor),
        "long_factor": list(rope.long_factor),
    }
    if architecture.mscales:
        result |= {"short_mscale": rope.short_mscale, "long_mscale": rope.long_mscale}
        result |= {"original_max_position_embeddings": rope.original_context}
    return result


def check_model(model: Model) -> None:
    """Refuses what mlx-lm would load and compute wrongly, or not load at all.

    Raises:
        UnsupportedModelError: Heads of their own size, a rotary embedding that it does not know.
    """
    hp = model.hyperparameters
    if hp is None or model.architecture is None:
        return

    def refuse(what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"mlx-lm does not support {what}", path=model.path, hint="choose another format"
        )

    check_vision(model)
    architecture = ARCHITECTURES[model.architecture]
    name, keys = architecture.name, architecture.mlx.keys
    if hp.head_dim * hp.num_attention_heads != hp.hidden_size and "head_dim" not in keys:
        which = f" ({_TINY})" if hp.experts else f" in a {name}"
        raise refuse(f"heads of {hp.head_dim} dimensions that do not add up to hidden_size{which}")
    if (hp.rope.long_factor or hp.rope.scaling) and "rope_scaling" not in keys:
        kind = "longrope" if hp.rope.scaling is None else hp.rope.scaling.kind
        raise refuse(f"{kind} in a {architecture.classes[0]}")
    if hp.rope.dimensions != hp.head_dim and "partial_rotary_factor" not in keys:
        raise refuse(f"a partial rotary embedding in a {name}")
    for key, roles in announced_biases(architecture, model.tensors).items():
        if key not in keys and not {*roles} <= {*architecture.mlx.biases}:
            raise refuse(f"{key} in a {name}")


def runtime_notes(model: Model) -> list[str]:
    """What mlx-lm (0.32), or mlx-vlm, is known to do wrong with this model, whoever writes the folder."""
    hp = model.hyperparameters
    if hp is None:
        return []
    notes = [] if model.senses is None else vision_notes(model.senses)
    rope, runtime = hp.rope, "mlx-lm" if model.senses is None else "mlx-vlm"
    if model.senses is None and rope.long_factor and rope.short_factor != rope.long_factor:
        notes.append(
            f"mlx-lm uses the long rotary factors at every length, so that up to {rope.original_context} "
            "tokens its answers are off; give --short-context if you need no more than that"
        )
    if rope.long_factor and model.architecture and not ARCHITECTURES[model.architecture].mscales:
        scale = hp.max_position_embeddings / rope.original_context
        if abs(Rope.longrope_mscale(scale, rope.original_context) - rope.long_mscale) > 1e-6:
            notes.append(f"{runtime} ignores this model's own attention factor of the rotary embedding")
    if hp.sliding_window is not None and hp.sliding_window < hp.max_position_embeddings:
        notes.append(
            f"{runtime} ignores the sliding window: beyond {hp.sliding_window} tokens its answers are off"
        )
    return notes
