"""Models that see as OpenVINO writes them: what is laid out and refused; no runtime is needed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError
from references import relative_l2

GRAPHS = ["language", "text_embeddings", "vision_embeddings", "vision_projection"]
NORMS = ("norm", "bias", "class_embedding", "patch_embedding", "position_embedding")


@pytest.fixture(scope="module")
def source(make_multimodal, tmp_path_factory):
    return make_multimodal(tmp_path_factory.mktemp("source") / "m", "phi3v-wide", seed=7)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("written") / "m"
    return phiconv.convert(source, output, to="openvino", quant="int4-asym-g32"), output


def test_folder_has_everything(source, written):
    done, output = written
    names = {path.name for path in done.files}
    assert {f"openvino_{n}_model.{end}" for n in GRAPHS for end in ("xml", "bin")} <= names
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "generation_config.json"} <= names
    assert not any("text part" in note for note in done.notes)
    sizes = {file.name: file.size for file in done.plan.package.files}
    assert sizes == {path.name: path.stat().st_size for path in done.files}
    config = json.loads((output / "config.json").read_text())
    assert config["model_type"] == "phi3_v"
    assert "auto_map" not in config
    stored = phiconv.open_model(source).senses.vision.stored
    for key, depth in (("sub_GN", 4), ("glb_GN", 3)):
        tensor = stored[f"model.vision_embed_tokens.{key}"]
        assert np.array(config[key]).shape == tensor.shape == (1,) * (depth - 1) + (4096,)
        np.testing.assert_array_equal(np.array(config[key], np.float32), phiconv.read(tensor))
    assert json.loads((output / "preprocessor_config.json").read_text())["num_crops"] == 4


def test_types(written):
    encodings = {t.name: t.encoding.name for t in written[0].plan.tensors}
    assert encodings["model.layers.0.mlp.down_proj.weight"] == "openvino_int4_asym_g32"
    assert encodings["model.embed_tokens.weight"].startswith("openvino_int8_asym")
    for name, encoding in encodings.items():
        if "vision" in name:
            plain = any(part in name for part in NORMS)
            assert encoding == "f32" if plain else encoding.startswith("openvino_int8_sym")


@pytest.mark.parametrize("kind", ["phi4mm", "phi4-multimodal"])
def test_phi_4_multimodal_sees_with_its_adapter(make_multimodal, tmp_path, kind):
    source = make_multimodal(tmp_path / "m", kind, seed=7)
    for lora, warned in (([], True), (["vision"], False), ([("vision", 0.5)], False), (["speech"], True)):
        plan = phiconv.plan(source, tmp_path / "out", to="openvino", quant="q4", lora=lora)
        notes = " ".join(plan.package.notes)
        assert ("give --lora vision" in notes) == warned
        assert "sounds: it is left out" in notes
        assert {t.name for t in plan.tensors} >= {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("kind", ["phi4mm", "phi4-multimodal"])
def test_phi_4_multimodal_comes_back(make_multimodal, tmp_path, kind):
    source, output = make_multimodal(tmp_path / "m", kind, seed=7), tmp_path / "out"
    phiconv.convert(source, output, to="openvino", quant="f32", lora=["vision"])
    config = json.loads((output / "config.json").read_text())
    assert (config["model_type"], np.shape(config["sub_GN"])) == ("phi4mm", (1, 1, 1, 144))
    again = phiconv.open_model(output)
    assert again.hyperparameters.tie_word_embeddings
    expected = phiconv.logits(phiconv.open_model(source, lora=["vision"]), [[5, 6, 7]])
    assert relative_l2(phiconv.logits(again, [[5, 6, 7]]), expected) < 1e-5


def test_settings_that_a_source_has_not(source, tmp_path):
    settings = source / "preprocessor_config.json"
    kept = settings.read_bytes()
    settings.unlink()
    try:
        phiconv.convert(source, tmp_path / "m", to="openvino", quant="q8")
    finally:
        settings.write_bytes(kept)
    made = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    assert made["num_crops"] == 4
    assert len(made["image_mean"]) == len(made["image_std"]) == 3


@pytest.mark.parametrize("alone", [True, False])
def test_the_text_part_alone(source, tmp_path, alone):
    output = tmp_path / ("m.xml" if alone else "m")
    choices = phiconv.Choices(text_only=not alone)
    done = phiconv.convert(source, output, to="openvino", quant="f32", choices=choices)
    assert any("only the text part" in note for note in done.notes)
    assert not any("vision" in path.name for path in done.files)


def test_the_text_part_comes_back(source, written, tmp_path):
    _, output = written
    model = phiconv.open_model(output)
    assert "only the text part" in model.left_out
    ids = [[5, 6, 7]]
    again = phiconv.convert(output, tmp_path / "again", to="openvino", quant="int4-asym-g32")
    assert any("only the text part" in note for note in again.notes)
    np.testing.assert_array_equal(phiconv.logits(tmp_path / "again", ids), phiconv.logits(output, ids))
    assert relative_l2(phiconv.logits(output, ids), phiconv.logits(source, ids)) < 0.3
    assert phiconv.open_model(output / "openvino_language_model.xml").tensors.keys() == model.tensors.keys()


def test_encoders_are_not_compared(source, written):
    shown = CliRunner().invoke(main, ["compare", str(source), str(written[1])]).output
    assert "what one of them sees with is not compared" in shown
    assert not phiconv.compare(FIXTURES / "tiny-phi3", FIXTURES / "tiny-phi3").without_encoders


def test_a_part_of_the_text_is_missing(written, tmp_path):
    for name in ("config.json", "openvino_language_model.xml", "openvino_language_model.bin"):
        (tmp_path / name).write_bytes((written[1] / name).read_bytes())
    with pytest.raises(MissingFileError, match=r"text_embeddings_model.xml: .* the embeddings"):
        phiconv.open_model(tmp_path)


def test_another_width_is_refused(make_multimodal, tmp_path):
    source = make_multimodal(tmp_path / "m", "phi3v", seed=7)
    with pytest.raises(UnsupportedModelError, match=r"1024 wide, and this one is 128; give --text-only"):
        phiconv.plan(source, tmp_path / "out", to="openvino", quant="f32")


def test_separators_must_be_numbers(make_multimodal, tmp_path):
    source = make_multimodal(tmp_path / "m", "phi3v-wide", seed=7)
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8:start])["model.vision_embed_tokens.sub_GN"]["data_offsets"]
    data[start + begin : start + begin + 2] = b"\xc0\x7f"  # bfloat16's NaN
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match="sub_GN: has a number that is NaN"):
        phiconv.plan(source, tmp_path / "out", to="openvino", quant="f32")


def test_the_types_of_an_encoder_are_not_chosen(source, tmp_path):
    told = CliRunner().invoke(
        main,
        ["plan", str(source), str(tmp_path / "m"), "--to", "openvino", "--q4", "--tensor-type", "fc1=int4"],
    )
    assert "only an encoder's tensors have such names" in told.output
    choices = phiconv.Choices(target_size=11_000_000)
    plan = phiconv.plan(source, tmp_path / "m", to="openvino", choices=choices)
    assert plan.size <= 11_000_000
    assert plan.mixture
    assert not any("vision" in pattern for pattern, _ in plan.mixture)
