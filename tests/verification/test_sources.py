"""Receipts of every kind of source: what was read is in them, and the output is made again by them."""

from __future__ import annotations

import hashlib
import json

import pytest

import phiconv
from in_toto import faults, read_as_published
from quantized_folder import FOLDERS, complete

QUANTIZED = [
    "awq-g32", "bnb-int8", "bnb-nf4-double", "fp8-96", "gptq-3-sym-g64", "gptq-4-experts", "gptq-4-order",
    "modelopt-int8-smooth", "modelopt-nvfp4", "mxfp4", "torchao-fp8", "torchao-int4-asym",
]  # fmt: skip
"""Folders that others' tools have quantized, of every tool."""

WRITTEN = {
    "x.gguf": {"quant": "q8"},
    "split.gguf": {"quant": "q4", "split_max_size": 50_000},
    "x.tflite": {"quant": "q8"},
    "x.litertlm": {"quant": "q4"},
    "x.onnx": {"quant": "q4"},
    "openvino": {"to": "openvino", "quant": "q8"},
    "mlx": {"to": "mlx", "quant": "q4"},
    "onnx": {"to": "onnx", "quant": "q4"},
    "safetensors": {"to": "safetensors"},
    "js": {"to": "onnx", "quant": "q4", "choices": phiconv.Choices(layout="transformers.js")},
    "qnn": {"to": "onnx", "quant": "q4", "choices": phiconv.Choices(target="qnn")},
    "compressed-tensors": {"to": "compressed-tensors", "quant": "w8a8"},
}
"""What phiconv writes, and reads."""

PYTORCH = ["zip", "legacy", "nested", "shared", "sharded"]


def check(source, folder, weights, to="safetensors"):
    """Converts a source; its receipt must name it, and make it again.

    Args:
        source: A model of any kind.
        folder: Where the output goes.
        weights: Files that must have been read.
        to: What it becomes.
    """
    result = phiconv.convert(source, folder / "output", to=to, jobs=1)
    receipt = json.loads(result.receipt.read_bytes())
    assert faults(receipt) == []
    assert read_as_published(result.receipt.read_text()) in [receipt, None]
    root = source if source.is_dir() else source.parent
    read = {
        each["name"].removeprefix("source/"): each["digest"]["sha256"]
        for each in receipt["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert {path.relative_to(root).as_posix() for path in weights} <= read.keys()
    for name, digest in read.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest
    found = phiconv.verify(folder / "output", source=source, jobs=1)
    assert (found.outcome, found.rederived, found.findings, found.notes) == ("verified", True, (), ())
    changed = weights[-1]
    with changed.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    told = phiconv.verify(folder / "output", source=source, jobs=1)
    name = f"source/{changed.relative_to(root).as_posix()}"
    assert told.outcome == "differs"
    assert (name, "is another file than the receipt's") in [(each.file, each.what) for each in told.findings]


@pytest.mark.parametrize("name", QUANTIZED)
def test_folders_that_others_have_quantized(name, make_base, tmp_path):
    source = complete(name, make_base(tmp_path / "source", FOLDERS[name]["kind"]))
    check(source, tmp_path, [source / "model.safetensors"])


@pytest.mark.parametrize("form", PYTORCH)
def test_files_of_pytorch(form, make_pytorch, make_base, tmp_path):
    source = make_pytorch.make_checkpoint(make_base(tmp_path / "base"), tmp_path / "source", form)
    check(source, tmp_path, sorted(source.glob("*.bin")))


@pytest.mark.parametrize("name", WRITTEN)
def test_what_phiconv_has_written(name, make_base, tmp_path):
    place = tmp_path / "source"
    place.mkdir()
    made = phiconv.convert(make_base(tmp_path / "base"), place / name, receipt=False, **WRITTEN[name])
    largest = max(made.files, key=lambda path: path.stat().st_size)
    check(place / name if (place / name).exists() else made.files[0], tmp_path, [largest])
