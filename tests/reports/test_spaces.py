"""ONNX Runtime GenAI is told not to cut SentencePiece texts at spaces, and nobody else is."""

from __future__ import annotations

import json
import shutil

import pytest

import phiconv
from paths import FIXTURES
from phiconv_formats.tokenizers.writer import tokenizer_files


def folder_of(tmp_path, source, scheme=None, *, split=False):
    """A copy of a fixture, perhaps with the library's Metaspace."""
    folder = shutil.copytree(FIXTURES / source, tmp_path / "source")
    if scheme is not None:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["normalizer"] = None
        data["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": split,
        }
        path.write_text(json.dumps(data), encoding="utf-8")
        (folder / "tokenizer.model").unlink()
    return folder


@pytest.mark.parametrize(
    ("source", "scheme", "split", "told"),
    [
        ("tiny-phi3", None, False, True),
        ("tiny-phi3", "first", False, True),
        ("tiny-phi3", "always", False, True),
        ("tiny-phi3", "never", True, False),
        ("tiny-phi4mini", None, False, False),
    ],
)
def test_the_class_stands_where_only_this_runtime_reads_it(source, scheme, split, told, tmp_path):
    folder = folder_of(tmp_path, source, scheme, split=split)
    phiconv.convert(folder, tmp_path / "model", to="onnx", quant="f32")
    module = tmp_path / "model" / "tokenizer_module.json"
    assert module.exists() == told
    if told:
        assert json.loads(module.read_text()) == {"tokenizer_class": "GemmaTokenizer"}
    before, after = (
        json.loads((f / "tokenizer_config.json").read_text()) for f in (folder, tmp_path / "model")
    )
    assert after == before | {"model_max_length": after["model_max_length"]}
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("to", ["mlx", "openvino", "safetensors"])
def test_other_targets_have_no_such_file(to, tmp_path):
    first = tmp_path / "onnx"
    phiconv.convert(FIXTURES / "tiny-phi3", first, to="onnx", quant="f32")
    phiconv.convert(first, tmp_path / "model", to=to, quant="f32")
    assert not (tmp_path / "model" / "tokenizer_module.json").exists()


def test_made_files_are_told_too(tmp_path):
    tokenizer = phiconv.open_model(FIXTURES / "tiny-phi3").tokenizer
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "Phi-3.gguf", quant="f32")
    phiconv.convert(tmp_path / "Phi-3.gguf", tmp_path / "model", to="onnx", quant="f32")
    assert (tmp_path / "model" / "tokenizer_module.json").exists()
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    made = json.loads(tokenizer_files(tokenizer)["tokenizer_config.json"])
    assert settings["tokenizer_class"] == made["tokenizer_class"] == "LlamaTokenizer"
