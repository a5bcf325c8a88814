"""Encoders whose tensors are not what they must be are refused by one line that names the tensor."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from make_models import write_safetensors
from phiconv.conversion.source import open_model
from phiconv.errors import InputError, PhiconvError, UsageError
from phiconv.perception.pictures import prepare

CLIP = "model.vision_embed_tokens.img_processor.vision_model."
IMAGE = "model.embed_tokens_extend.image_embed."
AUDIO = "model.embed_tokens_extend.audio_embed."

WRONG = [
    ("phi3v", f"{CLIP}embeddings.class_embedding", None),
    ("phi3v", f"{CLIP}encoder.layers.1.mlp.fc2.bias", None),
    ("phi3v", f"{CLIP}embeddings.patch_embedding.weight", (128, 3, 14, 15)),
    ("phi3v", f"{CLIP}embeddings.position_embedding.weight", (576, 128)),
    ("phi3v", "model.vision_embed_tokens.sub_GN", (1, 1, 512)),
    ("phi3v", "model.vision_embed_tokens.img_projection.0.weight", (64, 511)),
    ("phi3v", f"{CLIP}encoder.layers.0.self_attn.q_proj.weight", (128,)),
    ("phi3v", f"{CLIP}encoder.layers.0.mlp.fc1.weight", (128,)),
    ("phi3v", f"{CLIP}embeddings.another.weight", (4,)),
    ("phi4mm", f"{IMAGE}glb_GN", None),
    ("phi4mm", f"{AUDIO}encoder.embed.conv.5.weight", (64, 64, 3, 3)),
    ("phi4mm", f"{AUDIO}encoder.encoders.1.conv.glu.b2", None),
    ("phi4mm", f"{AUDIO}encoder.relative_attention_bias_layer.bias_values.weight", (999, 2)),
    ("phi4mm", f"{AUDIO}encoder.another", (3,)),
    ("phi4-siglip", "model.mm_projector.2.bias", (65,)),
    ("phi4-siglip", "model.vision_tower.vision_tower.vision_model.encoder.layers.1.layer_norm1.bias", None),
]


def changed(folder, name, shape):
    """The folder's weights with a tensor taken away, or of another shape, or one more."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            bits = np.frombuffer(raw, "<u2", (end - start) // 2, 8 + size + start).astype(np.uint32) << 16
            tensors[key] = bits.view(np.float32).reshape(entry["shape"])
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float32)
    write_safetensors(path, tensors, "BF16")


@pytest.mark.parametrize(("kind", "name", "shape"), WRONG)
def test_a_wrong_tensor_is_named(make_multimodal, tmp_path, kind, name, shape):
    folder = make_multimodal(tmp_path / "m", kind, seed=1)
    changed(folder, name, shape)
    with pytest.raises(InputError) as caught:
        open_model(folder)
    assert name in str(caught.value) or "image_dim_out" in str(caught.value) or "has" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_alone_needs_no_encoder(make_multimodal, tmp_path):
    folder = make_multimodal(tmp_path / "m", "phi3v", seed=1)
    changed(folder, f"{CLIP}embeddings.class_embedding", None)
    with pytest.raises(InputError, match="class_embedding"):
        phiconv.convert(folder, tmp_path / "a.gguf", quant="f32")
    phiconv.convert(folder, tmp_path / "a.gguf", quant="f32", choices=phiconv.Choices(text_only=True))


@pytest.mark.parametrize(
    "settings",
    [{"num_crops": 0}, {"num_crops": "4"}, {"num_crops": 1 << 40}, {"image_std": [0, 1, 1]}]
    + [{"image_mean": value} for value in ([1, 2], "abc", None, [float("nan")] * 3, [1e400] * 3, {})],
)
def test_settings_of_pictures_are_checked(make_multimodal, tmp_path, settings):
    folder = make_multimodal(tmp_path / "m", "phi3v", seed=1)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(PhiconvError):
        prepare(open_model(folder).senses, np.zeros((20, 30, 3), np.uint8))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4), (4, 4, 1)])
def test_what_is_no_picture_is_refused(make_multimodal, tmp_path, shape):
    model = open_model(make_multimodal(tmp_path / "m", "phi3v", seed=1))
    with pytest.raises(UsageError):
        prepare(model.senses, np.zeros(shape, np.uint8))
