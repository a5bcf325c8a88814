"""Whole folders have the bytes that llm-compressor and GPTQModel write, as golden_server.json has them."""

from __future__ import annotations

import json

import pytest

import make_golden_server as peers
import phiconv
from paths import FIXTURES
from phiconv.recipes import Choices

GOLDEN = json.loads((FIXTURES / "golden_server.json").read_text())
COMPRESSED = GOLDEN["compressed-tensors"]
RUNTIME = Choices(match_runtime=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {model: peers.make_source(root, model) for model in peers.MODELS}


@pytest.mark.parametrize(
    ("model", "recipe"), [(model, recipe) for model in peers.MODELS for recipe in peers.recipes_for(model)]
)
def test_compressed_tensors(sources, tmp_path, model, recipe):
    phiconv.convert(sources[model], tmp_path / "o", to="compressed-tensors", quant=recipe, choices=RUNTIME)
    assert peers.digest(peers.tensors_of(tmp_path / "o")) == COMPRESSED[model][recipe]


@pytest.mark.parametrize(
    ("method", "model", "recipe"),
    [
        (method, model, recipe)
        for method, recipes in (("gptq", peers.GPTQ), ("awq", peers.AWQ))
        for model in peers.GPTQ_MODELS
        for recipe in recipes
    ],
)
def test_gptqmodel(sources, tmp_path, method, model, recipe):
    phiconv.convert(sources[model], tmp_path / "o", to=method, quant=recipe, choices=RUNTIME)
    found = peers.quantized_arrays(peers.tensors_of(tmp_path / "o"))
    assert peers.digest(found) == GOLDEN["gptq"][method][model][recipe]
