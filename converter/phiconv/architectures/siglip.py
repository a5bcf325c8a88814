"""SigLIP's encoders: Phi-4-multimodal's, in crops, and SigLIP 2's of Phi-4-reasoning-vision, as a whole.

From ``modeling_phi4_multimodal.py`` of transformers 5.24, the code in microsoft/Phi-4-reasoning-vision-15B,
and https://arxiv.org/abs/2502.14786 (NaFlex: pictures in their own proportions).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.architectures.encoders import Tower, count_layers, layers, project, sizes
from phiconv.forward.encoder_ops import vision
from phiconv.ir.senses import Vision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures.config import Config
    from phiconv.forward.encoder_ops import EncoderOps, V
    from phiconv.ir import Tensor

__all__ = ["SIGLIP", "SIGLIP2", "SIGLIP_OF_TRANSFORMERS"]

_HEAD_DIM = 72


def _common(tower: Tower, config: Config, stored: Mapping[str, Tensor], features: int) -> Vision:
    """What both have in common; sizes are those of the tensors."""
    hidden, inner = sizes(tower, stored)
    section = config.section("vision_config")
    heads = max(hidden // _HEAD_DIM, 1)
    if section is not None:
        heads = section.integer("num_attention_heads", default=heads)
        for key, found in (("hidden_size", hidden), ("intermediate_size", inner)):
            if section.integer(key, default=found or 1) != found:
                raise section.error(key, f"the tensors have {found}")
        count = count_layers(tower, stored)
        if section.integer("num_hidden_layers", default=count or 1) != count:
            raise section.error("num_hidden_layers", f"the checkpoint has {count}")
    if not hidden or hidden % heads:
        raise config.error("num_attention_heads", f"{heads} does not divide the encoder's width of {hidden}")
    return Vision(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=count_layers(tower, stored) - 1,
        num_attention_heads=heads,
        patch_size=14,
        crop_size=448,
        positions=32 * 32,
        features=features,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
    )


def _whole(tower: Tower, config: Config, stored: Mapping[str, Tensor], features: int) -> Vision:
    config.choice("mm_projector_type", ("mlp2x_gelu",), "mlp2x_gelu")
    common = _common(tower, config, stored, features)
    return replace(common, patch_size=16, crop_size=None, positions=16 * 16, channels_last=True)


def _crops_tower(ops: EncoderOps[V], v: Vision) -> V:
    x = ops.patches(vision("patch_embedding"), v)
    x = layers(ops, ops.positions(x, vision("position_embedding"), "buckets"), v)
    return ops.merge(x, "mean")


def _crops_arranged(ops: EncoderOps[V], x: V, v: Vision) -> V:  # noqa: ARG001 - a stage's arguments
    return ops.arrange(x, vision("row_end"), vision("separator"))


def _whole_tower(ops: EncoderOps[V], v: Vision) -> V:
    x = ops.patches(vision("patch_embedding"), v)
    return layers(ops, ops.positions(x, vision("position_embedding"), "resized"), v)


def _whole_arranged(ops: EncoderOps[V], x: V, v: Vision) -> V:  # noqa: ARG001
    return x


_IMAGE = "model.embed_tokens_extend.image_embed."
_TRUNK = f"{_IMAGE}img_processor."
_EMBEDDINGS = {
    "patch_embedding": f"{_TRUNK}embeddings.patch_embedding",
    "position_embedding": f"{_TRUNK}embeddings.position_embedding",
}

SIGLIP = Tower(
    root=f"{_TRUNK}encoder.layers",
    trunk=_TRUNK,
    names=_EMBEDDINGS
    | {
        "separator": f"{_IMAGE}glb_GN",
        "row_end": f"{_IMAGE}sub_GN",
        "projection_in": f"{_IMAGE}img_projection.0",
        "projection_out": f"{_IMAGE}img_projection.2",
    },
    parse=_common,
    tower=_crops_tower,
    arrange=_crops_arranged,
    project=project,
)
"""Phi-4-multimodal's, under the names on the hub."""

SIGLIP_OF_TRANSFORMERS = replace(
    SIGLIP,
    names=_EMBEDDINGS
    | {
        "separator": f"{_IMAGE}global_img_feature_extensor",
        "row_end": f"{_IMAGE}sub_img_feature_extensor",
        "projection_in": f"{_IMAGE}img_projection_up",
        "projection_out": f"{_IMAGE}img_projection_down",
    },
)
"""The same under the names that transformers gives it."""

_VISION_TOWER = "model.vision_tower.vision_tower.vision_model."

SIGLIP2 = Tower(
    root=f"{_VISION_TOWER}encoder.layers",
    trunk=_VISION_TOWER,
    names={
        "patch_embedding": f"{_VISION_TOWER}embeddings.patch_embedding",
        "position_embedding": f"{_VISION_TOWER}embeddings.position_embedding",
        "projection_in": "model.mm_projector.0",
        "projection_out": "model.mm_projector.2",
    },
    parse=_whole,
    tower=_whole_tower,
    arrange=_whole_arranged,
    project=project,
)
"""Phi-4-reasoning-vision's."""
