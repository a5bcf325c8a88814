"""What quantization computes: pure functions from tiles of float weights to `Blocks`, and back.

Nothing here knows how a file stores a block; that is a format's packer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.quantizers import affine, codebook, lattice, nonlinear
from phiconv.quantizers.floats import narrow, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CODEBOOK_QUANTIZERS", "QUANTIZERS", "Quantizer", "WeightedQuantizer", "decode", "encode"]

Quantizer: TypeAlias = "Callable[[NDArray[Any]], ir.Blocks]"
"""From float32, float16 or bfloat16 weights of shape (rows, columns) to the blocks of the rows, in order."""

WeightedQuantizer: TypeAlias = "Callable[[NDArray[Any], ir.FloatArray | None], ir.Blocks]"
"""The same, with what an error in every column counts; some do not look at it."""

QUANTIZERS: dict[ir.BlockEncoding, Quantizer] = {
    ir.Q4_0: affine.q4_0,
    ir.Q4_1: affine.q4_1,
    ir.Q5_0: affine.q5_0,
    ir.Q5_1: affine.q5_1,
    ir.Q8_0: affine.q8_0,
}

CODEBOOK_QUANTIZERS: dict[ir.CodebookEncoding, WeightedQuantizer] = {
    ir.MXFP4: codebook.mxfp4,
    ir.NVFP4: codebook.nvfp4,
    ir.TQ1_0: codebook.tq1_0,
    ir.TQ2_0: codebook.tq2_0,
    ir.IQ4_NL: nonlinear.iq4_nl,
    ir.IQ4_XS: nonlinear.iq4_xs,
    ir.IQ2_XXS: lattice.iq2_xxs,
    ir.IQ2_XS: lattice.iq2_xs,
    ir.IQ2_S: lattice.iq2_s,
    ir.IQ3_XXS: lattice.iq3_xxs,
    ir.IQ3_S: lattice.iq3_s,
}


def encode(
    values: NDArray[Any], encoding: ir.Encoding, importance: ir.FloatArray | None = None
) -> ir.Encoded:
    """Converts or quantizes rows of weights.

    Args:
        values: Any stored float type, shape (rows, columns). A float64 is rounded to float32 first.
        encoding: What to make of them. For a block encoding, columns is a multiple of its block size.
        importance: What an error in every column counts, shape (columns,); not every encoding asks for it.

    Returns:
        ``values`` in the encoding's float type (the same array if it has it), or their blocks.
    """
    if isinstance(encoding, ir.FloatEncoding):
        return narrow(values, encoding)
    if encoding not in QUANTIZERS and encoding not in CODEBOOK_QUANTIZERS:
        raise UsageError(f"phiconv has no quantizer for {encoding.name}")
    if values.shape[-1] % encoding.block_size:
        raise UsageError(f"rows of {values.shape[-1]} weights cannot be cut into {encoding.name} blocks")
    values = widen(values) if values.dtype.itemsize == 8 else values
    if isinstance(encoding, ir.CodebookEncoding):
        return CODEBOOK_QUANTIZERS[encoding](values, importance)
    return QUANTIZERS[encoding](values)


def decode(encoded: ir.Encoded, columns: int) -> ir.FloatArray:
    """The weights that rows stand for.

    Args:
        encoded: Rows in a stored float type, or their blocks.
        columns: Weights in a row.

    Returns:
        float32, shape (rows, columns); a float64 is rounded to it.
    """
    if not isinstance(encoded, ir.Blocks):
        return widen(encoded).reshape(-1, columns)
    is_codebook = isinstance(encoded.encoding, ir.CodebookEncoding)
    weights = codebook.dequantize(encoded) if is_codebook else affine.dequantize(encoded)
    return weights.reshape(-1, columns)
