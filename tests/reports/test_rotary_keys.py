"""Rotary keys of both styles in one config.json: they mean what transformers makes of them, or are refused.

The table of what transformers makes of them is fixtures/rotary_keys.json.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.architectures import find
from phiconv.architectures.config import Config
from phiconv.errors import ConfigError

TABLE = json.loads((FIXTURES / "rotary_keys.json").read_text(encoding="utf-8"))
ROTARY = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
TARGETS = ["mlx", "onnx", "openvino", "safetensors", "gguf"]
IDS = np.arange(3, 15)[None]


def name_of(row):
    return f"{row['kind']}-{TABLE.index(row)}"


def parse(config):
    config = Config(config)
    return find(config).parse(config).rope


@pytest.fixture
def config_of(make_models):
    def make(row):
        kept = {k: v for k, v in make_models.CONFIGS[row["kind"]].items() if k not in ROTARY}
        return kept | row["keys"]

    return make


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_the_table_of_transformers(config_of, row):
    if "refused" in row:
        with pytest.raises(ConfigError) as caught:
            parse(config_of(row))
        assert all(key in str(caught.value) for key in row["refused"])
        return
    rope = parse(config_of(row))
    for length, expected in ((16, row["short"]), (3000, row["long"])):
        long = rope.is_long(length)
        assert np.allclose(rope.inverse_frequencies(long=long), expected["inv_freq"], rtol=3e-7, atol=0)
        assert rope.mscale(long=long) == pytest.approx(expected["scale"], abs=2e-6)


LINEAR = {"type": "linear", "factor": 2.0}
LINEAR_NEW = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
ORIGINAL = "original_max_position_embeddings"
FACTORS = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [1 + i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", **FACTORS}
MSCALES = {"short_mscale": 1.25, "long_mscale": 1.25}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    ORIGINAL: 256,
}

# What is written for these must mean the same, in either style.
WRITTEN = {
    "llama-two-thetas": {"rope_theta": 5e4, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
    "llama-empty-parameters": {"rope_parameters": {}, "rope_scaling": LINEAR, "rope_theta": 5e4},
    "llama-empty-scaling": {"rope_parameters": LINEAR_NEW, "rope_scaling": {}},
    "llama-both": {"rope_parameters": LINEAR_NEW, "rope_scaling": LINEAR, "rope_theta": 5e4},
    "llama-theta-in-scaling": {"rope_scaling": {**LINEAR, "rope_theta": 7e4}, "rope_theta": 5e4},
    "llama-outer-theta": {"rope_theta": 5e4, "rope_parameters": LLAMA3},
    "phi3-theta-in-scaling": {
        "rope_scaling": {"type": "longrope", **FACTORS, "rope_theta": 3e4},
        "rope_theta": 5e4,
        ORIGINAL: 512,
    },
    "phi3-attention-factor": {"rope_parameters": {**LONGROPE, "attention_factor": 1.5}, ORIGINAL: 512},
    "phi3-factor": {"rope_parameters": {**LONGROPE, "factor": 16.0}, ORIGINAL: 512, "rope_theta": 5e4},
    "phi-two-parts": {
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25},
    },
    "phimoe-inside-only": {"rope_parameters": {**LONGROPE, **MSCALES, ORIGINAL: 512}},
    "phimoe-no-theta": {},
    "qwen2-two-thetas": {"rope_theta": 5e4, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
}


@pytest.fixture
def source_of(make_model, tmp_path):
    def make(name):
        folder = make_model(tmp_path / "model", name.partition("-")[0], seed=3)
        config = json.loads((folder / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in ROTARY}
        (folder / "config.json").write_text(json.dumps(kept | WRITTEN[name]))
        return folder

    return make


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_means_the_same(source_of, tmp_path, name, target):
    source, out = phiconv.open_model(source_of(name)), tmp_path / ("o.gguf" if target == "gguf" else "out")
    phiconv.convert(source, out, to=target, quant="f32")
    written = phiconv.open_model(out)
    expected = phiconv.logits(source, IDS)
    error = np.linalg.norm(phiconv.logits(written, IDS) - expected)
    assert error <= (1e-6 * np.linalg.norm(expected) if target == "gguf" else 0)
    if target != "gguf":
        assert written.hyperparameters.rope == source.hyperparameters.rope
        config = json.loads((out / "config.json").read_text())
        for section in (config.get("rope_scaling") or {}, config.get("rope_parameters") or {}):
            for key in ("rope_theta", "partial_rotary_factor"):
                assert section.get(key, config.get(key)) == config.get(key, section.get(key))


def test_the_folder_for_transformers_has_one_style(source_of, tmp_path):
    phiconv.convert(source_of("llama-both"), tmp_path / "out", to="safetensors")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]) == (5e4, {"rope_type": "linear", "factor": 2.0})


def test_short_factors_are_in_both_styles(source_of, tmp_path):
    choices = phiconv.Choices(short_context=True)
    phiconv.convert(source_of("phi3-factor"), tmp_path / "out", to="mlx", quant="f32", choices=choices)
    rope = phiconv.open_model(tmp_path / "out").hyperparameters.rope
    assert rope.long_factor == rope.short_factor == tuple(FACTORS["short_factor"])


def test_whatever_transformers_refuses_is_refused():
    assert [row for row in TABLE if "error" in row and "refused" not in row] == []
    assert sum("refused" not in row for row in TABLE) > 60
