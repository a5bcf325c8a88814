"""AWQ's folders in the layout "gemm": the matrix is stored transposed, with eight outputs in a word.

    qweight  I32 [in, out / 8]       codes
    qzeros   I32 [groups, out / 8]   zero points
    scales   F16 [groups, out]

    weight[o, i] = (code[i, o] - zero_point[i / group_size, o]) * scale[i / group_size, o]

The halves of a word's bytes, from the lowest on, are of outputs 0, 2, 4, 6, 1, 3, 5, 7. Source: AutoAWQ 0.2
(``modules/linear/gemm.py``, ``utils/packing_utils.py``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv.ir.hub_encodings import grouped_integers
from phiconv_formats.quantized_folders.arrays import put_together
from phiconv_formats.quantized_folders.matrices import Numbers, as_matrix
from phiconv_formats.quantized_folders.packed_columns import PackedColumns
from phiconv_formats.quantized_folders.settings import read_settings, refuse
from phiconv_formats.shared.columns import ColumnRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle

__all__ = ["assemble"]

ARRAYS: Arrays = {"qweight": ("i32",), "qzeros": ("i32",), "scales": ("f16", "bf16", "f32")}
_BITS = 4
_IN_A_WORD = 8
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which part of a word belongs to its first output, its second, and so on."""


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:
    """The folder with its matrices put together.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
        ConfigError: A setting that is wrong, or not read.
    """
    settings = read_settings(folder, quantization)
    for key in ("version", "checkpoint_format", "format"):
        stated = settings.get(key)[1]
        if stated is not None and str(stated).lower() != "gemm":
            raise refuse(settings, key, "the layout")
    if settings.integer("bits", "w_bit", default=_BITS) != _BITS:
        raise refuse(settings, "bits", "a number of bits that is")
    size = settings.get("group_size", "q_group_size")[1]
    group_size = 0 if size == -1 else settings.integer("group_size", "q_group_size", default=128)
    return put_together(folder, ARRAYS, "qweight", partial(_matrix, group_size), "awq")


def _matrix(group_size: int, bundle: Bundle) -> ir.Tensor:
    columns, words = bundle.matrix("qweight")
    rows, size = words * _IN_A_WORD, group_size or columns
    groups = -(-columns // size)
    bundle.expect(scales=(groups, rows), qzeros=(groups, words))
    kind = bundle["scales"].encoding
    assert isinstance(kind, ir.FloatEncoding)  # noqa: S101 - see ARRAYS
    encoding = grouped_integers("awq", _BITS, size, kind, symmetric=False)
    parts = (
        PackedColumns(bundle["qweight"], _BITS, order=_ORDER),
        ColumnRows(bundle["scales"]),
        PackedColumns(bundle["qzeros"], _BITS, order=_ORDER),
    )
    return as_matrix(encoding, (rows, columns), parts, _numbers)


def _numbers(codes: NDArray[np.uint8], scales: NDArray[Any], zero_points: NDArray[np.uint8]) -> Numbers:
    return Numbers(codes, scales, zero_points)
