"""The schemes of compressed-tensors as config.json describes them, and the layouts that they are stored in.

Every value is what llm-compressor 0.14 (compressed-tensors 0.19) writes for its preset of that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv.ir import BlockEncoding
from phiconv.ir.server import FP8_BLOCK, scheme_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv import ir

__all__ = ["SCHEMES", "Scheme", "arguments", "weight_arguments"]

_NOTHING: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "group_size": None,
    "observer": None,
    "observer_kwargs": {},
    "scale_dtype": None,
    "zp_dtype": None,
}


def arguments(bits: int, kind: str, strategy: str, **others: Any) -> dict[str, Any]:
    """A ``QuantizationArgs``: keys in alphabetical order."""
    own = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True}
    return dict(sorted((_NOTHING | own | others).items()))


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are stored, and what a runtime does to activations.

    Attributes:
        layout: compressed-tensors' name of the format.
        kind: ``int`` or ``float``.
        bits: Bits of a code.
        activations: ``QuantizationArgs`` of the inputs of a layer; None where they stay as they are.
        weights: What the arguments of the weights have beyond what an encoding says.
    """

    layout: str
    kind: str
    bits: int
    activations: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None


_INT8 = arguments(8, "int", "token", dynamic=True)
_FP8 = arguments(8, "float", "token", dynamic=True)
_FP8_GROUPS = arguments(8, "float", "group", dynamic=True, group_size=FP8_BLOCK)
_MXFP8 = arguments(8, "float", "group", dynamic=True, group_size=32, scale_dtype="torch.uint8")

SCHEMES = {
    "w4a16": Scheme("pack-quantized", "int", 4),
    "w8a16": Scheme("pack-quantized", "int", 8),
    "w4a8": Scheme("int-quantized", "int", 4, _INT8),
    "w8a8": Scheme("int-quantized", "int", 8, _INT8),
    "fp8-dynamic": Scheme("float-quantized", "float", 8, _FP8, {"strategy": "channel"}),
    "fp8-block": Scheme(
        "float-quantized",
        "float",
        8,
        _FP8_GROUPS,
        {"strategy": "block", "block_structure": [FP8_BLOCK, FP8_BLOCK]},
    ),
    "nvfp4a16": Scheme(
        "nvfp4-pack-quantized",
        "float",
        4,
        None,
        {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    ),
    "mxfp4a16": Scheme(
        "mxfp4-pack-quantized",
        "float",
        4,
        None,
        {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "mxfp8": Scheme(
        "mxfp8-quantized",
        "float",
        8,
        _MXFP8,
        {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
}
"""By the stem of a recipe's name."""


def weight_arguments(encoding: ir.Encoding, *, channel: bool) -> dict[str, Any]:
    """``QuantizationArgs`` of weights.

    Args:
        encoding: One of `phiconv.ir.server` that is compressed-tensors'.
        channel: Whether groups of integers are whole rows.
    """
    scheme = SCHEMES[scheme_of(encoding)]
    own: dict[str, Any] = dict(scheme.weights or {})
    if isinstance(encoding, BlockEncoding):
        own = {"strategy": "channel"} if channel else {"strategy": "group", "group_size": encoding.block_size}
        if encoding.has_zero_point:
            own |= {"symmetric": False, "zp_dtype": "torch.int8"}
    return arguments(scheme.bits, scheme.kind, own.pop("strategy"), **own)
