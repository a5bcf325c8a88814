"""Who reads a folder that another tool has quantized."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from phiconv_formats.huggingface.checkpoint import open_checkpoint
from phiconv_formats.huggingface.quantized import METHODS


@pytest.fixture
def folder(tmp_path, make_models):
    def make(quantization):
        target = make_models.make_model(tmp_path / "m", "phi3")
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
        return target

    return make


@pytest.mark.parametrize("method", ["some-method", "Some_Method"])
def test_the_named_method_takes_the_folder_over(folder, monkeypatch, method):
    given = {"quant_method": method, "bits": 4}

    def assemble(found, quantization):
        assert quantization == given
        assert "model.embed_tokens.weight" in found.stored
        return replace(found, format="other")

    monkeypatch.setitem(METHODS, "some-method", lambda: assemble)
    assert open_checkpoint(folder(given)).format == "other"


@pytest.mark.parametrize("quantization", [None, [], {}, {"quant_method": 3}, {"quant_method": "unheard-of"}])
def test_else_it_is_a_folder_like_any_other(folder, quantization):
    assert open_checkpoint(folder(quantization)).format == "safetensors"
