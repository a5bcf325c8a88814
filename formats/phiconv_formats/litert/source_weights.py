"""The weights of a TFLite model that is read: which constants they are, and their rows as they are needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError, printable
from phiconv_formats.litert.packing import encoding_of, unpack
from phiconv_formats.litert.rotary import TABLE_NAMES
from phiconv_formats.litert.schema import BITS, ElementType
from phiconv_formats.litert.weights import SCALES
from phiconv_formats.shared.rows import AssembledRows, FileRows

if TYPE_CHECKING:
    from phiconv_formats.litert.modules import ExportedWeights
    from phiconv_formats.litert.tflite_reader import Constant, TfLite

__all__ = ["find_weights"]

_FLOATS = {ElementType.FLOAT32: ir.F32, ElementType.FLOAT16: ir.F16}
_INTEGERS = (ElementType.INT8, ElementType.INT4)
_CONSTANT = "constant_"
_ZEROS_AT_ONCE = 1 << 16


def find_weights(model: TfLite, exported: ExportedWeights | None = None) -> dict[str, ir.Tensor]:
    """The weights by their names in the graph, without the name of the signature.

    Args:
        model: The graph.
        exported: Its weights by their names in a checkpoint, where others have told what they are.

    Raises:
        MalformedFileError: A constant is not as large as its shape says.
        UnsupportedModelError: Integers that are stored in a way that phiconv does not read; two constants of
            one name.
    """
    if exported is not None:
        weights = ((name, model.constants[number]) for name, number in exported.constants.items())
        return {name: _tensor(model, _whole(constant), name) for name, constant in weights}
    found: dict[str, ir.Tensor] = {}
    scales = {constant.blocks[0] for constant in model.constants.values() if constant.blocks}
    for number, constant in model.constants.items():
        name = constant.name.removeprefix(model.prefix)
        if number in scales or not _is_weight(name, constant):
            continue
        if name in found:
            raise UnsupportedModelError(
                "two constants are called so",
                path=model.buffer.file.path,
                at=f"tensor {printable(name)}",
            )
        found[name] = _tensor(model, constant, name)
    return found


def _whole(constant: Constant) -> Constant:
    """A constant without axes of size 1 before its own, which broadcasting asks for."""
    shape = constant.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return replace(constant, shape=shape)


def _is_weight(name: str, constant: Constant) -> bool:
    """Whether a constant is no table of angles, no number of the graph, and of a type that weights have."""
    known = constant.type in _FLOATS or constant.type in _INTEGERS
    return known and bool(constant.shape) and name not in TABLE_NAMES and not name.startswith(_CONSTANT)


def _tensor(model: TfLite, constant: Constant, name: str) -> ir.Tensor:
    file, (offset, size) = model.buffer.file, constant.place
    shape, kind = constant.shape, ElementType(constant.type)
    if -(-prod(shape) * BITS[kind] // 8) != size:
        raise model.buffer.error(f"{size} bytes are not the size of tensor {printable(name)}", offset)
    columns = shape[-1] if len(shape) > 1 else 1
    if kind in _FLOATS:
        encoding = _FLOATS[kind]
        return ir.Tensor.of(FileRows(file, offset, columns * BITS[kind] // 8, encoding, name), shape)
    scales, rows, block_size = _scales(model, constant, name)
    blocks = encoding_of(kind, block_size, channels=not constant.blocks)
    if blocks is None or len(shape) != 2 or columns % blocks.block_size:
        raise _unknown(model, name, f"blocks of {block_size} in shape {list(shape)}")
    raw = ir.RawEncoding(kind.name.lower(), 1, 1)
    codes = FileRows(file, offset, columns * BITS[kind] // 8, raw, name)
    numbers = FileRows(file, scales, rows, ir.RawEncoding("scales", 1, 1), name + SCALES)
    return ir.Tensor.of(AssembledRows(blocks, (codes, numbers), partial(unpack, blocks)), shape)


def _scales(model: TfLite, constant: Constant, name: str) -> tuple[int, int, int]:
    """Where the scales of a matrix begin, bytes of those of a row, and weights that share one."""
    shape = constant.shape
    rows, columns = prod(shape[:-1]), shape[-1]
    if constant.blocks:
        number, zero_points, size = constant.blocks
        scales = model.constants.get(number)
        if zero_points >= 0 or size <= 0 or columns % size or scales is None:
            raise _unknown(model, name, f"blocks of {size}, with zero points or without scales")
        count = columns // size
        if scales.type != ElementType.FLOAT16 or scales.place[1] != 2 * count * rows:
            raise _unknown(model, name, "scales of another type or number")
        return scales.place[0], 2 * count, size
    if constant.scales is None or constant.scales.length != rows or constant.dimension != 0:
        raise _unknown(model, name, "no scale for each row")
    if constant.zero_points is not None:
        _check_zeros(model, *constant.zero_points, name)
    return constant.scales.start, 4, columns


def _check_zeros(model: TfLite, start: int, count: int, name: str) -> None:
    """Refuses integers that do not lie around 0."""
    for at in range(start, start + 8 * count, _ZEROS_AT_ONCE):
        if any(model.buffer.read(at, min(_ZEROS_AT_ONCE, start + 8 * count - at))):
            raise _unknown(model, name, "zero points")


def _unknown(model: TfLite, name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"stored in a way that phiconv does not read: {what}",
        path=model.buffer.file.path,
        at=f"tensor {printable(name)}",
        hint="convert the original checkpoint",
    )
