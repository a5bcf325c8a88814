"""Which model it is, whatever files it is stored in: so that a calibration of another one is not used."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import InputError
from phiconv.ir.model import name_of
from phiconv.ir.moments import ModelIdentity
from phiconv.quantizers import decode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.ir.model import Model

__all__ = ["check_identity", "identity_of"]


def identity_of(model: Model) -> ModelIdentity:
    """Reads the norms of a model, less than a megabyte, and no matrix."""
    tensors = sorted(model.tensors.items(), key=lambda item: str(item[0]))
    shapes, norms = hashlib.sha256(), hashlib.sha256()
    for role, tensor in tensors:
        shapes.update(f"{role} {tensor.shape}\n".encode())
        if len(tensor.shape) == 1 and role.part == "weight":
            values = decode(tensor.read(0, tensor.rows), tensor.columns).reshape(-1)
            norms.update(f"{role}\n".encode() + _bfloat16(values).astype("<u2").tobytes())
    return ModelIdentity(name_of(model.path), model.architecture or "", shapes.hexdigest(), norms.hexdigest())


def _bfloat16(values: FloatArray) -> NDArray[np.uint32]:
    """The upper halves of float32 numbers, rounded to the nearest, to even ones between two."""
    bits = values.astype(np.float32).view(np.uint32)
    half = np.uint32(16)
    return (bits + np.uint32(0x7FFF) + (bits >> half & np.uint32(1))) >> half


def check_identity(found: ModelIdentity, model: Model, path: Path) -> None:
    """Refuses a measurement of another model.

    Args:
        found: Which one was measured.
        model: The one that it is to be used for.
        path: The measurement, for the message.

    Raises:
        InputError: They are not the same.
    """
    own = identity_of(model)
    if found.shapes != own.shapes or found.architecture != own.architecture:
        difference = "one of another shape"
    elif found.norms != own.norms:
        difference = "one of the same shape with other weights"
    else:
        return
    raise InputError(
        f"was measured on {found.name}, and {own.name} is another model: {difference}",
        path=path,
        hint="run 'phiconv calibrate' on this model",
    )
