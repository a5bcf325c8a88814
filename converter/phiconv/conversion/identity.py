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
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray, Tensor
    from phiconv.ir.adapter import Adapter
    from phiconv.ir.model import Model

__all__ = ["check_identity", "identity_of"]

_TILE = 1 << 20
"""Numbers that are hashed at once."""


def identity_of(model: Model) -> ModelIdentity:
    """Reads the norms of a model, less than a megabyte, and of matrices only those of merged adapters."""
    tensors = sorted(model.tensors.items(), key=lambda item: str(item[0]))
    shapes, norms = hashlib.sha256(), hashlib.sha256()
    for role, tensor in tensors:
        shapes.update(f"{role} {tensor.shape}\n".encode())
        if len(tensor.shape) == 1 and role.part == "weight":
            values = decode(tensor.read(0, tensor.rows), tensor.columns).reshape(-1)
            norms.update(f"{role}\n".encode() + _bfloat16(values).astype("<u2").tobytes())
    return ModelIdentity(
        name_of(model.path),
        model.architecture or "",
        shapes.hexdigest(),
        norms.hexdigest(),
        _merged(model.adapters),
    )


def _merged(adapters: Sequence[Adapter]) -> str:
    """The hash of the numbers of some adapters, in the order in which they are merged; "" for none."""
    found = hashlib.sha256()
    for adapter in adapters:
        for name, change in sorted(adapter.changes.items()):
            found.update(f"{name} {change.scale!r} {change.transposed}\n".encode())
            for tensor in (change.a, change.b, change.magnitude):
                _add(found, tensor)
        for name, tensor in sorted(adapter.replaced.items()):
            found.update(f"{name}\n".encode())
            _add(found, tensor)
    return found.hexdigest() if adapters else ""


def _add(found: hashlib._Hash, tensor: Tensor | None) -> None:
    """Adds the numbers of a tensor as float32, whatever type they are stored in."""
    if tensor is None:
        return
    found.update(f"{tensor.shape}\n".encode())
    step = max(_TILE // max(tensor.columns, 1), 1)
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        found.update(decode(tensor.read(start, stop), tensor.columns).astype("<f4").tobytes())


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
    elif found.adapters != own.adapters:
        difference = "other adapters are merged into it, or none"
    else:
        return
    raise InputError(
        f"was measured on {found.name}, and {own.name} is another model: {difference}",
        path=path,
        hint="run 'phiconv calibrate' on this model",
    )
