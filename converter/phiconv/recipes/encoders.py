"""What the matrices of an encoder of pictures become, whatever the decoder's recipe says of its own.

8 bits where the decoder is quantized: an encoder is small beside it, and what it loses is lost for every
token of a picture. A matrix whose rows do not divide into blocks stays in floats, as in SigLIP, whose inner
size is 4304.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from phiconv.ir import F16, F32, Q8_0, FloatEncoding, mlx_affine, onnx_affine, openvino_affine
from phiconv.ir.roles import Role
from phiconv.recipes.grammar import FLOATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from phiconv.ir import Encoding
    from phiconv.recipes.target import Recipes
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["ENCODERS", "EncoderTypes", "encoder_encoding"]


class EncoderTypes(NamedTuple):
    """What a target does with the matrices of an encoder.

    Attributes:
        eight: The blocks of 8 bits of rows of so many columns.
        floats: For rows that do not divide into these.
        convolution: What the patch embedding is in any type but `floats`; None for the type of the others.
    """

    eight: Callable[[int], Encoding]
    floats: FloatEncoding
    convolution: FloatEncoding | None = None


_PATCHES = Role("vision.patch_embedding")

ENCODERS = {
    # ggml convolves with float16 and float32, and its converter writes the first only in a file of it.
    "gguf": EncoderTypes(lambda _: Q8_0, F16, F32),
    "onnx": EncoderTypes(lambda _: onnx_affine(8, 32, F32), F32),
    "openvino": EncoderTypes(lambda columns: openvino_affine(8, columns, symmetric=True), F16),
    "mlx": EncoderTypes(lambda _: mlx_affine(8, 64, F16), F16),
}
"""By the name of the target; one that is not here takes no encoders."""


def encoder_encoding(target: str, recipes: Recipes, recipe: str, tensor: OutputTensor) -> Encoding:
    """The encoding of an encoder's tensor.

    Args:
        target: Name of the format.
        recipes: Its recipes.
        recipe: The one of the decoder.
        tensor: What will be stored.
    """
    if tensor.required is not None:
        return tensor.required
    types, dtype = ENCODERS[target], FLOATS.get(recipes.RECIPES.read(recipe).stem.lower())
    if types.convolution and tensor.role == _PATCHES and dtype != types.floats:
        return types.convolution
    if dtype is not None:
        return dtype
    columns = tensor.tensor.columns
    eight = types.eight(columns)
    divides = isinstance(eight, FloatEncoding) or columns % eight.block_size == 0
    return eight if len(tensor.tensor.shape) > 1 and divides else types.floats
