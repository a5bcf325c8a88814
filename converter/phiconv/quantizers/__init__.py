"""What quantization computes: pure functions from tiles of float weights to `Blocks`, and back.

Nothing here knows how a file stores a block; that is a format's packer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.quantizers import compiled
from phiconv.quantizers.compiled.searches import COMPILED as _COMPILED
from phiconv.quantizers.decoding import decode
from phiconv.quantizers.ggml import affine, codebook, fast, kquant, lattice, nonlinear, onebit, weighted
from phiconv.quantizers.litert import min_max
from phiconv.quantizers.mlx import affine as mlx_affine
from phiconv.quantizers.mlx import microscaling
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.onnxruntime import least_squares, matmul_nbits, python_tools
from phiconv.quantizers.onnxruntime.channels import channels
from phiconv.quantizers.openvino import nncf
from phiconv.quantizers.server import quantizer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["COMPILED", "FAST", "QUANTIZERS", "SEARCHING", "Quantizer", "decode", "encode"]

Quantizer: TypeAlias = "Callable[[NDArray[Any], ir.FloatArray | None], ir.Blocks]"
"""From float32, float16 or bfloat16 weights of shape (rows, columns) to the blocks of the rows, in order. The
second argument is what the error of a weight counts, by its column, or None."""

_ONNX = {
    "default": matmul_nbits.default,
    "qdq": matmul_nbits.qdq,
    "gather": python_tools.gather,
    "qmoe": python_tools.qmoe,
    "rtn": python_tools.rtn,
    "k_quant": least_squares.k_quant,
}

QUANTIZERS: dict[ir.AnyBlockEncoding, Quantizer] = {
    ir.Q4_0: weighted.q4_0,
    ir.Q4_1: weighted.q4_1,
    ir.Q5_0: weighted.q5_0,
    ir.Q5_1: weighted.q5_1,
    ir.Q8_0: lambda values, _: affine.q8_0(values),
    ir.Q2_K: kquant.q2_k,
    ir.Q3_K: kquant.q3_k,
    ir.Q4_K: kquant.q4_k,
    ir.Q5_K: kquant.q5_k,
    ir.Q6_K: kquant.q6_k,
    ir.IQ4_NL: nonlinear.iq4_nl,
    ir.IQ4_XS: nonlinear.iq4_xs,
    ir.MXFP4: codebook.mxfp4,
    ir.NVFP4: codebook.nvfp4,
    ir.TQ1_0: codebook.tq1_0,
    ir.TQ2_0: codebook.tq2_0,
    ir.IQ1_S: onebit.iq1_s,
    ir.IQ1_M: onebit.iq1_m,
    ir.IQ2_XXS: lattice.iq2_xxs,
    ir.IQ2_XS: lattice.iq2_xs,
    ir.IQ2_S: lattice.iq2_s,
    ir.IQ3_XXS: lattice.iq3_xxs,
    ir.IQ3_S: lattice.iq3_s,
    **{encoding: partial(mlx_affine.affine, encoding=encoding) for encoding in ir.MLX_AFFINE},
    ir.MLX_MXFP4: microscaling.mxfp4,
    ir.MLX_MXFP8: microscaling.mxfp8,
    ir.MLX_NVFP4: microscaling.nvfp4,
    **{e: partial(_ONNX[method], encoding=e) for method, all_ in ir.ONNX_AFFINE.items() for e in all_},
    ir.OPENVINO_MXFP4: nncf.mxfp4,
    ir.OPENVINO_MXFP8: nncf.mxfp8,
    **{encoding: partial(nncf.nf4, encoding=encoding) for encoding in ir.OPENVINO_NF4},
}

FAST: dict[ir.AnyBlockEncoding, Quantizer] = {ir.Q4_K: fast.q4_k, ir.Q5_K: fast.q5_k}
"""Those that have a faster search."""

COMPILED: dict[ir.AnyBlockEncoding, Quantizer] = {
    ir.Q4_0: partial(weighted.q4_0, searches=_COMPILED),
    ir.Q4_1: partial(weighted.q4_1, searches=_COMPILED),
    ir.Q5_0: partial(weighted.q5_0, searches=_COMPILED),
    ir.Q5_1: partial(weighted.q5_1, searches=_COMPILED),
    ir.Q2_K: partial(kquant.q2_k, searches=_COMPILED),
    ir.Q3_K: partial(kquant.q3_k, searches=_COMPILED),
    ir.Q4_K: partial(kquant.q4_k, searches=_COMPILED),
    ir.Q5_K: partial(kquant.q5_k, searches=_COMPILED),
    ir.Q6_K: partial(kquant.q6_k, searches=_COMPILED),
}
"""The same blocks, of searches that numba compiles; see `compiled.expect`."""

SEARCHING = frozenset(
    {
        *(ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K, ir.IQ4_NL, ir.IQ4_XS, ir.IQ1_S, ir.IQ1_M),
        *(ir.IQ2_XXS, ir.IQ2_XS, ir.IQ2_S, ir.IQ3_XXS, ir.IQ3_S),
        *ir.ONNX_AFFINE["k_quant"],
    }
)
"""Encodings whose quantizers try many scales: ten times as slow as the others, or more."""


def encode(
    values: NDArray[Any],
    encoding: ir.Encoding,
    importance: ir.FloatArray | None = None,
    *,
    effort: ir.Effort = "exact",
) -> ir.Encoded:
    """Converts or quantizes rows of weights.

    Args:
        values: Any stored float type, shape (rows, columns). A float64 is rounded to float32 first.
        encoding: What to make of them. For a block encoding, columns is a multiple of its block size.
        importance: Weights of the quantization error by column ("importance matrix"): float32, shape
            (columns,), 0 or more. Encodings that llama.cpp quantizes without them ignore them.
        effort: "exact" or "fast"; an encoding that has no fast search is always exact. So is "best" here: it
            needs to know what the matrix is multiplied with, see `phiconv.quantizers.best`.

    Returns:
        ``values`` in the encoding's float type (the same array if it has it), or their blocks.
    """
    if effort not in get_args(ir.Effort):
        raise UsageError(f"no effort {effort!r}: choose from {', '.join(get_args(ir.Effort))}")
    if isinstance(encoding, ir.FloatEncoding):
        return narrow(values, encoding)
    quantizer = _quantizer(encoding) if isinstance(encoding, ir.AnyBlockEncoding) else None
    if quantizer is None:
        raise UsageError(f"phiconv has no quantizer for {encoding.name}")
    if values.shape[-1] % encoding.block_size:
        raise UsageError(f"rows of {values.shape[-1]} weights cannot be cut into {encoding.name} blocks")
    if importance is not None and importance.shape != values.shape[-1:]:
        raise UsageError(f"importance weights of shape {importance.shape} for {values.shape[-1]} columns")
    if effort == "fast" and encoding in FAST:
        quantizer = FAST[encoding]
    elif encoding in COMPILED and (importance is not None or encoding in SEARCHING):
        quantizer = COMPILED[encoding] if compiled.expect(values.size) else quantizer
    return quantizer(widen(values) if values.dtype.itemsize == 8 else values, importance)


def _quantizer(encoding: ir.AnyBlockEncoding) -> Quantizer | None:
    """Of `QUANTIZERS`; or one whose groups may be rows of any length."""
    if isinstance(encoding, ir.BlockEncoding) and encoding in (
        ir.litert_channel(encoding.bits, encoding.block_size),
        ir.litert_block(encoding.block_size),
    ):
        return partial(min_max.symmetric, encoding=encoding)
    if isinstance(encoding, ir.BlockEncoding) and encoding == ir.onnx_channel(
        encoding.bits, encoding.block_size
    ):
        return partial(channels, encoding=encoding)
    if isinstance(encoding, ir.BlockEncoding) and encoding == ir.openvino_affine(
        encoding.bits, encoding.block_size, symmetric=not encoding.has_zero_point
    ):
        return partial(nncf.symmetric if not encoding.has_zero_point else nncf.asymmetric, encoding=encoding)
    return QUANTIZERS.get(encoding) or quantizer_of(encoding)
