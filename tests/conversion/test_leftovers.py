"""Temporary files: those of a run that was killed go, those of a run that is under way stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phiconv.conversion import leftovers
from phiconv.conversion.names import inner_name, partial_name, shortened
from phiconv.conversion.outputs import partial_files
from phiconv.errors import OutputError
from phiconv_formats.shared.output import OutputFile

FILE = OutputFile("x.gguf", 1, ((0, b"1"),))
PARTS = ("x-[0-9]-of-[0-9].gguf",)


def write(folder, files=(FILE,), **options):
    said = []
    with partial_files(folder, files, force=False, note=said.append, **options):
        pass
    return said


@pytest.mark.parametrize("name", ["x.gguf", "x-1-of-3.gguf", ".phiconv.json"])
def test_a_leftover_goes_with_a_word_about_it(tmp_path, name):
    left = tmp_path / f".{name}.0123abcd.partial"
    left.write_text("half")
    (tmp_path / ".y.gguf.0123abcd.partial").write_text("half of another")
    assert write(tmp_path, stale=PARTS) == [f"removed {left.name}, left by a run that was killed"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".y.gguf.0123abcd.partial", "x.gguf"]
    assert write(tmp_path, [OutputFile("z", 0, ())]) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_was_left(tmp_path, there):
    left = tmp_path / ".m.0123abcd.partial"
    left.mkdir()
    (left / "x.gguf").write_text("half")
    (left / ".a.0123abcd.partial").write_text("half")
    if there:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / ".model.0123abcd.partial").write_text("half")
    said = write(tmp_path / "m", own_folder=True)
    names = [".model.0123abcd.partial", left.name] if there else [left.name]
    assert said == [f"removed {name}, left by a run that was killed" for name in names]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [".phiconv.json", "x.gguf"]


def test_what_only_looks_like_one_stays(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".x.gguf.0123abcd.partial").symlink_to("victim")
    (tmp_path / ".x.gguf.00000000.partial").mkdir()
    (tmp_path / ".x.gguf.1.partial").write_text("mine")
    (tmp_path / ".m.0123abcd.partial" / "sub").mkdir(parents=True)
    assert write(tmp_path) == []
    assert write(tmp_path / "m", own_folder=True) == []
    assert len([*tmp_path.iterdir()]) == 7
    assert (tmp_path / ".m.0123abcd.partial" / "sub").is_dir()


@pytest.mark.skipif(not leftovers.LOCKS, reason="no locks on files here")
@pytest.mark.parametrize("own_folder", [False, True])
def test_a_file_that_is_being_written_stays(tmp_path, own_folder):
    folder = tmp_path / "m"
    options = {"force": True, "own_folder": own_folder}
    with partial_files(folder, [FILE], **options):
        before = sorted(tmp_path.rglob("*"))
        with (
            pytest.raises(OutputError, match=r"another phiconv is writing this now; wait until it is done"),
            partial_files(folder, [FILE], **options),
        ):
            pass
        assert sorted(tmp_path.rglob("*")) == before
        if not own_folder:
            write(folder, [OutputFile("y.gguf", 1, ())])
    assert (folder / "x.gguf").read_bytes() == b"1"


@pytest.mark.skipif(not leftovers.LOCKS, reason="no locks on files here")
@pytest.mark.parametrize(("function", "force"), [("replace", True), ("link", False)])
def test_a_lock_holds_until_the_file_has_its_name(tmp_path, monkeypatch, function, force):
    seen = []
    real = getattr(os, function)

    def watched(old, new, **options):
        with pytest.raises(OutputError, match="another phiconv"):
            leftovers.clear_leftovers(tmp_path, lambda _: True)
        seen.append(new)
        real(old, new, **options)

    monkeypatch.setattr(os, function, watched)
    with partial_files(tmp_path, [FILE], force=force):
        pass
    assert seen == [tmp_path / "x.gguf"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "hold", lambda _: None)
    left = tmp_path / ".x.gguf.0123abcd.partial"
    left.write_text("half")
    assert write(tmp_path) == []
    assert left.exists()


def test_without_locks_an_open_file_cannot_be_renamed(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(leftovers, "LOCKS", False)
    left = tmp_path / ".x.gguf.0123abcd.partial"
    left.write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
        with pytest.raises(OutputError, match=r"x.gguf: another phiconv"):
            write(tmp_path)
    assert left.exists()
    assert write(tmp_path) == [f"removed {left.name}, left by a run that was killed"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.skipif(not leftovers.LOCKS, reason="no locks on files here")
def test_a_lock_of_somebody_else_is_not_waited_for(tmp_path, monkeypatch):
    """flock(1) holds the folder as long as its command runs."""
    monkeypatch.setattr(leftovers, "_PATIENCE", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert leftovers.hold(descriptor)
        assert write(tmp_path) == []
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "name",
    ["x" * 255, "\u6f22" * 85, "\U0001f600" * 63 + "xyz", os.fsdecode(b"\xff" * 255), "x" * 200, "x" * 201],
)
def test_temporary_names_are_short_enough_and_apart(tmp_path, name):
    path = partial_name(tmp_path / name)
    assert len(os.fsencode(path.name)) <= 220
    path.touch()
    assert (inner_name(name) == name) == (len(os.fsencode(name)) <= 200)
    assert inner_name(name) != inner_name(name[:-1] + "y")
    if name.isprintable():
        assert name.startswith(shortened(name, 100).encode().decode())
