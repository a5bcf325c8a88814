"""Folders for mlx-vlm: models that see, and back again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import phiconv
from make_multimodal import picture
from phiconv.cli import main
from phiconv.errors import UnsupportedModelError
from phiconv.forward.encoders import features
from phiconv.perception.pictures import prepare
from phiconv_formats.mlx.vision import hub_name, runtime_name
from phiconv_formats.shared.safetensors import open_safetensors
from references import relative_l2

KINDS = {"phi3v": "phi3_v", "phi4-siglip": "phi4-siglip"}


@pytest.fixture(scope="module", params=KINDS)
def source(request, make_multimodal, tmp_path_factory):
    return make_multimodal(tmp_path_factory.mktemp("m") / request.param, request.param, seed=7)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("o") / "out"
    return phiconv.convert(source, folder, to="mlx", quant="4bit-g32"), folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_folder_is_the_whole_model(source, written):
    done, folder = written
    config, own = config_of(folder), config_of(source)
    assert config["model_type"] == KINDS[source.name]
    assert config["architectures"] == own["architectures"]
    assert {*own} - {*config} == {"auto_map"}
    assert json.loads((folder / "preprocessor_config.json").read_text()) == json.loads(
        (source / "preprocessor_config.json").read_text()
    )
    assert "mlx_vlm.generate" in (folder / "README.md").read_text()
    assert sum("--text-only" in note for note in done.notes) == 1
    assert not any("only the text part" in note for note in done.notes)
    if source.name == "phi3v":
        assert config["rope_scaling"]["type"] == "su"
    else:
        assert config["text_config"]["num_hidden_layers"] == config["num_hidden_layers"]


def test_plan_is_exact(source, written):
    done, folder = written
    plan = phiconv.plan(source, folder, to="mlx", quant="4bit-g32")
    assert [(f.name, f.size) for f in plan.package.files] == [(p.name, p.stat().st_size) for p in done.files]


def test_names_are_those_of_the_hub_or_of_the_runtime(source, written):
    kind, stored = KINDS[source.name], {*open_safetensors(source / "model.safetensors").tensors}
    wanted = {name for name in stored if ".vision_model.head." not in name}
    names = {*open_safetensors(written[1] / "model.safetensors").tensors}
    made = {hub_name(kind, name) for name in names if not name.endswith((".scales", ".biases"))}
    assert made - {"lm_head.weight"} == wanted - {"lm_head.weight"}
    assert all(hub_name(kind, runtime_name(kind, name)) == name for name in stored)
    if kind == "phi4-siglip":
        starts = ("language_model.", "vision_tower.vision_tower.", "mm_projector.linear_")
        assert all(name.startswith(starts) for name in names)


def types_of(folder):
    model = phiconv.open_model(folder)
    return {str(role): t.encoding.name for role, t in model.senses.vision.tensors.items()}


def test_types(source, written, tmp_path):
    types = types_of(written[1])
    floats = {types[f"vision.{name}.weight"] for name in ("position_embedding", "patch_embedding")}
    assert floats == {"bf16"}
    phiconv.convert(
        source, tmp_path / "out", to="mlx", quant="q4", choices=phiconv.Choices(match_runtime=True)
    )
    assert {*types_of(tmp_path / "out").values()} == {"bf16"}
    if source.name == "phi3v":  # the others' rows, 144 and 304, are no groups of 64
        assert types["layers.0.vision.attn_q.weight"] == "mlx_8bit_g64_bf16"


def test_it_sees_when_it_is_opened_again(source, written, tmp_path):
    original, model = phiconv.open_model(source), phiconv.open_model(written[1])
    assert model.hyperparameters == original.hyperparameters
    seen = prepare(model.senses, picture(1, 200, 120))
    made, wanted = (features(m.senses.vision, seen) for m in (model, original))
    assert relative_l2(made, wanted) < 0.03
    copied = phiconv.convert(written[1], tmp_path / "again", to="mlx").files
    weights = [
        next(p for p in files if p.name == "model.safetensors") for files in (copied, written[0].files)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    if source.name == "phi4-siglip":
        phiconv.convert(written[1], tmp_path / "out.gguf")
        assert (tmp_path / "mmproj-out.gguf").exists()


def test_mlx_vlm_has_colours_last(make_multimodal, tmp_path):
    source = make_multimodal(tmp_path / "m", "phi3v")
    phiconv.convert(source, tmp_path / "out", to="mlx", quant="f32")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("patch_embedding.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name].transpose(0, 2, 3, 1))
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "mlx"})
    assert phiconv.compare(source, tmp_path / "out").total.square_error == 0
    assert phiconv.plan(tmp_path / "out", tmp_path / "again", to="mlx").tensors


def test_encoders_are_compared_where_both_have_one(source, written, tmp_path):
    found = phiconv.compare(source, written[1])
    assert not found.without_encoders
    names = {tensor.name: tensor.difference.relative_rmse for tensor in found.tensors}
    assert names["vision.position_embedding.weight"] == 0 < names["layers.0.attn_output.weight"]
    alone = phiconv.Choices(text_only=True)
    phiconv.convert(source, tmp_path / "out", to="mlx", quant="q4", choices=alone)
    told = CliRunner().invoke(main, ["compare", str(source), str(tmp_path / "out")])
    assert "what one of them sees with is not compared" in told.stdout
    assert phiconv.compare(source, tmp_path / "out").without_encoders


def test_text_alone_is_for_mlx_lm(source, tmp_path):
    choices = phiconv.Choices(text_only=True)
    done = phiconv.convert(source, tmp_path / "out", to="mlx", quant="q4", choices=choices)
    assert config_of(tmp_path / "out")["model_type"] == "phi3"
    assert sum("only the text part" in note for note in done.notes) == 1
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


def test_longrope_is_refused_where_mlx_vlm_has_none(make_multimodal, tmp_path):
    scaling = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "type": "longrope"}
    keys = {"rope_scaling": scaling, "original_max_position_embeddings": 512}
    source = make_multimodal(tmp_path / "m", "phi4-siglip", **keys)
    with pytest.raises(UnsupportedModelError, match="mlx-vlm does not support longrope"):
        phiconv.plan(source, tmp_path / "out", to="mlx")
