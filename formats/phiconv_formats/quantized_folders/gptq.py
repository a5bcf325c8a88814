"""GPTQ's folders, as AutoGPTQ and GPTQModel write them: the matrix is stored transposed, in words of 32 bits.

    qweight  I32 [in * bits / 32, out]     codes, along the inputs: a stream of bits down each column
    qzeros   I32 [groups, out * bits / 32] zero points, along the outputs
    scales   F16 [groups, out]
    g_idx    I32 [in]                      the group of each input; absent where they follow each other

    weight[o, i] = (code[i, o] - zero_point[g_idx[i], o]) * scale[g_idx[i], o]

In version 1 (``checkpoint_format: gptq``) zero points are stored less 1, subtracted from the words: a zero
point 0 has borrowed from its neighbour, so 1 is added to whole words before they are cut. Version 2 stores
them as they are. Sources: AutoGPTQ 0.7, GPTQModel 7.7 (``nn_modules/qlinear``, ``utils/model.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError
from phiconv.ir.hub_encodings import grouped_integers
from phiconv_formats.quantized_folders import awq
from phiconv_formats.quantized_folders.arrays import put_together
from phiconv_formats.quantized_folders.matrices import Numbers, as_matrix
from phiconv_formats.quantized_folders.packed_columns import WORD_BITS, PackedColumns, unpack_rows, words_of
from phiconv_formats.quantized_folders.settings import read_settings, refuse
from phiconv_formats.shared.columns import ColumnRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from phiconv.architectures.config import Config
    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays, Bundle

__all__ = ["assemble"]

ARRAYS: Arrays = {
    "qweight": ("i32",),
    "qzeros": ("i32",),
    "scales": ("f16", "bf16", "f32"),
    "g_idx": ("i32", "i64"),
}
BITS = (2, 3, 4, 8)
_STORED_LESS = {"gptq": 1, "gptq_v2": 0}
"""What has been subtracted from zero points, by ``checkpoint_format``."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What config.json says of all matrices.

    Attributes:
        bits: Of a code.
        group_size: Inputs of a group; 0 for all.
        symmetric: Whether all zero points are the middle code.
        less: What has been subtracted from zero points.
        exceptions: Whether some matrices may have other bits and groups.
    """

    bits: int
    group_size: int
    symmetric: bool
    less: int
    exceptions: bool


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:
    """The folder with its matrices put together.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
        ConfigError: A setting that is wrong, or not read.
    """
    settings = read_settings(folder, quantization)
    stated = settings.get("checkpoint_format", "format")[1]
    if stated == "gemm":  # GPTQModel's name for AWQ's layout
        return awq.assemble(folder, quantization)
    read = _read(settings)
    return put_together(folder, ARRAYS, "qweight", partial(_matrix, read), "gptq")


def _read(settings: Config) -> _Settings:
    key, stated = settings.get("checkpoint_format", "format")
    if stated is not None and (not isinstance(stated, str) or stated not in _STORED_LESS):
        raise refuse(settings, key, "the layout")
    if settings.boolean("is_marlin_format", default=False):
        raise refuse(settings, "is_marlin_format", "Marlin's layout:")
    bits = settings.integer("bits")
    if bits not in BITS:
        raise refuse(settings, "bits", "a number of bits that is")
    size = settings.get("group_size")[1]
    return _Settings(
        bits,
        0 if size == -1 else settings.integer("group_size", default=128),
        settings.boolean("sym", default=True),
        _STORED_LESS[stated or "gptq"],
        _has_exceptions(settings),
    )


def _has_exceptions(settings: Config) -> bool:
    """Whether ``dynamic`` gives some matrices other settings; a pattern after "-:" only leaves some out."""
    dynamic = settings.section("dynamic")
    return dynamic is not None and any(not pattern.startswith("-:") for pattern in dynamic.values)


def _matrix(settings: _Settings, bundle: Bundle) -> ir.Tensor:
    words, rows = bundle.matrix("qweight")
    groups = bundle.matrix("scales")[0]
    bits = _bits(settings, bundle, rows)
    per_words, together = words_of(bits)
    if words % per_words or rows % together:
        raise bundle.error(f"{rows} outputs of {bits} bits do not fill the words of {words} rows")
    columns = words * WORD_BITS // bits
    bundle.expect(scales=(groups, rows), qzeros=(groups, rows * bits // WORD_BITS), g_idx=(columns,))
    group_size = _group_size(settings, bundle, columns, groups)
    kind = bundle["scales"].encoding
    assert isinstance(kind, ir.FloatEncoding)  # noqa: S101 - see ARRAYS
    symmetric = settings.symmetric and not settings.exceptions
    encoding = grouped_integers("gptq", bits, group_size, kind, symmetric=symmetric)
    parts = (
        ColumnRows(bundle["qweight"]),
        ColumnRows(bundle["scales"]),
        PackedColumns(bundle["qzeros"], bits, settings.less),
    )
    numbers = partial(_numbers, encoding, bundle["qzeros"].label)
    return as_matrix(
        encoding, (rows, columns), parts, numbers, groups=_order(bundle, columns, groups, group_size)
    )


def _bits(settings: _Settings, bundle: Bundle, rows: int) -> int:
    """Bits of a code, which the sizes of zero points show."""
    found, rest = divmod(bundle.matrix("qzeros")[1] * WORD_BITS, rows)
    if rest or found not in BITS or (found != settings.bits and not settings.exceptions):
        shape = list(bundle["qzeros"].shape)
        raise bundle.error(
            f"has shape {shape}, which are no zero points of {settings.bits} bits of {rows} outputs", "qzeros"
        )
    return found


def _group_size(settings: _Settings, bundle: Bundle, columns: int, groups: int) -> int:
    size = settings.group_size or columns
    if -(-columns // size) == groups:
        return size
    if settings.exceptions and columns % groups == 0:
        return columns // groups
    raise bundle.error(
        f"has {groups} groups, where {columns} inputs in groups of {size} are expected", "scales"
    )


def _order(bundle: Bundle, columns: int, groups: int, group_size: int) -> NDArray[np.int32] | None:
    """The group of every column; None where these follow each other.

    Raises:
        MalformedFileError: A group that there is not.
    """
    if "g_idx" not in bundle:
        return None
    kind = "<i4" if bundle["g_idx"].encoding.name == "i32" else "<i8"
    found = np.frombuffer(bundle.small("g_idx"), kind)
    if found.min() < 0 or found.max() >= groups:
        wrong = int(found[(found < 0) | (found >= groups)][0])
        raise bundle.error(f"names group {wrong}, and there are {groups}", "g_idx")
    order: NDArray[np.int32] = found.astype(np.int32)
    return None if np.array_equal(order, np.arange(columns) // group_size) else order


def _numbers(
    encoding: ir.BlockEncoding,
    label: str,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8],
) -> Numbers:
    """What is stored of some rows.

    Raises:
        MalformedFileError: A zero point is not the middle code, and config.json says that all are.
    """
    unpacked = unpack_rows(codes, encoding.bits)
    if encoding.has_zero_point:
        return Numbers(unpacked, scales, zero_points)
    if np.any(zero_points != encoding.offset):
        found = int(zero_points[zero_points != encoding.offset][0])
        raise MalformedFileError(
            f"has a zero point {found}, and config.json says that it is quantized symmetrically",
            path=label,
            hint="sym or checkpoint_format in quantization_config is wrong",
        )
    return Numbers(unpacked, scales)
