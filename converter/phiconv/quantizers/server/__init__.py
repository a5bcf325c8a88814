"""Servers' formats: the numbers of llm-compressor and GPTQModel, and better ones in the same formats."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from phiconv.ir import BlockEncoding, CodebookEncoding
from phiconv.ir.server import scheme_of
from phiconv.quantizers.server import compressed_tensors, rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from phiconv.ir import AnyBlockEncoding

__all__ = ["quantizer_of"]

_FLOATS = {
    "fp8-dynamic": compressed_tensors.fp8_channel,
    "fp8-block": compressed_tensors.fp8_block,
    "nvfp4a16": compressed_tensors.nvfp4,
    "mxfp4a16": compressed_tensors.mxfp4,
    "mxfp8": compressed_tensors.mxfp8,
}

_METHODS = {"gptq": rounded.gptq, "gptq-v2": rounded.gptq, "awq": rounded.awq}


def quantizer_of(encoding: AnyBlockEncoding) -> Callable[..., Any] | None:
    """The quantizer of an encoding of `phiconv.ir.server`; None for all others."""
    method = encoding.name.partition("_")[0]
    scheme = scheme_of(encoding)
    if isinstance(encoding, CodebookEncoding):
        return partial(_FLOATS[scheme], encoding=encoding) if scheme else None
    if not isinstance(encoding, BlockEncoding):
        return None
    if scheme:
        asymmetric, symmetric = compressed_tensors.asymmetric, compressed_tensors.symmetric
        return partial(asymmetric if encoding.has_zero_point else symmetric, encoding=encoding)
    return partial(_METHODS[method], encoding=encoding) if method in _METHODS else None
