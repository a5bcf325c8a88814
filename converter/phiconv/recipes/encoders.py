"""What the matrices of an encoder become, whatever the decoder's recipe says of its own.

8 bits where the decoder is quantized: an encoder is small beside it, and what it loses is lost for every
token of a picture. A matrix whose rows do not divide into blocks stays in floats, as in SigLIP, whose inner
size is 4304 (ONNX Runtime has blocks of 16, too); so does one that comes in other blocks, rather than being
rounded twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from phiconv.ir import F16, F32, Q8_0, FloatEncoding, mlx_affine, onnx_affine, openvino_affine, same_meaning
from phiconv.ir.roles import Role
from phiconv.recipes.grammar import FLOATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from phiconv.ir import BlockEncoding, Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.target import Recipes
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["ENCODERS", "EncoderTypes", "encoder_encoding"]


class EncoderTypes(NamedTuple):
    """What a target does with the matrices of an encoder.

    Attributes:
        eight: The blocks of 8 bits of rows of so many columns, where floats are of such a type.
        floats: For rows that do not divide into these; None for the float type of the output.
        convolution: What the patch embedding is in any type but `floats`; None for the type of the others.
        kept: The runtime's own tool keeps all in floats, which ``--match-runtime`` asks for.
    """

    eight: Callable[[int, FloatEncoding], BlockEncoding]
    floats: FloatEncoding | None
    convolution: FloatEncoding | None = None
    kept: bool = False


_PATCHES, _POSITIONS = Role("vision.patch_embedding"), Role("vision.position_embedding")

ENCODERS = {
    # ggml convolves with float16 and float32, and its converter writes the first only in a file of it.
    "gguf": EncoderTypes(lambda *_: Q8_0, F16, F32),
    "onnx": EncoderTypes(lambda columns, _: onnx_affine(8, 16 if columns % 32 else 32, F32), F32),
    "openvino": EncoderTypes(lambda columns, _: openvino_affine(8, columns, symmetric=True), F16),
    "mlx": EncoderTypes(lambda _, floats: mlx_affine(8, 64, floats), None, kept=True),
}
"""By the name of the target; one that is not here takes no encoders."""


def encoder_encoding(
    target: str, recipes: Recipes, recipe: str, tensor: OutputTensor, model: Model, choices: Choices
) -> Encoding:
    """The encoding of an encoder's tensor.

    Args:
        target: Name of the format.
        recipes: Its recipes.
        recipe: The one of the decoder.
        tensor: What will be stored.
        model: The source.
        choices: What the user wants otherwise.
    """
    if tensor.required is not None:
        return tensor.required
    types, asked = ENCODERS[target], FLOATS.get(recipes.RECIPES.read(recipe).stem.lower())
    if types.convolution and tensor.role == _PATCHES and asked != types.floats:
        return types.convolution
    floats = types.floats or recipes.cast(recipe, model, choices) or F16
    if asked is not None:
        return asked if types.floats else floats
    shape, stored = tensor.tensor.shape, tensor.tensor.encoding
    matrix = len(shape) == 2 and tensor.role not in {_PATCHES, _POSITIONS}
    if not matrix or (types.kept and choices.match_runtime):
        return floats
    eight = types.eight(shape[-1], floats)
    again = not isinstance(stored, FloatEncoding) and not same_meaning(stored, eight)
    return floats if again or shape[-1] % eight.block_size else eight
