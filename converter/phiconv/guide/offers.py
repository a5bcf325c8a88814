"""The recipes worth choosing from, as data: few of each format, and what they are like.

How fast a model answers depends on how many bytes are read for each token, since every weight is. So the
classes follow the bits: ``slow`` is 8 and more, ``medium`` about 6, ``fast`` about 4 and fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["OFFERS", "Offer", "Speed", "offers_of"]

Speed: TypeAlias = Literal["slow", "medium", "fast"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A recipe worth choosing.

    Attributes:
        format: The format, a key of ``phiconv_formats.FORMATS``.
        recipe: Its name there.
        speed: How fast a model of it answers, beside the other recipes of the format.
        extra: It is shown only to those who have said what they run.
    """

    format: str
    recipe: str
    speed: Speed
    extra: bool = False


OFFERS = (
    Offer("gguf", "Q8_0", "slow"),
    Offer("gguf", "Q6_K", "medium"),
    Offer("gguf", "Q5_K_M", "medium"),
    Offer("gguf", "Q4_K_M", "fast"),
    Offer("gguf", "Q4_0", "fast", extra=True),
    Offer("gguf", "IQ4_XS", "fast", extra=True),
    Offer("gguf", "Q3_K_M", "fast"),
    Offer("gguf", "Q2_K", "fast", extra=True),
    Offer("mlx", "8bit", "slow"),
    Offer("mlx", "6bit", "medium"),
    Offer("mlx", "5bit", "medium", extra=True),
    Offer("mlx", "4bit", "fast"),
    Offer("mlx", "3bit", "fast", extra=True),
    Offer("onnx", "int8", "slow"),
    Offer("onnx", "int4-k_quant_mixed", "medium", extra=True),
    Offer("onnx", "int4-k_quant", "fast", extra=True),
    Offer("onnx", "int4", "fast"),
    Offer("openvino", "int8-asym", "slow"),
    Offer("openvino", "int4-asym-g32", "fast", extra=True),
    Offer("openvino", "int4-asym", "fast"),
    Offer("openvino", "int4-sym", "fast", extra=True),
    Offer("openvino", "int4-sym-channel", "fast", extra=True),
    Offer("litert", "wi8", "slow"),
    Offer("litert", "wi4b32", "fast"),
    Offer("litert", "wi4b128", "fast", extra=True),
    Offer("compressed-tensors", "w8a8", "slow"),
    Offer("compressed-tensors", "fp8-dynamic", "slow", extra=True),
    Offer("compressed-tensors", "w4a16-g32", "fast", extra=True),
    Offer("compressed-tensors", "w4a16", "fast"),
)
"""Every offer; of a format the largest first."""


def offers_of(format_name: str, recipes: tuple[str, ...] = ()) -> list[Offer]:
    """The offers of a format; those of some recipes alone, if any are named."""
    return [o for o in OFFERS if o.format == format_name and (not recipes or o.recipe in recipes)]
