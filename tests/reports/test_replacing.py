"""An output that replaces another is not mixed with it; what a killed run leaves is found by the next one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import MalformedFileError, OutputError, OutputExistsError

OLD, NEW = FIXTURES / "tiny-phi3", FIXTURES / "tiny-phi4mini"
MANIFEST = ".phiconv.json"

# What is asked for, what a source of the result is, and in how many files weights are that can be split.
TARGETS = {
    "mlx": ("", "", "3M"),
    "safetensors": ("", "", "3M"),
    "onnx": ("", "", None),
    "openvino": ("", "", None),
    "transformers.js": ("", "", None),
    "gguf": ("x.gguf", "x-00001-of-0000{}.gguf", "3M"),
    "onnx file": ("x.onnx", "x.onnx", None),
    "openvino file": ("x.xml", "x.xml", None),
}


def convert(source, folder, target, *, size=None, force=False):
    name = TARGETS[target][0]
    split = int(size.replace("M", "000000")) if size else None
    options = {} if name else {"to": target}
    if target == "transformers.js":
        options = {"to": "onnx", "choices": phiconv.Choices(layout=target)}
    quant = "f16" if target == "safetensors" else "q8"
    return phiconv.convert(source, folder / name, quant=quant, split_max_size=split, force=force, **options)


def files(folder):
    """Which files a folder has, by name: not what they hold, but which they are."""
    found = {str(p.relative_to(folder)): p.stat().st_ino for p in folder.rglob("*") if p.is_file()}
    return {n: i for n, i in found.items() if n != MANIFEST and not n.endswith(".partial")}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_whole(source):
    """Whether it opens, since nothing says that it is only a part."""
    try:
        return bool(phiconv.open_model(source).stored)
    except MalformedFileError:
        return False


def snapshot(folder, to):
    """The folder as a kill would leave it now."""
    shutil.copytree(folder, to, copy_function=os.link)


@pytest.mark.skipif(not hasattr(os, "link"), reason="no hard links here")
@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_at_any_moment_of_replacing(tmp_path, target, monkeypatch):
    """Each moment is the older output, the new one, or told apart; the next run makes it the new one."""
    folder, moments = tmp_path / "m", []
    folder.mkdir()
    size = TARGETS[target][2]
    convert(OLD, folder, target, size=size)
    old = files(folder)

    def watched(real):
        def call(path, *arguments, **options):
            if not (str(path).endswith(".partial") and not arguments):  # which is cleaning up
                moments.append(tmp_path / f"at{len(moments)}")
                snapshot(folder, moments[-1])
            return real(path, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched(os.replace))
        patch.setattr(Path, "unlink", watched(Path.unlink))
        convert(NEW, folder, target, force=True)
    new = files(folder)
    assert len(moments) > len(new)
    told = 0
    main = TARGETS[target][1]
    for moment in moments:
        parts = sum(not name.endswith(".receipt.json") for name in old)
        source = moment / main.format(max(parts, 1)) if "{}" in main else moment / main
        there = files(moment)
        if there in (old, new) and is_whole(source):
            continue
        with pytest.raises(MalformedFileError, match=r"ended while it wrote this.*--force"):
            phiconv.open_model(source)
        told += 1
    assert told >= len(new)
    for moment in (moments[2], moments[len(moments) // 2], moments[-2]):
        with pytest.raises(OutputExistsError):
            convert(NEW, moment, target)
        convert(NEW, moment, target, force=True)
        assert contents(moment) == contents(folder)


OVER = (
    ("mlx", "openvino"),
    ("openvino", "onnx"),
    ("onnx", "safetensors"),
    ("safetensors", "mlx"),
    ("openvino", "mlx"),
)


@pytest.mark.parametrize(("first", "second"), OVER)
def test_one_format_over_another(tmp_path, first, second):
    convert(OLD, tmp_path / "m", first)
    with pytest.raises(OutputExistsError, match=f"not empty: an output for {first}"):
        convert(NEW, tmp_path / "m", second)
    made = convert(NEW, tmp_path / "m", second, force=True)
    assert {p.name for p in (*made.files, made.receipt)} == {*files(tmp_path / "m")}
    assert phiconv.open_model(tmp_path / "m").format == second


def test_a_model_of_somebody_else_is_not_mixed_with(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin", "config.json"):
        (folder / name).write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match=r"openvino_model.bin, openvino_model.xml; .*remove them"):
            convert(OLD, folder, "mlx", force=force)
    assert {p.read_text() for p in folder.iterdir()} == {"mine"}


def test_files_among_downloads(tmp_path):
    for name in ("holiday.jpg", "model.safetensors", "x-00001-of-00002.safetensors", "y-00001-of-00002.gguf"):
        (tmp_path / name).write_text("mine")
    convert(OLD, tmp_path, "gguf")
    convert(OLD, tmp_path, "openvino file")
    convert(OLD, tmp_path, "onnx file")
    convert(OLD, tmp_path, "onnx file", force=True)
    assert sum(p.read_bytes() == b"mine" for p in tmp_path.iterdir()) == 4


def test_parts_are_not_joined_into_their_own_name(tmp_path):
    convert(OLD, tmp_path, "gguf", size="3M")
    part = tmp_path / "x-00001-of-00003.gguf"
    before = files(tmp_path)
    with pytest.raises(OutputError, match="is the source; choose another name"):
        phiconv.convert(part, tmp_path / "x.gguf", force=True)
    assert files(tmp_path) == before
    phiconv.convert(part, tmp_path / "joined.gguf")


@pytest.mark.parametrize("name", ["x[1].gguf", "x*.gguf", "x?.gguf", "x.GGUF", "x y.Gguf"])
def test_parts_of_odd_names(tmp_path, name):
    target = tmp_path / name
    (tmp_path / "x1-00001-of-00002.gguf").write_text("mine")
    phiconv.convert(OLD, target, quant="q8", split_max_size=3_000_000)
    first = tmp_path / f"{name[:-5]}-00001-of-00003.gguf"
    assert phiconv.open_model(first).architecture == "phi3"
    result = phiconv.convert(OLD, target, quant="q8", force=True)
    assert {p.name for p in result.files} == {name}
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}.receipt.json", "x1-00001-of-00002.gguf"}


# ------------------------------------------------------------------------------------------- the real command

SLOW = """
import os, signal, sys, time
from phiconv.conversion import pipeline, rows
real, count = pipeline.convert_span, [0]
rows.SPAN = rows.TILE = 1 << 16
def slow(*arguments):
    count[0] += 1
    if count[0] == 20:
        print("half", flush=True)
        time.sleep(60)
    return real(*arguments)
pipeline.convert_span = slow
sys.argv[0] = "phiconv"
from phiconv.cli import main
main(sys.argv[1:])
"""

KILLED = """
import os, signal, sys
real, count = os.replace, [0]
def replace(*arguments):
    count[0] += 1
    if count[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
os.replace = replace
sys.argv[0] = "phiconv"
from phiconv.cli import main
main(sys.argv[1:])
"""


def command(*arguments):
    line = [sys.executable, "-m", "phiconv", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
@pytest.mark.parametrize("destination", ["o.gguf", "m", "there"])
def test_a_killed_command_and_one_beside_it(tmp_path, destination):
    target = tmp_path / destination
    if destination == "there":
        target.mkdir()
    options = [OLD, target, "--q8", *([] if target.suffix else ["--to", "mlx"])]
    slow = [sys.executable, "-c", SLOW, *map(str, options), "--jobs", "1", "-q"]
    with subprocess.Popen(slow, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            before = sorted(tmp_path.rglob("*"))
            beside = command(*options, "--force")
            assert beside.returncode == 1
            assert beside.stderr.endswith(
                "is writing this now; wait until it is done, or choose another name\n"
            )
            assert sorted(tmp_path.rglob("*")) == before
        finally:
            process.send_signal(signal.SIGKILL)
    assert [*tmp_path.rglob("*.partial")]
    again = command(*options)
    assert again.returncode == 0, again.stderr
    assert sum("left by a run that was killed" in line for line in again.stderr.splitlines()) == 1
    assert not [*tmp_path.rglob("*.partial")]
    assert phiconv.open_model(target).architecture == "phi3"
    assert "left by" not in command(*options, "--force").stderr


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_a_command_that_was_killed_while_it_replaced(tmp_path):
    target = tmp_path / "m"
    convert(OLD, target, "mlx", size="3M")
    killed = [sys.executable, "-c", KILLED, str(NEW), str(target), "--to", "mlx", "--q8", "--force", "-q"]
    assert subprocess.run(killed, check=False, timeout=60).returncode == -signal.SIGKILL
    opened = command("inspect", target)
    assert opened.returncode == 1
    assert "ended while it wrote this" in opened.stderr
    assert opened.stderr.count("\n") == 1
    assert command(NEW, target, "--to", "mlx", "--q8").returncode == 1
    again = command(NEW, target, "--to", "mlx", "--q8", "--force")
    assert again.returncode == 0, again.stderr
    assert "left by a run that was killed" in again.stderr
    convert(NEW, tmp_path / "fresh", "mlx")
    assert contents(target) == contents(tmp_path / "fresh")
