"""Receipts: what is in them, for every target and kind of source; and outputs made again by them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

import phiconv
from in_toto import faults, read_as_published
from paths import FIXTURES, ROOT
from phiconv.conversion.receipt import CHOICES

MODEL = FIXTURES / "tiny-phi3"

TARGETS = {
    "x.gguf": {"quant": "q4"},
    "split.gguf": {"quant": "q8", "split_max_size": 50_000},
    "x.onnx": {"quant": "q4"},
    "x.xml": {"quant": "q8"},
    "x.litertlm": {"quant": "q8"},
    "x.tflite": {"quant": "q4"},
    **{name: {"to": name, "quant": "q4"} for name in ("mlx", "onnx", "openvino")},
    **{name: {"to": name} for name in ("safetensors", "compressed-tensors", "gptq", "awq")},
    "js": {"to": "onnx", "quant": "q4", "choices": phiconv.Choices(layout="transformers.js")},
    "qnn": {"to": "onnx", "quant": "q4", "choices": phiconv.Choices(target="qnn")},
}


@pytest.fixture(scope="module")
def small(model_folder):
    """A model of random weights, which takes no time."""
    return model_folder("phi3")


OF_GROUPS_OF_128 = {"openvino", "compressed-tensors", "gptq", "awq"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(result):
    return json.loads(result.receipt.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_one_and_is_made_again_by_it(name, small, tmp_path):
    options = TARGETS[name]
    model = MODEL if name in OF_GROUPS_OF_128 else small
    result = phiconv.convert(model, tmp_path / name, jobs=2, **options)
    receipt = read(result)
    assert faults(receipt) == []
    assert read_as_published(result.receipt.read_text()) in [receipt, None]
    assert {s["name"]: s["digest"]["sha256"] for s in receipt["subject"]} == {
        path.relative_to(result.plan.folder).as_posix(): sha256(path) for path in result.files
    }
    assert str(tmp_path) not in result.receipt.read_text()
    assert str(model.parent) not in result.receipt.read_text()
    found = phiconv.verify(tmp_path / name, source=model, jobs=1)
    assert (found.outcome, found.rederived, found.findings) == ("verified", True, ())
    assert found.notes == ()
    a_changed_byte_is_found_in_every_file(result, tmp_path / name, model)


def a_changed_byte_is_found_in_every_file(result, output, model):
    """A weight by its tensor and, with the source, by its row; whatever else by its file."""
    tensors = read(result)["predicate"]["runDetails"]["byproducts"]
    largest = max(tensors, key=lambda t: t["annotations"]["segments"][0]["length"])
    part = largest["annotations"]["segments"][0]
    for path in result.files:
        name = path.relative_to(result.plan.folder).as_posix()
        place = part["offset"] + part["length"] // 2 if name == part["file"] else path.stat().st_size // 2
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    found = phiconv.verify(output, source=model, jobs=1)
    assert found.outcome == "differs"
    assert {path.relative_to(result.plan.folder).as_posix() for path in result.files} <= {
        finding.file for finding in found.findings
    }
    places = [finding.at for finding in found.findings if finding.file == part["file"]]
    assert any(at.startswith(f"tensor {largest['name']}, bytes") for at in places)
    assert any(at.startswith("tensor ") and ", row " in at and ", byte " in at for at in places)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("phi3v", "m", {"to": "onnx", "quant": "int4"}),
        ("phi3v", "m", {"to": "mlx", "quant": "8bit"}),
        ("phi3v-wide", "m", {"to": "openvino", "quant": "int8-sym"}),
        ("phi4-siglip", "x.gguf", {"quant": "q8"}),
        ("phi4-siglip", "x.gguf", {"quant": "q8", "choices": phiconv.Choices(text_only=True)}),
    ],
)
def test_models_that_see_and_what_is_left_without_that(make_multimodal, tmp_path, kind, name, options):
    model = make_multimodal(tmp_path / "source", kind, seed=1)
    phiconv.convert(model, tmp_path / name, **options)
    found = phiconv.verify(tmp_path / name, source=model, jobs=1)
    assert (found.outcome, found.rederived, found.findings) == ("verified", True, ())


def test_every_choice_is_written_down_or_is_a_file():
    files = {"importance", "calibration", "ranges"}
    assert {field.name for field in dataclasses.fields(phiconv.Choices)} - files == CHOICES.keys()


def test_it_says_what_every_tensor_is_and_where(tmp_path):
    result = phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q8")
    receipt, data = read(result), (tmp_path / "x.gguf").read_bytes()
    tensors = receipt["predicate"]["runDetails"]["byproducts"]
    assert [t["name"] for t in tensors] == [t.name for t in result.plan.tensors]
    for tensor in tensors:
        (part,) = tensor["annotations"]["segments"]
        held = data[part["offset"] : part["offset"] + part["length"]]
        assert hashlib.sha256(held).hexdigest() == tensor["digest"]["sha256"]
    fused = next(t for t in tensors if t["name"] == "blk.0.ffn_up.weight")["annotations"]
    assert fused["from"] == ["source/model.safetensors: model.layers.0.mlp.gate_up_proj.weight"]
    assert (fused["action"], fused["encoding"], fused["stored"]) == ("quantized", "q8_0", "bf16")
    sources = receipt["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"source/config.json", "source/model.safetensors"} <= {s["name"] for s in sources}
    for source in sources:
        path = MODEL / source["name"].removeprefix("source/")
        assert source["digest"]["sha256"] == sha256(path)


def test_the_same_receipt_from_any_number_of_threads_and_at_any_time(tmp_path, monkeypatch):
    for jobs in (1, 3):
        phiconv.convert(MODEL, tmp_path / str(jobs) / "x", to="onnx", quant="q4", jobs=jobs)
    one, three = ((tmp_path / str(jobs) / "x/receipt.json").read_bytes() for jobs in (1, 3))
    assert one == three
    assert b"metadata" not in one
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    result = phiconv.convert(MODEL, tmp_path / "dated.gguf", quant="q8")
    assert read(result)["predicate"]["runDetails"]["metadata"] == {"finishedOn": "2023-11-14T22:13:20Z"}
    assert faults(read(result)) == []
    assert phiconv.verify(tmp_path / "dated.gguf", source=MODEL).outcome == "verified"


def test_a_plan_knows_its_size_and_the_model_has_its_own(tmp_path):
    planned = phiconv.plan(MODEL, tmp_path / "x.gguf", quant="q8")
    result = phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q8")
    assert planned.receipt.file().size == result.receipt.stat().st_size
    assert planned.size == result.size == (tmp_path / "x.gguf").stat().st_size
    without = phiconv.convert(MODEL, tmp_path / "none.gguf", quant="q8", receipt=False)
    assert without.receipt is None
    assert not (tmp_path / "none.gguf.receipt.json").exists()
    assert (tmp_path / "none.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()
    assert phiconv.verify(tmp_path / "none.gguf").outcome == "unknown"


def test_no_file_keeps_the_receipt_of_another(tmp_path):
    path, receipt = tmp_path / "x.gguf", tmp_path / "x.gguf.receipt.json"
    phiconv.convert(MODEL, path, quant="q8")
    phiconv.convert(MODEL, path, quant="q4", force=True)
    assert json.loads(receipt.read_bytes())["subject"][0]["digest"]["sha256"] == sha256(path)
    phiconv.convert(MODEL, path, quant="q8", force=True, receipt=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    phiconv.convert(MODEL, path, quant="q8", force=True, split_max_size=2_000_000)
    phiconv.convert(MODEL, path, quant="q8", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gguf", "x.gguf.receipt.json"]
    path.unlink()
    phiconv.convert(MODEL, path, quant="q8", receipt=False)  # a receipt of nothing is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    path.unlink()
    receipt.write_bytes(b"mine")
    with pytest.raises(phiconv.OutputExistsError, match=r"x\.gguf\.receipt\.json: exists already"):
        phiconv.convert(MODEL, path, quant="q8")


def test_kinds_of_sources(tmp_path):
    """An output is a source, too, and so on; each is made again in a chain of receipts."""
    chain = [MODEL, tmp_path / "a.gguf", tmp_path / "mlx", tmp_path / "onnx", tmp_path / "ov"]
    for source, target in zip(chain, [*chain[1:], tmp_path / "st"], strict=True):
        options = (
            {}
            if target.suffix
            else {"to": {"ov": "openvino", "st": "safetensors"}.get(target.name, target.name)}
        )
        options |= {"quant": "q8"} if target.name == "a.gguf" else {}
        result = phiconv.convert(source, target, **options)
        assert faults(read(result)) == []
        found = phiconv.verify(target, source=source)
        assert (found.outcome, found.findings) == ("verified", ())


def test_a_source_may_be_anywhere_under_any_name(tmp_path):
    phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q8")
    shutil.copytree(MODEL, tmp_path / "elsewhere")
    found = phiconv.verify(tmp_path / "x.gguf", source=tmp_path / "elsewhere")
    assert (found.outcome, found.findings) == ("verified", ())


def test_other_files_are_needed_too(small, tmp_path):
    adapter, source = FIXTURES / "adapters/plain", small
    result = phiconv.convert(source, tmp_path / "x.gguf", quant="q8", lora=[(adapter, 0.5)])
    receipt = read(result)
    assert faults(receipt) == []
    assert receipt["predicate"]["buildDefinition"]["externalParameters"]["lora"] == [0.5]
    without = phiconv.verify(tmp_path / "x.gguf", source=source)
    assert without.outcome == "unknown"
    assert "give --lora" in without.why
    assert phiconv.verify(tmp_path / "x.gguf", source=source, lora=[adapter]).outcome == "verified"


def test_another_process_on_the_command_line(tmp_path):
    phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q4", jobs=3)
    command = [
        sys.executable,
        "-m",
        "phiconv",
        "verify",
        tmp_path / "x.gguf",
        "--source",
        MODEL,
        "--jobs",
        "1",
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rederived"] is True


def test_in_toto_reads_them(tmp_path):
    """The schemas that the projects publish have all that is in a receipt, and refuse what they have not."""
    pytest.importorskip("in_toto_attestation")
    result = phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q8")
    assert read_as_published(result.receipt.read_text()) == read(result)
    more = read(result)
    more["predicate"]["runDetails"]["builder"]["size"] = 1
    with pytest.raises(ValueError, match="size"):
        read_as_published(json.dumps(more))


@pytest.mark.skipif("NUMPY_2_0" not in os.environ, reason="NUMPY_2_0 names no Python")
def test_another_numpy_has_made_it(small, tmp_path):
    """An output that was made with the oldest NumPy is made again with this one, byte for byte."""
    wanted = {"x.gguf": "gguf", "onnx": "onnx", "mlx": "mlx", "x.litertlm": "litert"}
    lines = [
        f"phiconv.convert({str(small)!r}, {str(tmp_path / name)!r}, to={to!r}, quant='q4')"
        for name, to in wanted.items()
    ]
    path = os.pathsep.join(str(ROOT / root) for root in ("converter", "formats"))
    command = [os.environ["NUMPY_2_0"], "-W", "ignore", "-c", "\n".join(["import phiconv", *lines])]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)
    for name in wanted:
        found = phiconv.verify(tmp_path / name, source=small, jobs=1)
        assert (found.outcome, found.rederived, found.findings) == ("verified", True, ())
        assert found.notes[0].startswith("made with numpy 2.0.")
