"""Importance matrices as llama-imatrix writes them: a GGUF of sums and counts (see `imatrix`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.ir import F32
from phiconv.ir.model import as_text
from phiconv_formats.gguf.names import output_tensors
from phiconv_formats.gguf.types import TYPE_OF_ENCODING
from phiconv_formats.gguf.values import (
    GgufValue,
    ValueType,
    serialize_header,
    serialize_kv,
    serialize_tensor_info,
)
from phiconv_formats.shared.output import OutputFile, roles_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from phiconv.ir.importance import ColumnSums
    from phiconv.ir.model import Model, Role

__all__ = ["imatrix_file", "measured_matrices"]

_ALIGNMENT = 32


def measured_matrices(model: Model) -> dict[str, Role]:
    """The matrices that llama-imatrix measures, by their names in a GGUF: those of the layers.

    Where a matrix of the file is several joined ones, all have the same input, and the role is the first's.

    Raises:
        UnsupportedModelError: llama.cpp does not know the architecture.
    """
    found = {}
    outputs = output_tensors(model)
    for output, role in zip(outputs, roles_of(outputs, model), strict=True):
        if role and role.layer is not None and role.part == "weight" and len(output.tensor.shape) > 1:
            found[output.name] = role
    return found


def imatrix_file(
    file_name: str,
    sums: Mapping[str, ColumnSums],
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
) -> OutputFile:
    """Lays an importance matrix out.

    Args:
        file_name: The file's name.
        sums: What was measured, by the names of `measured_matrices`.
        datasets: What texts it was measured on.
        chunks: How many windows of the text.
        chunk_size: Tokens of a window.
    """
    metadata = (
        ("general.type", GgufValue(ValueType.STRING, "imatrix")),
        ("imatrix.datasets", GgufValue(ValueType.ARRAY, list(map(as_text, datasets)), ValueType.STRING)),
        ("imatrix.chunk_count", GgufValue(ValueType.UINT32, chunks)),
        ("imatrix.chunk_size", GgufValue(ValueType.UINT32, chunk_size)),
    )
    tensors: dict[str, NDArray[Any]] = {}
    for name, each in sorted(sums.items()):
        tensors[f"{name}.in_sum2"] = each.sums
        tensors[f"{name}.counts"] = each.counts[:, None]
    infos, data = [], []
    offset = 0
    for name, values in tensors.items():
        shape = values.shape if len(values) > 1 else values.shape[1:]  # as ggml: no outer dimension of 1
        infos.append(serialize_tensor_info(name, shape, TYPE_OF_ENCODING[F32].id, offset))
        part = values.astype("<f4").tobytes()
        data.append(part + bytes(-len(part) % _ALIGNMENT))
        offset += len(data[-1])
    head = serialize_header(len(tensors), len(metadata))
    head += b"".join(serialize_kv(key, value) for key, value in metadata) + b"".join(infos)
    head += bytes(-len(head) % _ALIGNMENT)
    return OutputFile(file_name, len(head) + offset, ((0, head + b"".join(data)),))
