"""The arrays of a quantized folder, gathered by the matrix that they store, each checked before its use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from phiconv.errors import MalformedFileError, UnsupportedModelError
from phiconv.ir import FloatEncoding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from phiconv.ir import Tensor
    from phiconv.ir.model import Checkpoint

__all__ = ["SMALL", "Arrays", "Bundle", "checked", "put_together"]

Arrays: TypeAlias = "Mapping[str, tuple[str, ...]]"
"""What the arrays of a matrix are called, behind the matrix's own name, and the dtypes that each may have."""

_CACHED = (".k_scale", ".v_scale", ".q_scale")
"""How the scales of a cache are called, on which no weight depends."""

SMALL = 1 << 20
"""Bytes of an array that is read when a folder is opened, and no more."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The arrays of one matrix.

    Attributes:
        base: The matrix, as "model.layers.0.mlp.down_proj".
        arrays: By what they are called behind that.
        path: The folder, for messages.
        separator: What is between the two names.
    """

    base: str
    arrays: Mapping[str, Tensor]
    path: Path
    separator: str = "."

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        """An array, which must be there.

        Raises:
            MalformedFileError: It is not.
        """
        if name not in self.arrays:
            there = ", ".join(self.arrays)
            raise self.error(f"this array is missing beside {there}", name, "download the checkpoint again")
        return self.arrays[name]

    def error(self, message: str, name: str = "", hint: str = "") -> MalformedFileError:
        """That something is wrong with an array, or with the matrix."""
        at = f"tensor {self.base}{self.separator if name else ''}{name}"
        return MalformedFileError(message, path=self.path, at=at, hint=hint)

    def unsupported(self, message: str) -> UnsupportedModelError:
        """That the matrix is stored in a way that is not read."""
        return UnsupportedModelError(
            message, path=self.path, at=f"tensor {self.base}", hint="take the unquantized model"
        )

    def expect(self, **shapes: tuple[int, ...]) -> None:
        """Checks shapes of arrays that are there.

        Raises:
            MalformedFileError: One is another, or the matrix has no weights.
        """
        for name, shape in shapes.items():
            if name in self.arrays and self.arrays[name].shape != shape:
                found = list(self.arrays[name].shape)
                raise self.error(f"has shape {found}, where the other arrays ask for {list(shape)}", name)

    def matrix(self, name: str, rank: int = 2) -> tuple[int, ...]:
        """The shape of an array of this rank, none of whose sizes is 0.

        Raises:
            MalformedFileError: It has another rank, or nothing is in it.
        """
        shape = self[name].shape
        if len(shape) != rank or not all(shape):
            raise self.error(f"has shape {list(shape)}, which is no matrix's", name)
        return shape

    def small(self, name: str) -> bytes:
        """All bytes of an array that is read when the folder is opened.

        Raises:
            MalformedFileError: It has more than such an array has.
        """
        tensor = self[name]
        if tensor.size * tensor.encoding.bits_per_weight > 8 * SMALL:
            raise self.error(f"has shape {list(tensor.shape)}, far more than such an array has", name)
        rows = tensor.read(0, tensor.rows)
        return rows.tobytes()  # type: ignore[union-attr]  # arrays of a file are no blocks


def put_together(
    folder: Checkpoint, arrays: Arrays, mark: str, make: Callable[[Bundle], Tensor], name_of_format: str = ""
) -> Checkpoint:
    """The folder with each of its quantized matrices as one tensor.

    Args:
        folder: Its ``stored`` has the arrays.
        arrays: What a matrix is made of.
        mark: The array that only a quantized matrix has.
        make: Puts one together.
        name_of_format: What the folder is, where that is a format of its own.

    Returns:
        The folder as it is where there is no such matrix.

    Raises:
        MalformedFileError: An array of a wrong dtype, or a matrix that is stored twice.
    """
    by_name = {name: _split(name, arrays) for name in folder.stored if not name.endswith(_CACHED)}
    marked = {base for base, array in by_name.values() if array == mark}
    if not marked:
        return folder
    bundles: dict[str, dict[str, Tensor]] = {base: {} for base in marked}
    for name, (base, array) in by_name.items():
        if array and base in marked:
            bundles[base][array] = folder.stored[name]
    result: dict[str, Tensor] = {}
    for name, (base, array) in by_name.items():
        tensor = folder.stored[name]
        if not array or base not in marked:
            if result.setdefault(name, tensor) is not tensor:
                raise _twice(name, folder.path)
        elif base in bundles:
            bundle = checked(Bundle(base, bundles.pop(base), folder.path), arrays)
            if f"{base}.weight" in result:
                raise _twice(f"{base}.weight", folder.path)
            result[f"{base}.weight"] = make(bundle)
    return replace(folder, format=name_of_format or folder.format, stored=result, tensors=None)


def _split(name: str, arrays: Arrays) -> tuple[str, str]:
    """The matrix and the array that a name is made of; the name itself and "" where it is none's."""
    ends = (array for array in arrays if name.endswith(f".{array}"))
    array = max(ends, key=len, default="")
    return (name.removesuffix(f".{array}"), array) if array else (name, "")


def _twice(name: str, path: Path) -> MalformedFileError:
    return MalformedFileError("is stored twice, quantized and not", path=path, at=f"tensor {name}")


def checked(bundle: Bundle, arrays: Arrays) -> Bundle:
    """The bundle, if its arrays have dtypes that they may have."""
    for name, tensor in bundle.arrays.items():
        if tensor.encoding.name not in arrays[name]:
            allowed = " or ".join(arrays[name])
            raise bundle.error(f"has elements of {tensor.encoding.name}, where {allowed} is expected", name)
        if not isinstance(tensor.encoding, FloatEncoding) and tensor.encoding.block_size != 1:
            raise bundle.error(f"has elements of {tensor.encoding.name}, which fill no bytes", name)
    return bundle
