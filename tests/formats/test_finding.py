"""Which format a path is of, and what is said where none fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from phiconv.api import open_model
from phiconv.errors import InputError, MissingFileError, UsageError
from phiconv_formats import find_target


@pytest.mark.parametrize(
    ("name", "to", "found"),
    [
        ("x.gguf", None, "gguf"),
        ("x.onnx", "onnx", "onnx"),
        ("x.xml", None, "openvino"),
        ("x.litertlm", None, "litert"),
        ("X.TFLITE", "tflite", "litert"),
        ("Phi-3.5-mini", "openvino", "openvino"),
        ("x.safetensors.d", "safetensors", "safetensors"),
    ],
)
def test_targets(name, to, found):
    assert find_target(Path(name), to).name == found


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("x.xml", "onnx", "--to onnx, and a name that says openvino"),
        ("x.tflite", "gguf", "--to gguf, and a name that says litert"),
        ("x.gguf", "mlx", "--to mlx, and a name that says gguf"),
        ("x.safetensors", "safetensors", "--to safetensors writes a folder"),
        ("x.bin", "pytorch", "is read, and not written"),
    ],
)
def test_targets_that_are_refused(name, to, says):
    with pytest.raises(UsageError, match=says):
        find_target(Path(name), to)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ((), "the download may be incomplete"),
        (("b.onnx", "a.onnx", "a.onnx.data"), "to read a.onnx, give that file"),
        (("model.xml", "model.bin"), "to read model.xml, give that file"),
        (("x.gguf", "training_args.bin"), "to read x.gguf, give that file"),
    ],
)
def test_folders_without_weights_of_their_own(tmp_path, files, hint):
    for name in ("config.json", *files):
        (tmp_path / name).write_text("{}")
    with pytest.raises(MissingFileError, match=r"no \.safetensors file in this folder") as caught:
        open_model(tmp_path)
    assert caught.value.hint == hint


def test_weights_of_openvino(tmp_path):
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"weights of an OpenVINO model; give model\.xml"):
        open_model(tmp_path / "model.bin")
