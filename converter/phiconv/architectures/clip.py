"""The encoder of Phi-3-vision and Phi-3.5-vision: CLIP's, with the "HD transform".

From ``image_embedding_phi3_v.py`` of microsoft/Phi-3.5-vision-instruct, which has CLIP's sizes in its code
and not in config.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.encoders import Tower, count_layers, layers, project, sizes
from phiconv.forward.encoder_ops import vision
from phiconv.ir.senses import Vision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures.config import Config
    from phiconv.forward.encoder_ops import EncoderOps, V
    from phiconv.ir import Tensor

__all__ = ["CLIP"]

_HEAD_DIM = 64
_PATCH, _CROP = 14, 336


def _parse(tower: Tower, config: Config, stored: Mapping[str, Tensor], features: int) -> Vision:
    for key, where, usual in (
        ("name", "img_processor", "clip_vision_model"),
        ("hd_transform_order", "embd_layer", "sub_glb"),
        ("projection_cls", "embd_layer", "mlp"),
    ):
        if (found := config.section(where)) is not None:
            found.choice(key, (usual,), usual)
    section = config.section("img_processor")
    hidden, inner = sizes(tower, stored)
    stated = hidden if section is None else section.integer("image_dim_out", default=hidden or 1024)
    heads = max(hidden // _HEAD_DIM, 1)
    if stated != hidden or hidden % heads:
        message = f"{stated}, where the tensors are {hidden} wide, and a head has {_HEAD_DIM}"
        raise config.error("image_dim_out", message)
    return Vision(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=count_layers(tower, stored) - 1,
        num_attention_heads=heads,
        patch_size=_PATCH,
        crop_size=_CROP,
        positions=(_CROP // _PATCH) ** 2 + 1,
        features=features,
        norm_epsilon=1e-5,
        activation="quick_gelu",
        merged=2,
    )


def _tower(ops: EncoderOps[V], v: Vision) -> V:
    x = ops.with_class(ops.patches(vision("patch_embedding"), v), vision("class_embedding"))
    x = ops.positions(x, vision("position_embedding"), "table")
    x = ops.layer_norm(x, vision("pre_norm"), v.norm_epsilon)
    return ops.without_class(layers(ops, x, v))


def _arrange(ops: EncoderOps[V], x: V, v: Vision) -> V:  # noqa: ARG001 - a stage's arguments
    return ops.arrange(ops.merge(x, "stack"), vision("row_end"), vision("separator"))


_ROOT = "model.vision_embed_tokens."
_TRUNK = f"{_ROOT}img_processor.vision_model."

CLIP = Tower(
    root=f"{_TRUNK}encoder.layers",
    trunk=_TRUNK,
    names={
        "class_embedding": f"{_TRUNK}embeddings.class_embedding",
        "patch_embedding": f"{_TRUNK}embeddings.patch_embedding",
        "position_embedding": f"{_TRUNK}embeddings.position_embedding",
        "pre_norm": f"{_TRUNK}pre_layrnorm",  # spelled so
        "separator": f"{_ROOT}glb_GN",
        "row_end": f"{_ROOT}sub_GN",
        "projection_in": f"{_ROOT}img_projection.0",
        "projection_out": f"{_ROOT}img_projection.2",
    },
    parse=_parse,
    tower=_tower,
    arrange=_arrange,
    project=project,
    biases=False,
)
