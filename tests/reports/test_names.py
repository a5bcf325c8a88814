"""Files and folders of any name: bytes that are no UTF-8, long names, characters that mean something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError, OutputError

TINY = FIXTURES / "tiny-phi3"
TARGETS = ("gguf", "mlx", "onnx", "openvino", "safetensors")

NAMES = {
    "bytes": os.fsdecode(b"bad\xff\xfe"),
    "line feed": "a\nb\x1b[31m",
    "quotes": "100%s {x} 'q' \"d\" $(x)",
    "pattern": "a[1]*?",
    "joiner": "\u0645\u06cc\u200c\u062e",
    "long": "\u6f22" * 83 + "xyz",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file systems that take any bytes")


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def name(request):
    return request.param


def command(folder, *arguments):
    line = [sys.executable, "-m", "phiconv", *map(os.fspath, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(line, cwd=folder, capture_output=True, check=False, timeout=60, env=environment)


def test_a_source_of_that_name(tmp_path, name):
    source = tmp_path / name
    shutil.copytree(TINY, source)
    config = json.loads((source / "config.json").read_text())
    config.pop("_name_or_path", None)
    (source / "config.json").write_text(json.dumps(config))
    for target in TARGETS:
        result = phiconv.convert(source, tmp_path / target, to=target)
        assert all(path.exists() for path in result.files)
        for path in result.files:
            if path.suffix in {".md", ".json", ".jinja"}:
                assert path.read_bytes().decode().encode() == path.read_bytes()
        opened = phiconv.open_model(result.files[0] if target == "gguf" else tmp_path / target)
        assert opened.architecture == "phi3"
        title = opened.metadata["general.name"].value if target == "gguf" else ""
        assert "\n" not in title
        title.encode()


def test_a_folder_of_that_name_as_the_destination(tmp_path, name):
    phiconv.convert(TINY, tmp_path / name, to="openvino")
    phiconv.convert(TINY, tmp_path / name, to="mlx", force=True)
    assert phiconv.open_model(tmp_path / name).format == "mlx"


@pytest.mark.parametrize(
    ("suffix", "split"), [(".gguf", None), (".gguf", 3_000_000), (".onnx", None), (".xml", None)]
)
def test_a_file_of_that_name(tmp_path, name, suffix, split):
    target = tmp_path / os.fsdecode(os.fsencode(name)[: 255 - len(suffix)])
    target = target.with_name(target.name + suffix)
    options = {"quant": "q8", "split_max_size": split}
    too_long = len(os.fsencode(target.name)) + {".onnx": 5}.get(suffix, 15 if split else 0) > 255
    no_text = (
        suffix == ".onnx" and not target.name.isprintable() and "\n" not in name and "\u200c" not in name
    )
    if too_long or no_text:
        says = "a name of 2.. bytes, and the file system takes 255" if too_long else "is not UTF-8"
        with pytest.raises(OutputError, match=says) as caught:
            phiconv.convert(TINY, target, **options)
        assert str(caught.value).isprintable()
        assert [*tmp_path.iterdir()] == []
        return
    result = phiconv.convert(TINY, target, **options)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(path.exists() for path in result.files)
    assert phiconv.open_model(result.files[0]).stored
    phiconv.convert(TINY, target, **options, force=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", [NAMES["bytes"], NAMES["line feed"]])
def test_what_is_printed(tmp_path, name):
    shutil.copytree(TINY, tmp_path / name)
    for arguments in (
        ["plan", name, "o.gguf"],
        ["inspect", "--no-tensors", name],
        ["plan", TINY, name + ".gguf"],
    ):
        done = command(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert all(line.isprintable() for line in done.stdout.decode().split("\n"))
    done = command(tmp_path, name, name + ".gguf", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)["files"][0]) == os.fsencode(name) + b".gguf"
    done = command(tmp_path, name, name + ".gguf")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


@pytest.mark.parametrize("length", [256, 300, 5000])
def test_names_that_nobody_can_have(tmp_path, length):
    long = "y" * length
    for target in (long + ".gguf", f"{long}/x.gguf"):
        with pytest.raises(OutputError, match="and the file system takes 255; choose a shorter name"):
            phiconv.plan(TINY, tmp_path / target)
    with pytest.raises(InputError, match="cannot be opened: File name too long"):
        phiconv.open_model(tmp_path / long)
    with pytest.raises(OutputError, match="and the file system takes 255; choose a shorter name"):
        phiconv.plan(TINY, tmp_path / long, to="mlx")


@pytest.mark.parametrize("name", ["OUT.GGUF", "Out.Gguf", "OUT.ONNX", "OUT.XML", "Out.Xml"])
def test_case_never_matters(tmp_path, name):
    """The file has the name that was asked for."""
    target = tmp_path / name
    result = phiconv.convert(TINY, target)
    assert result.files[0] == target
    assert result.plan.target == {"G": "gguf", "O": "onnx", "X": "openvino"}[name[4].upper()]
    assert phiconv.open_model(target).stored
    with pytest.raises(phiconv.OutputExistsError):
        phiconv.convert(TINY, target)
    with pytest.raises(phiconv.UsageError, match="a name that says"):
        phiconv.plan(TINY, target, to="onnx" if "gguf" in name.lower() else "gguf")
    with pytest.raises(phiconv.UsageError, match="writes a folder"):
        phiconv.plan(TINY, tmp_path / "M.SafeTensors", to="safetensors")


def test_an_importance_matrix_of_an_odd_name(tmp_path):
    odd = os.fsdecode(b"i\xff.gguf")
    phiconv.calibrate(TINY, list(range(64)), tmp_path / odd, context=32, dataset=os.fsdecode(b"t\xff.txt"))
    made = phiconv.convert(TINY, tmp_path / "o.gguf", quant="q4", imatrix=tmp_path / odd)
    metadata = phiconv.open_model(made.files[0]).metadata
    assert metadata["quantize.imatrix.file"].value == "i\ufffd.gguf"
    assert metadata["quantize.imatrix.dataset"].value == "t\ufffd.txt"
