"""Importance matrices in the two formats of llama-imatrix (llama.cpp's common/imatrix-loader.cpp).

The current one is a GGUF with two tensors for each matrix: ``NAME.in_sum2``, sums of squared activations by
column, and ``NAME.counts``, how many were summed up, one number for each matrix of a stack. The legacy one
(``.dat``) is a list of records. All that is used of either are the means; only the current one is written.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, printable
from phiconv.ir.importance import ImportanceMatrix
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.shared.files import InputFile, read_small_file
from phiconv_formats.shared.links import following_links

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv_formats.gguf.reader import GgufFile

__all__ = ["read_imatrix"]

_LARGEST_LEGACY = 2 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: str | PathLike[str]) -> ImportanceMatrix:
    """Reads an importance matrix, ``.gguf`` or legacy ``.dat``.

    Raises:
        MalformedFileError: It is neither, it is damaged, or a weight is not finite.
    """
    path = Path(path)
    with following_links():  # no part of a model: whoever names it means it
        with InputFile(path) as file:
            is_gguf = file.read_bytes(0, min(4, file.size)) == b"GGUF"
        matrix = _read_gguf(path) if is_gguf else _read_legacy(path)
    if not matrix.weights:
        raise MalformedFileError("holds no importance weights", path=path, hint="make it with llama-imatrix")
    return matrix


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = open_gguf(path)
    weights = {
        name.removesuffix(_SUMS): _means(file, name, path) for name in file.tensors if name.endswith(_SUMS)
    }
    datasets = file.metadata.get("imatrix.datasets")
    chunks = file.metadata.get("imatrix.chunk_count")
    return ImportanceMatrix(
        path,
        weights,
        tuple(str(d) for d in datasets.value) if datasets and isinstance(datasets.value, list) else (),
        chunks.value if chunks and type(chunks.value) is int else 0,
    )


def _means(file: GgufFile, name: str, path: Path) -> FloatArray:
    """Sums divided by counts in float32; 1 everywhere where nothing was counted."""
    sums = _floats(file, name, path)
    counts = np.rint(_floats(file, name.removesuffix(_SUMS) + _COUNTS, path))
    if counts.size == 0 or sums.size % counts.size:
        raise MalformedFileError(f"{counts.size} counts for {sums.size} sums", path=path, at=name)
    sums, counts = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
    counted = counts > 0
    return np.where(counted, sums / np.where(counted, counts, np.float32(1)), np.float32(1)).reshape(-1)


def _floats(file: GgufFile, name: str, path: Path) -> FloatArray:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.encoding != ir.F32:
        raise MalformedFileError("no float32 tensor of this name", path=path, at=name)
    values = tensor.read(0, tensor.rows)
    assert isinstance(values, np.ndarray)  # noqa: S101 - float32 is no block encoding
    _check(values, name, path)
    return values.astype(np.float32).reshape(-1)


def _check(values: NDArray[Any], name: str, path: Path) -> None:
    """Refuses what no sum of squares is, before anybody computes with it."""
    if not (np.isfinite(values) & (values >= 0)).all() or values.size == 0:
        message = "an importance weight is missing, negative, NaN or infinite"
        raise MalformedFileError(message, path=path, at=name)


def _read_legacy(path: Path) -> ImportanceMatrix:
    """The format before 2025: records of name, number of calls, values; then, perhaps, chunks and dataset."""
    records = _Records(path)
    weights: dict[str, FloatArray] = {}
    for _ in range(records.integer("number of entries", largest=1 << 20)):
        name = records.take(records.integer("length of a name", largest=1 << 16)).decode("utf-8", "replace")
        calls = records.integer("number of calls", largest=(1 << 31) - 1)
        values = np.frombuffer(records.take(4 * records.integer("number of values", largest=1 << 28)), "<f4")
        _check(values, name, path)
        if name in weights:
            raise MalformedFileError("is there twice", path=path, at=f"entry {printable(name)}")
        weights[name] = np.divide(values, np.float32(max(calls, 1)), dtype=np.float32)
    if records.left < 8:
        return ImportanceMatrix(path, weights)
    chunks = records.integer("number of chunks", largest=(1 << 31) - 1)
    dataset = records.take(records.integer("length of the dataset's name", largest=1 << 16))
    return ImportanceMatrix(path, weights, (dataset.decode("utf-8", "replace"),) if dataset else (), chunks)


class _Records:
    """A cursor over the file that never leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = memoryview(read_small_file(path, _LARGEST_LEGACY))
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise MalformedFileError(
                f"ends early: {count} bytes are needed at byte {self.at}, and {self.left} are left",
                path=self.path,
                hint="it is no importance matrix, or it is truncated",
            )
        start, self.at = self.at, self.at + count
        return bytes(self.data[start : self.at])

    def integer(self, what: str, largest: int) -> int:
        (value,) = struct.unpack("<i", self.take(4))
        if not 0 <= value <= largest:
            raise MalformedFileError(
                f"{value} as {what} at byte {self.at - 4}", path=self.path, hint="it is no importance matrix"
            )
        return int(value)
