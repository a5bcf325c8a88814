"""What a download leaves in place of a file is named, whatever file it stands for."""

from __future__ import annotations

import shutil

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import MalformedFileError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4972489328\n"
PAGES = (
    "<!DOCTYPE html><title>Access denied</title>",
    "\n\n<!doctype HTML>\n<html lang=en>",
    "<html><head></head></html>",
)


@pytest.fixture
def copy(tmp_path):
    """A model folder with something else in place of a file."""

    def make(name, text, source="tiny-phi3"):
        folder = tmp_path / "m"
        shutil.copytree(FIXTURES / source, folder)
        (folder / name).write_text(text)
        return folder

    return make


def refusal(path):
    with pytest.raises(MalformedFileError) as caught:
        phiconv.open_model(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ],
)
def test_a_pointer_in_a_folder(copy, name):
    folder = copy(name, POINTER)
    if name in ("tokenizer.model", "tokenizer.json"):  # one of them is read
        other = {"tokenizer.model": "tokenizer.json", "tokenizer.json": "tokenizer.model"}[name]
        (folder / other).unlink()
    message = refusal(folder)
    assert f"{name}: a pointer of git-lfs, and not the file itself; run 'git lfs pull'" in message


@pytest.mark.parametrize(
    "name", ["x.gguf", "x.safetensors", "x.bin", "x.pth", "x.onnx", "x.xml", "x.safetensors.index.json"]
)
@pytest.mark.parametrize("text", [POINTER, *PAGES])
def test_a_file_of_any_format(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    message = refusal(tmp_path / name)
    assert f"{name}: a pointer of git-lfs" in message or f"{name}: a web page, and not the file" in message


def test_the_weights_of_an_openvino_model(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="openvino", quant="q4")
    (tmp_path / "m" / "openvino_model.bin").write_text(POINTER)
    assert "openvino_model.bin: a pointer of git-lfs" in refusal(tmp_path / "m")


def test_a_text_that_only_mentions_it(tmp_path):
    (tmp_path / "x.gguf").write_text(f"GGUX {POINTER}")
    assert "not a GGUF file" in refusal(tmp_path / "x.gguf")
