"""Features of pictures and sounds are those of transformers; what is made ready for an encoder, too."""

from __future__ import annotations

import numpy as np
import pytest

from make_multimodal import picture, sound
from phiconv.conversion.source import open_model
from phiconv.forward.encoders import features, place_ids
from phiconv.forward.sounds import sound_features
from phiconv.perception.pictures import prepare
from phiconv.perception.sounds import log_mel
from references import open_reference, relative_l2

PICTURES = {"wide": (200, 430), "tall": (610, 150), "square": (300, 300), "large": (700, 900)}
SOUNDS = {"short": 32077, "long": 42 * 16000 + 55}
SEED = 7


@pytest.fixture(scope="module")
def kept():
    return open_reference("references/pictures.npz")


@pytest.fixture(scope="module")
def opened(make_multimodal, tmp_path_factory):
    """Models by kind."""
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: open_model(make_multimodal(folder / kind, kind, seed=SEED))
        for kind in ("phi3v", "phi4-multimodal", "phi4-siglip")
    }


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.parametrize("kind", ["phi3v", "phi4-multimodal", "phi4-siglip"])
def test_pictures(opened, kept, kind, case):
    senses = opened[kind].senses
    ready = prepare(senses, picture(SEED, *PICTURES[case]))
    found = features(senses.vision, ready)
    assert relative_l2(found[::9], kept[f"{kind}/{case}/features_every_9"]) < 2e-6
    if f"{kind}/{case}/grid" in kept:
        assert [n // 16 for n in ready.pixels.shape[2:]] == kept[f"{kind}/{case}/grid"].tolist()
        return
    pixels = kept[f"{kind}/{case}/pixels_every_21"]
    assert np.abs(ready.pixels[..., ::21, ::21] - pixels[: len(ready.pixels)]).max() < 2e-6
    if ready.mask is not None:
        assert (ready.mask == kept[f"{kind}/{case}/mask"]).all()


@pytest.mark.parametrize("case", SOUNDS)
def test_sounds(opened, kept, case):
    hearing = opened["phi4-multimodal"].senses.hearing
    ready = log_mel(sound(SEED, SOUNDS[case]))
    assert relative_l2(ready[::31], kept[f"phi4-multimodal/{case}/log_mel_every_31"]) < 1e-6
    for beside in ("speech", "vision"):
        found = sound_features(hearing, ready, beside=beside)
        assert relative_l2(found[::7], kept[f"phi4-multimodal/{case}/{beside}_every_7"]) < 2e-6


HUB_NAMES = (
    ("global_img_feature_extensor", "glb_GN"),
    ("sub_img_feature_extensor", "sub_GN"),
    ("img_projection_up", "img_projection.0"),
    ("img_projection_down", "img_projection.2"),
    ("gate_up_proj", "net.0.linear"),
    ("down_proj_for_speech", "audio_projection.speech.2"),
    ("up_proj_for_speech", "audio_projection.speech.0"),
    ("down_proj_for_vision_speech", "audio_projection.vision.2"),
    ("up_proj_for_vision_speech", "audio_projection.vision.0"),
    ("down_proj", "net.2"),
    ("self_attn.o_proj", "self_attn.linear_out"),
    ("self_attn.q_proj", "self_attn.linear_q"),
    ("self_attn.k_proj", "self_attn.linear_k"),
    ("self_attn.v_proj", "self_attn.linear_v"),
)


def test_the_hubs_names_are_those_of_the_same_weights(make_multimodal, tmp_path):
    ours, hub = (
        open_model(make_multimodal(tmp_path / kind, kind, seed=SEED)).senses
        for kind in ("phi4-multimodal", "phi4mm")
    )

    def renamed(name):
        if "audio_embed" in name or "img_processor" not in name:
            for old, new in HUB_NAMES:
                name = name.replace(old, new)
        return name

    for own, other in ((ours.vision, hub.vision), (ours.hearing, hub.hearing)):
        assert own.parameters == other.parameters
        assert {renamed(name) for name in own.stored} == {*other.stored}
        assert {r: t.shape for r, t in own.tensors.items()} == {r: t.shape for r, t in other.tensors.items()}
        named = {id(t.runs[0].source): n for n, t in own.stored.items()}
        theirs = {id(t.runs[0].source): n for n, t in other.stored.items()}
        for role, tensor in own.tensors.items():
            source, twin = tensor.runs[0].source, other.tensors[role].runs[0].source
            if id(source) in named:  # a convolution is a view
                assert renamed(named[id(source)]) == theirs[id(twin)]


def test_places_are_spread_over_the_table():
    shown = np.zeros((32, 32), np.bool_)
    shown[:16, :8] = True
    ids = place_ids(shown, 32).reshape(32, 32)
    assert ids[0, :8].tolist() == list(range(0, 32, 4))
    assert ids[:16, 0].tolist() == list(range(0, 1024, 64))
    assert not ids[16:].any()
    assert not ids[:, 8:].any()
