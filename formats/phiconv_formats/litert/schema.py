"""The numbers of TFLite's schema that are used: element types, operators, the slots of tables.

Facts from schema.fbs of LiteRT 2.3 (https://github.com/google-ai-edge/LiteRT, tflite/converter/schema).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BITS",
    "BLOCKWISE",
    "COMPOSITE_OPTIONS",
    "IDENTIFIER",
    "OPERATORS",
    "OTHER_OPERATORS",
    "VERSION",
    "ElementType",
    "Operator",
]

IDENTIFIER = b"TFL3"
VERSION = 3
BLOCKWISE = 2
"""Of the union of quantization details: blocks with a scale each."""

COMPOSITE_OPTIONS = 21
"""Of the second union of options."""


class ElementType(IntEnum):
    """What a tensor is made of."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    INT8 = 9
    INT4 = 17


BITS = {
    ElementType.FLOAT32: 32,
    ElementType.FLOAT16: 16,
    ElementType.INT32: 32,
    ElementType.INT8: 8,
    ElementType.INT4: 4,
}
"""Bits of an element."""


class Operator(NamedTuple):
    """A built-in operator.

    Attributes:
        code: Its number.
        version: The version that it is used in, unless it says otherwise.
        options: The number of its options in the union of options; 0 for none.
        slots: Slot and kind of each option that is used, by its name.
    """

    code: int
    version: int = 1
    options: int = 0
    slots: Mapping[str, tuple[int, str]] = {}


OPERATORS = {
    "ADD": Operator(0),
    "BATCH_MATMUL": Operator(126, 1, 101, {"adj_y": (1, "?")}),
    "CAST": Operator(53),
    "CONCATENATION": Operator(2, 1, 10, {"axis": (0, "i")}),
    "CUMSUM": Operator(128, 1, 102, {"exclusive": (0, "?")}),
    "DEQUANTIZE": Operator(6, 3),
    "DYNAMIC_UPDATE_SLICE": Operator(151),
    "EMBEDDING_LOOKUP": Operator(7),
    "FULLY_CONNECTED": Operator(9, 5, 8, {"keep_num_dims": (2, "?")}),
    "GATHER": Operator(36, 1, 23, {"axis": (0, "i")}),
    "GELU": Operator(150, 1, 116, {"approximate": (0, "?")}),
    "LOGISTIC": Operator(14),
    "MAXIMUM": Operator(55),
    "MEAN": Operator(40, 1, 27, {"keep_dims": (0, "?")}),
    "MINIMUM": Operator(57),
    "MUL": Operator(18),
    "RESHAPE": Operator(22),
    "RSQRT": Operator(76),
    "SLICE": Operator(65),
    "SOFTMAX": Operator(25, 1, 9, {"beta": (0, "f")}),
    "SUB": Operator(41),
    "TRANSPOSE": Operator(39),
}
"""The operators that a decoder is made of."""

OTHER_OPERATORS = {206: "STABLEHLO_COMPOSITE"}
"""Operators that only other converters write, by their numbers: the ones that weights are used in."""
