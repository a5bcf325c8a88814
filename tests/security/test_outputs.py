"""Where an output goes: what comes there meanwhile stays, and whatever fails, the first reason is told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.conversion import outputs, renaming
from phiconv.conversion.manifest import MANIFEST
from phiconv.conversion.outputs import partial_files
from phiconv.errors import DiskFullError, OutputError, OutputExistsError
from phiconv_formats.shared.output import Label, OutputFile

MODEL = FIXTURES / "tiny-phi3"
FILES = [OutputFile(name, 1, ((0, b"1"),)) for name in ("main", "a", "sub/b")]
SAYS = "somebody else made this while it was written; give --force to replace it"
unix = pytest.mark.skipif(os.name == "nt", reason="limits and signals as on Unix")


def fail(number=errno.EIO):
    raise OSError(number, os.strerror(number))


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    """With hard links, and as on a file system that has none."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", lambda *_, **__: fail(errno.EPERM))


# --------------------------------------------------------------------------------------- what comes meanwhile


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.usefixtures("links")
def test_what_comes_while_bytes_get_to_the_disk_stays(tmp_path, monkeypatch, kind):
    final = tmp_path / "x.gguf"
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        if kind == "file":
            final.write_text("mine")
        elif kind == "link":
            final.symlink_to("nowhere")
        else:
            final.mkdir(exist_ok=True)

    monkeypatch.setattr(os, "fsync", fsync)
    with (
        pytest.raises(OutputExistsError),
        partial_files(tmp_path, [OutputFile("x.gguf", 1, ())], force=False),
    ):
        pass
    assert names(tmp_path) == ["x.gguf"]
    assert kind != "file" or final.read_text() == "mine"


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("name", ["main", "a", "sub/b"])
def test_what_comes_at_the_last_moment_stays(tmp_path, monkeypatch, name):
    """After the last look; of several files those that have their names already go again."""
    real = outputs.rename

    def late(old, new, *, replace):
        if new == tmp_path / name:
            new.write_text("mine")
        real(old, new, replace=replace)

    monkeypatch.setattr(outputs, "rename", late)
    with (
        pytest.raises(OutputExistsError, match=f"{name}: {SAYS}"),
        partial_files(tmp_path, FILES, force=False, label=Label("main")),
    ):
        pass
    assert (tmp_path / name).read_text() == "mine"
    assert {*names(tmp_path)} == {name, *(["sub"] if "/" in name else [])}
    monkeypatch.undo()
    with partial_files(tmp_path, FILES, force=True, label=Label("main")):
        pass
    assert (tmp_path / name).read_text() == "1"


def test_others_outputs_stay_listed(tmp_path, monkeypatch):
    with partial_files(tmp_path, [OutputFile(f"other{n}", 0, ()) for n in range(2)], force=False):
        pass
    listed = (tmp_path / MANIFEST).read_bytes()
    monkeypatch.setattr(outputs, "rename", lambda *_, **__: fail())
    with pytest.raises(OutputError), partial_files(tmp_path, FILES, force=False, label=Label("main")):
        pass
    assert (tmp_path / MANIFEST).read_bytes() == listed


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_new_folder_whose_name_is_taken_meanwhile(tmp_path, monkeypatch, kind):
    folder = tmp_path / "m"
    real = outputs.write_manifest

    def write(*arguments):
        real(*arguments)
        if kind == "file":
            folder.write_text("mine")
        else:
            (folder / "sub").mkdir(parents=True)

    monkeypatch.setattr(outputs, "write_manifest", write)
    with (
        pytest.raises(OutputExistsError, match=f"m: {SAYS}"),
        partial_files(folder, FILES, force=False, own_folder=True),
    ):
        pass
    assert names(tmp_path) == (["m"] if kind == "file" else ["m", "m/sub"])


def test_one_of_many_gets_the_name(tmp_path):
    """Threads at once, each with a file of its own: one has it, the others are told."""
    sources = [tmp_path / str(number) for number in range(16)]
    for source in sources:
        source.write_text(source.name)
    final, start, told = tmp_path / "x", threading.Barrier(len(sources)), []

    def work(source):
        start.wait()
        try:
            renaming.rename(source, final, replace=False)
        except FileExistsError:
            told.append(source)

    workers = [threading.Thread(target=work, args=(source,)) for source in sources]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(told) == 15
    assert final.read_text() not in {source.read_text() for source in told}
    assert all(source.exists() for source in told)


# ---------------------------------------------------------------------------------- the first reason is told


@pytest.mark.parametrize("own_folder", [False, True])
@pytest.mark.parametrize(
    "broken", [("os", "close"), ("Path", "unlink"), ("Path", "rmdir"), ("shutil", "rmtree")], ids=".".join
)
def test_a_cleaning_that_fails_hides_nothing(tmp_path, monkeypatch, broken, own_folder):
    place = {"os": os, "Path": Path, "shutil": shutil}[broken[0]]
    made = partial_files(tmp_path / "m", FILES, force=False, own_folder=own_folder)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="the disk is full"), made:  # noqa: PT012
        if broken[0] == "shutil":
            patch.setattr(place, broken[1], lambda *_, **options: options["ignore_errors"] or fail())
        else:
            patch.setattr(place, broken[1], lambda *_, **__: fail(errno.EROFS))
        fail(errno.ENOSPC)


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EIO, "m/sub/b: Input/output error"), (errno.ENOSPC, "m: the disk is full")],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate", "rename"])
@pytest.mark.parametrize("own_folder", [False, True])
def test_messages_name_the_destination(tmp_path, monkeypatch, number, says, call, own_folder):
    files = [OutputFile("sub/b", 1, ((0, b"1"),))]

    def fails(*_, **__):
        fail(number)

    if call == "rename":
        monkeypatch.setattr(outputs, "rename", fails)
        says = says.replace("/sub/b", "")
    else:
        monkeypatch.setattr(os, call, fails)
        if call == "posix_fallocate":  # which file systems may lack
            monkeypatch.setattr(os, "truncate", fails)
    with (
        pytest.raises(OutputError, match=says) as caught,
        partial_files(tmp_path / "m", files, force=False, own_folder=own_folder),
    ):
        pass
    assert isinstance(caught.value, DiskFullError) == (number == errno.ENOSPC)
    assert "partial" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("own_folder", [False, True])
def test_no_room_at_all(tmp_path, own_folder):
    files = [OutputFile("a", 1 << 60, ())]
    with (
        pytest.raises(DiskFullError, match=rf"{tmp_path.name}(/m)?: the output needs \d+"),
        partial_files(tmp_path / "m", files, force=False, own_folder=own_folder),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("filename", [b"/d/.x.0123abcd.partial", "/d/.x.01234567.partial", 7, None])
def test_names_of_any_kind(tmp_path, filename):
    error = OSError(errno.EIO, "Input/output error", filename)
    said = outputs.explain(error, tmp_path)
    assert said.path == (Path("/d/x") if isinstance(filename, str | bytes) else tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """As on a read-only file system, where cleaning up fails as well."""
    real = os.open

    def read_only(path, flags, *arguments, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        patch.setattr(Path, "unlink", lambda *_, **__: fail(errno.EROFS))
        with pytest.raises(OutputError, match=r"x.gguf: Read-only file system; check the destination$"):
            phiconv.convert(MODEL, tmp_path / "x.gguf", quant="q8")
    assert names(tmp_path) == []


# ---------------------------------------------------------------------------------------- many files at once


@unix
def test_many_parts_with_few_open_files(tmp_path):
    from safetensors.numpy import save_file

    count = 250
    save_file({f"w{n}": np.full((4, 64), n, np.float32) for n in range(count)}, tmp_path / "w.safetensors")
    (tmp_path / "out").mkdir()
    options = ("--plain", "--f32", "--split-max-size", "1100", "-q", "--jobs", "2")
    for force in ((), ("--force",)):
        command = [sys.executable, "-m", "phiconv", "w.safetensors", "out/o.gguf", *options, *force]
        line = ["bash", "-c", 'ulimit -n 64; exec "$@"', "-", *command]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    parts = sorted((tmp_path / "out").glob("o-*.gguf"))
    assert len(parts) == count
    assert len(names(tmp_path / "out")) == count + 2  # the list, and the receipt
    with_all = phiconv.open_model(parts[0])
    assert len(with_all.stored) == count


@unix
def test_many_shards_with_few_open_files(tmp_path):
    from safetensors.numpy import save_file

    count, folder = 300, tmp_path / "m"
    folder.mkdir()
    names_of = {f"w{n}": f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)}
    for n, (name, file) in enumerate(names_of.items()):
        save_file({name: np.full((2, 32), n, np.float32)}, folder / file)
    index = {"metadata": {"total_size": 256 * count}, "weight_map": names_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    command = [sys.executable, "-m", "phiconv", folder / "model.safetensors.index.json", "o.gguf"]
    options = ("--plain", "--f32", "-q", "--jobs", "2")
    line = ["bash", "-c", 'ulimit -n 64; exec "$@"', "-", *command, *options]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    stored = phiconv.open_model(tmp_path / "o.gguf").stored
    assert all((phiconv.read(stored[f"w{n}"]) == n).all() for n in (0, 150, 299))


@unix
def test_parts_that_are_not_open_belong_to_who_writes_them(tmp_path):
    """A lock on the first of a folder holds for all."""
    parts = [OutputFile(f"x-{n:02}-of-40.gguf", 1, ()) for n in range(40)]
    last = [parts[-1]]
    options = {"force": True, "label": Label("x.gguf")}
    with partial_files(tmp_path, parts, **options) as made:
        before = names(tmp_path)
        with pytest.raises(OutputError, match="another phiconv"), partial_files(tmp_path, last, force=True):
            pass
        assert names(tmp_path) == before
        made[last[0].name].write(0, b"7")
    assert (tmp_path / last[0].name).read_bytes() == b"7"
    left = [tmp_path / f".{part.name}.0123abcd.partial" for part in parts]
    for path in left:
        path.touch()
    with partial_files(tmp_path, last, force=True):
        pass
    assert [path for path in left if not path.exists()] == [left[-1]]
