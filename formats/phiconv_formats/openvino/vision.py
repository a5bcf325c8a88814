"""What OpenVINO GenAI wants to know of a model that sees, beside its graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import MalformedFileError, UnsupportedModelError
from phiconv_formats.folders.companions import json_bytes, model_config
from phiconv_formats.openvino.names import SEPARATORS

if TYPE_CHECKING:
    from phiconv.ir import Tensor
    from phiconv.ir.model import Model
    from phiconv.ir.senses import Encoder, Senses

__all__ = ["check_senses", "files_of_senses"]

_WIDTHS = {"phi3_v": 1024, "phi4mm": 1152}
"""What the encoders of published models say of a patch; OpenVINO GenAI takes no others."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "phi3_v": {
        "num_crops": 4,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
}
"""Keys of preprocessor_config.json that GenAI reads, and what it takes where there are none."""


def check_senses(model: Model) -> None:
    """Refuses an encoder that OpenVINO GenAI does not take.

    Raises:
        UnsupportedModelError: It is not as wide as those of published models.
    """
    senses = model.senses
    if senses is None or senses.vision is None:
        return
    width, usual = senses.vision.parameters.hidden_size, _WIDTHS.get(senses.kind)
    if usual is not None and width != usual:
        raise UnsupportedModelError(
            f"OpenVINO GenAI takes an encoder of pictures that is {usual} wide, and this one is {width}",
            path=model.path,
            hint="give --text-only for the language model alone",
        )


def files_of_senses(model: Model, senses: Senses, encoder: Encoder) -> dict[str, bytes]:
    """config.json with the separators in it, and preprocessor_config.json."""
    whole = replace(model, card=replace(model.card, config=senses.config))
    config = model_config(whole) | _separators(model, encoder)
    preprocessor = {k: v for k, v in senses.preprocessor.items() if k != "auto_map"}
    return {
        "config.json": json_bytes(config, indent=None),
        "preprocessor_config.json": json_bytes(_DEFAULTS.get(senses.kind, {}) | preprocessor),
    }


def _separators(model: Model, encoder: Encoder) -> dict[str, Any]:
    """The vectors at the ends of rows and between pictures, as nested lists of the checkpoint's shapes."""
    found = {}
    for role, tensor in encoder.tensors.items():
        if role.name in SEPARATORS:
            name = encoder.names[role]
            shape = encoder.stored[name].shape
            found[SEPARATORS[role.name]] = _floats(model, name, tensor).reshape(shape).tolist()
    return found


def _floats(model: Model, name: str, tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):
        values = np.asarray(tensor.read(0, tensor.rows)).astype(np.float32)
    if not np.isfinite(values).all():
        raise MalformedFileError("has a number that is NaN or infinite", path=model.path, at=f"tensor {name}")
    return values
