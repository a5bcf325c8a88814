"""A reference model's predictions, computed once: a file keeps what the last layer gave, for the next time.

What the output matrix is multiplied with is a short vector per token, where logits are a number for each word
of the vocabulary. So the file is small, and logits that are made of it again are the very same ones; of the
model only the output matrix is read for it.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from phiconv.conversion.outputs import partial_files
from phiconv.errors import InputError, OutputError, OutputExistsError
from phiconv.forward.interpreter import compute, logits_of
from phiconv.quantizers import decode
from phiconv_formats.shared.output import OutputFile
from phiconv_formats.shared.safetensors import lay_out, open_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.conversion.outputs import PartialFile
    from phiconv.forward.interpreter import Logits, Precision, Watch
    from phiconv.forward.layers import Array
    from phiconv.ir import Tensor
    from phiconv.ir.model import Model

__all__ = ["Memory", "fingerprint", "remembered"]

_KEY, _NAME = "phiconv.reference", "hidden"
_DTYPES = {"float32": "F32", "float64": "F64"}


class Memory(Protocol):
    """Gives a reference's logits.

    Attributes:
        complete: Nothing needs to be computed any more but logits.
    """

    @property
    def complete(self) -> bool: ...  # noqa: D102

    def logits(self, windows: slice, inputs: NDArray[np.intp], watch: Watch | None) -> Logits:
        """The logits of some of the windows, whose tokens are ``inputs``."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """Computes them; ``keeper``, if there is one, is given what the output matrix is multiplied with."""

    model: Model
    precision: Precision
    keeper: _Keeper | None = None
    complete: bool = False

    def logits(self, windows: slice, inputs: NDArray[np.intp], watch: Watch | None) -> Logits:
        found = compute(self.model, inputs, precision=self.precision, watch=watch)
        if self.keeper is not None:
            self.keeper.keep(windows, found.hidden)
        return found


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Writes it to the file, in which it begins at an offset; a window takes so many bytes."""

    file: PartialFile
    offset: int
    window_bytes: int

    def keep(self, windows: slice, rows: Array) -> None:
        self.file.write(self.offset + windows.start * self.window_bytes, np.ascontiguousarray(rows))


@dataclass(frozen=True, slots=True)
class _Recalled:
    """Takes them from a file."""

    model: Model
    hidden: Tensor
    context: int
    complete: bool = True

    def logits(self, windows: slice, inputs: NDArray[np.intp], watch: Watch | None) -> Logits:  # noqa: ARG002
        rows: Any = self.hidden.read(windows.start * self.context, windows.stop * self.context)
        return logits_of(self.model, rows, inputs.shape)


@contextmanager
def remembered(
    model: Model | None, inputs: NDArray[np.intp], precision: Precision, path: Path | None
) -> Iterator[Memory | None]:
    """What gives the logits of a reference.

    Args:
        model: The reference; None for none.
        inputs: All tokens that will be asked for, shape (windows, context).
        precision: What to compute in.
        path: The file. It is written where it is not there, and written anew where it is of another model,
            another text or another context.

    Raises:
        OutputError: The file cannot be written, or is something else.
    """
    if model is None or path is None:
        yield None if model is None else _Computed(model.bare(), precision)
        return
    key = fingerprint(model, inputs, precision)
    hidden = _recall(path, key)
    if hidden is not None:
        yield _Recalled(model.bare(), hidden, inputs.shape[1])
        return
    width = _width(model)
    layout = lay_out([(_NAME, _DTYPES[precision], (inputs.size, width))], {_KEY: key})
    file = OutputFile(path.name, layout.size, ((0, layout.head),))
    window_bytes = inputs.shape[1] * width * np.dtype(precision).itemsize
    with partial_files(path.parent, (file,), force=True) as files:
        keeper = _Keeper(files[path.name], layout.offsets[_NAME], window_bytes)
        yield _Computed(model.bare(), precision, keeper)


def _width(model: Model) -> int:
    assert model.hyperparameters is not None  # noqa: S101 - a model that can be computed has them
    return model.hyperparameters.hidden_size


def _recall(path: Path, key: str) -> Tensor | None:
    """What a file keeps; None where there is no file, or one of something else that was computed.

    Raises:
        OutputError: The path is that of another kind of file.
    """
    if not path.parent.is_dir():
        raise OutputError("there is no such folder", path=path.parent, hint="make it first")
    if not path.exists():
        return None
    try:
        archive = open_safetensors(path)
    except InputError:
        archive = None
    if archive is None or _KEY not in archive.metadata:
        raise OutputExistsError(
            "exists, and keeps no reference", path=path, hint="choose a name that is not there yet"
        )
    return archive.tensors.get(_NAME) if archive.metadata[_KEY] == key else None


def fingerprint(model: Model, inputs: NDArray[np.intp], precision: str) -> str:
    """SHA-256 of the tokens and of a model: names, shapes and types of its weights, and some rows of each."""
    digest = hashlib.sha256(f"{precision} {inputs.shape} {model.hyperparameters}".encode())
    digest.update(inputs.astype("<i8").tobytes())
    for role, tensor in model.tensors.items():
        digest.update(f"{role} {tensor.shape} {tensor.encoding}".encode())
        for row in sorted({0, tensor.rows // 3, 2 * tensor.rows // 3, tensor.rows - 1}):
            digest.update(decode(tensor.read(row, row + 1), tensor.columns).tobytes())
    return digest.hexdigest()
