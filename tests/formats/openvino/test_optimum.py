"""OpenVINO folders that optimum-intel wrote, and what OpenVINO computes with them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.ir.rope import Rope

EXPORTS = sorted((FIXTURES / "openvino").glob("*.npz"))


@pytest.fixture
def unpacked(tmp_path):
    """The folder of an export, and OpenVINO's logits of some ids."""

    def unpack(path):
        with np.load(path) as content:
            for name in ("openvino_model.xml", "openvino_model.bin", "config.json"):
                (tmp_path / name).write_bytes(content[name].tobytes())
            return tmp_path, content["input_ids"].astype(int), content["logits"]

    return unpack


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_logits_of_an_export(unpacked, monkeypatch, path):
    if path.stem.endswith("-f16"):  # optimum stores the frequencies in float16, too
        exact = Rope.inverse_frequencies
        rounded = lambda rope, *, long: tuple(map(float, np.float16(exact(rope, long=long))))  # noqa: E731
        monkeypatch.setattr(Rope, "inverse_frequencies", rounded)
    folder, ids, logits = unpacked(path)
    model = phiconv.open_model(folder)
    assert model.format == "openvino"
    encodings = {t.encoding.name.split("_g")[0] for t in model.tensors.values()}
    assert encodings <= set(ENCODINGS[path.stem]) | {"f16", "f32", "bf16"}
    assert encodings >= set(ENCODINGS[path.stem])
    assert np.abs(phiconv.logits(folder, ids) - logits).max() / logits.std() < 1e-5


ENCODINGS = {
    "phi-int4": ["openvino_int4_asym", "openvino_int8_asym"],
    "phi3-f32": [],
    "phi3-int4-sym-mixed": ["openvino_int4_sym", "openvino_int8_asym"],
    "phi3-nf4": ["openvino_nf4", "openvino_int8_asym"],
    "phi3-mxfp4": ["openvino_mxfp4", "openvino_mxfp8"],
    "phi4mini-int8": ["openvino_int8_asym"],
    "phimoe-f16": [],
    "phimoe-f32": [],
    "phimoe-int4-all": ["openvino_int4_asym"],
}


def test_there_is_an_export_of_each():
    assert {path.stem for path in EXPORTS} == ENCODINGS.keys()


RECIPES = {
    "phi-int4": ("phi-fp16", "int4-asym-g32", {}),
    "phi3-int4-sym-mixed": ("phi3-gqa", "int4-sym-g32", {"ratio": 0.6}),
    "phi3-nf4": ("phi3-gqa", "nf4-g32", {}),
    "phi3-mxfp4": ("phi3-gqa", "mxfp4", {}),
    "phi4mini-int8": ("phi4mini-transformers5", "int8-asym", {}),
    "phimoe-int4-all": ("phimoe-stacked", "int4-asym-g32", {"all_layers": True}),
}
SMALL = {"num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def cut_tokenizer(folder):
    """Leaves as many tokens as the small models have."""
    for name in ("tokenizer.model", "added_tokens.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text("{}")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    size = SMALL["vocab_size"]
    vocabulary = {token: n for token, n in content["model"]["vocab"].items() if n < size}
    content["model"] |= {"vocab": vocabulary, "merges": []}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_model_gets_the_same_weights(unpacked, tmp_path, make_model, name):
    """All matrices, the two ends among them: which type each gets, its codes, scales and zero points."""
    kind, quant, options = RECIPES[name]
    folder = unpacked(next(path for path in EXPORTS if path.stem == name))[0]
    source = make_model(tmp_path / "source", kind, seed=7, **SMALL)
    cut_tokenizer(source)
    choices = phiconv.Choices(match_runtime=True, **options)
    phiconv.convert(source, folder / "ours.xml", quant=quant, choices=choices)
    ours, theirs = (phiconv.open_model(path).tensors for path in (folder / "ours.xml", folder))
    for role, tensor in theirs.items():
        a, b = (t.read(0, t.rows) for t in (ours[role], tensor))
        if not isinstance(b, ir.Blocks):
            continue
        assert ours[role].encoding == tensor.encoding, role
        for part in ("codes", "scales", "zero_points"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part), f"{role} {part}")
