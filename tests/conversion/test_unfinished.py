"""An interrupted conversion to the best codes goes on after the last finished tensor."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import phiconv
from phiconv.conversion import effort, sequential
from phiconv.conversion.unfinished import scratch

BEST = phiconv.Choices(effort="best")
TARGETS = {"gguf": "o.gguf", "mlx": "m", "onnx": "n", "openvino": "v"}


@pytest.fixture(scope="module")
def source(model_folder, tmp_path_factory):
    """A model, and what was measured of it."""
    folder = model_folder("phi3")
    ids = np.random.default_rng(3).integers(70, 1000, 512)
    return folder, phiconv.calibrate(folder, ids, tmp_path_factory.mktemp("c") / "c", context=64, tokens=512)


@pytest.fixture
def prepared(monkeypatch):
    """The matrices of which it is found out what counts in them, as often as it is."""
    names, original = [], effort._metric

    def metric(tensor, *rest):
        names.append(tensor.label)
        return original(tensor, *rest)

    monkeypatch.setattr(effort, "_metric", metric)
    return names


def convert(source, out, *, stop=None, error=KeyboardInterrupt, **options):
    """Converts; an error ends it when so many steps are done."""
    steps = 0

    def progress(done, total, name):
        nonlocal steps
        steps += 1
        if steps == stop:
            raise error

    options = {"quant": "q4", **options}
    return phiconv.convert(
        source[0], out, choices=BEST, calibration=source[1], jobs=1, progress=progress, **options
    )


def outputs(path):
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("target", TARGETS)
def test_it_goes_on(tmp_path, source, prepared, target):
    out = tmp_path / TARGETS[target]
    (tmp_path / "whole").mkdir()
    expected = outputs(convert(source, tmp_path / "whole" / out.name, to=target).files[0].parent)
    whole = [*prepared]
    prepared.clear()
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, to=target, stop=8)
    assert not out.exists()
    kept = [*(tmp_path / f"{out.name}.unfinished").iterdir()]
    assert kept
    prepared.clear()
    made = convert(source, out, to=target)
    assert len(prepared) == len(whole) - len(kept)
    found = outputs(made.files[0].parent)
    assert {name: found[name] for name in expected} == expected
    assert [p.name for p in tmp_path.iterdir() if "unfinished" in p.name] == []


def test_only_for_the_same_conversion_and_only_whole(tmp_path, source, prepared):
    out = tmp_path / "o.gguf"
    expected = convert(source, out).files[0].read_bytes()
    count = len(prepared)
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, stop=8)
    kept = tmp_path / "o.gguf.unfinished"
    copy = shutil.copytree(kept, tmp_path / "copy")
    for damage in ("short", "changed", "other"):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(copy, kept)
        for path in kept.iterdir():
            data = bytearray(path.read_bytes())
            if damage == "short":
                path.write_bytes(data[:-1])
            elif damage == "changed":
                data[-1] ^= 1
                path.write_bytes(data)
        prepared.clear()
        other = {"quant": "Q4_1"} if damage == "other" else {}
        made = convert(source, out, force=True, **other).files[0].read_bytes()
        assert len(prepared) == count
        assert (made == expected) == (damage != "other")
        assert not kept.exists()


def test_errors_leave_nothing_and_a_full_disk_is_no_error(tmp_path, source, monkeypatch):
    out = tmp_path / "o.gguf"
    with pytest.raises(ZeroDivisionError):
        convert(source, out, stop=8, error=ZeroDivisionError)
    assert [*tmp_path.iterdir()] == []
    original = Path.mkdir

    def mkdir(self, *arguments, **options):
        if "unfinished" in self.name:
            raise OSError(28, "no space left")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert convert(source, out).files == (out,)


def test_nothing_is_kept_where_nothing_takes_long(tmp_path, source, monkeypatch):
    monkeypatch.setattr(sequential, "pays", lambda _: False)
    with pytest.raises(KeyboardInterrupt):
        phiconv.convert(source[0], tmp_path / "o.gguf", quant="q4", progress=_interrupt)
    assert [*tmp_path.iterdir()] == []


def _interrupt(done, total, name):
    raise KeyboardInterrupt


def test_what_a_killed_run_has_left_for_its_workers(tmp_path):
    beside = tmp_path / "o.gguf.unfinished"
    (beside / "scratch-0").mkdir(parents=True)
    (beside / "00001.rows").write_bytes(b"kept")
    with scratch(beside) as folder:
        assert {*beside.iterdir()} == {folder, beside / "00001.rows"}
    assert [*beside.iterdir()] == [beside / "00001.rows"]
    (beside / "00001.rows").unlink()
    with scratch(beside):
        pass
    assert not beside.exists()
