"""An encoder of pictures as a file of its own, which llama.cpp opens beside the model (``--mmproj``).

Keys, their order and the names of the tensors are those of llama.cpp's converter (``--mmproj``), for the
projector that it calls "phi4": SigLIP 2 before its last layer, and two matrices. Its convolution over patches
has the numbers of a patch in the order colour, row, column, where the checkpoint has row, column, colour.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gguf.constants import GGML_QUANT_VERSION, GGUFValueType, Keys

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.forward.encoder_ops import vision
from phiconv.ir.patches import colour_by_colour
from phiconv.perception.pictures import normalization, patch_limits
from phiconv_formats.gguf.metadata import described
from phiconv_formats.gguf.values import GgufValue
from phiconv_formats.gguf.writer import FILE_TYPES, one_file
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.ir.senses import Encoder, Senses
    from phiconv_formats.shared.output import Package

__all__ = ["projector_tensors", "with_projector"]

_PATCHES, _POSITIONS = vision("patch_embedding"), vision("position_embedding")
_FLOATS = ("F32", "F16", "BF16")
_BLOCKS = "Q8_0"

# In the order of the file.
_ENDS = {
    "projection_in": "mm.0",
    "projection_out": "mm.2",
    "patch_embedding": "v.patch_embd",
    "position_embedding": "v.position_embd",
}
_LAYER = {
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "attn_k": "attn_k",
    "attn_output": "attn_out",
    "attn_q": "attn_q",
    "attn_v": "attn_v",
}

_U32, _F32, _BOOL = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.BOOL
_STRING, _ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY


def projector_tensors(model: Model) -> list[OutputTensor]:
    """The tensors of the file; none where the model does not see.

    Vectors and positions stay float32, as llama.cpp's converter keeps them.

    Raises:
        UnsupportedModelError: The patch embedding comes in blocks, which cannot be put in another order.
    """
    if model.senses is None or model.senses.vision is None:
        return []
    return [*_named(model.senses.vision, model.path)]


def _named(encoder: Encoder, path: Path) -> Iterator[OutputTensor]:
    names = {vision(name): stored for name, stored in _ENDS.items()}
    for layer in range(encoder.parameters.num_hidden_layers):
        names |= {vision(name, layer): f"v.blk.{layer}.{stored}" for name, stored in _LAYER.items()}
    for weight, stored in names.items():
        for role in (weight._replace(part="bias"), weight):
            if (tensor := encoder.tensors.get(role)) is None:
                continue
            keep = len(tensor.shape) == 1 or role == _POSITIONS
            if role == _PATCHES and isinstance(tensor.encoding, ir.FloatEncoding):
                tensor = colour_by_colour(tensor, encoder.parameters.patch_size)
            elif role == _PATCHES:
                message = f"is stored as {tensor.encoding.name}: llama.cpp wants floats in another order"
                raise UnsupportedModelError(message, path=path, at=f"weight {role}")
            yield OutputTensor(f"{stored}.{role.part}", tensor, role, ir.F32 if keep else None)


def with_projector(
    text: Package,
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
) -> Package:
    """The output with the file of the encoder beside that of the language model.

    Args:
        text: The output without it.
        model: A model that sees.
        tensors: What `projector_tensors` gives.
        encodings: In which encoding, tensor by tensor.
        file_name: The name of the language model's file, or what those of its parts are made of.
        recipe: Name of the language model's recipe.

    Raises:
        UsageError: preprocessor_config.json has other values than numbers where the file needs some.
    """
    assert model.senses is not None  # noqa: S101 - the caller has looked
    kind = recipe if recipe in _FLOATS else _BLOCKS
    name = f"mmproj-{file_name}"
    general, _ = described(model, tensors, "mmproj")  # the same notes as the other file's
    metadata = [
        (Keys.General.ARCHITECTURE, GgufValue(_STRING, "clip")),
        *general,
        (Keys.General.FILE_TYPE, GgufValue(_U32, FILE_TYPES[kind])),
        *_clip(model.senses),
        (Keys.General.QUANTIZATION_VERSION, GgufValue(_U32, GGML_QUANT_VERSION)),
    ]
    beside = one_file(name, metadata, tensors, encodings, model)
    note = f"what the model sees with is {name}: give both files to llama.cpp, this one as --mmproj"
    return replace(
        text,
        files=(*text.files, *beside.files),
        streams=(*text.streams, *beside.streams),
        notes=(*text.notes, note),
    )


def _clip(senses: Senses) -> list[tuple[str, GgufValue]]:
    """``clip.*``: the encoder's numbers, and how a picture is made ready for it."""
    assert senses.vision is not None  # noqa: S101 - the caller has looked
    v = senses.vision.parameters
    mean, std = normalization(senses)
    least, most = (patches * v.patch_size**2 for patches in patch_limits(senses))
    values = {
        "clip.has_vision_encoder": GgufValue(_BOOL, value=True),
        "clip.vision.projection_dim": GgufValue(_U32, v.features),
        "clip.vision.image_size": GgufValue(_U32, math.isqrt(v.positions) * v.patch_size),
        "clip.vision.patch_size": GgufValue(_U32, v.patch_size),
        "clip.vision.embedding_length": GgufValue(_U32, v.hidden_size),
        "clip.vision.feed_forward_length": GgufValue(_U32, v.intermediate_size),
        "clip.vision.block_count": GgufValue(_U32, v.num_hidden_layers),
        "clip.vision.attention.head_count": GgufValue(_U32, v.num_attention_heads),
        "clip.vision.image_mean": GgufValue(_ARRAY, mean.tolist(), _F32),
        "clip.vision.image_std": GgufValue(_ARRAY, std.tolist(), _F32),
        "clip.projector_type": GgufValue(_STRING, "phi4"),
        "clip.vision.image_min_pixels": GgufValue(_U32, least),
        "clip.vision.image_max_pixels": GgufValue(_U32, most),
        "clip.use_gelu": GgufValue(_BOOL, value=True),
        "clip.vision.attention.layer_norm_epsilon": GgufValue(_F32, v.norm_epsilon),
    }
    return [*values.items()]
