"""What may be replaced and removed: what phiconv wrote, as its manifest tells, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from phiconv.conversion.manifest import MANIFEST, read_manifest, refuse_half_replaced
from phiconv.conversion.outputs import partial_files
from phiconv.conversion.replacing import Replacement
from phiconv.errors import MalformedFileError, OutputError, OutputExistsError
from phiconv_formats.shared.output import Label, OutputFile


def put(folder, files, name="", *, force=False, stale=(), beside=(), kind="mlx", source=None):
    """Writes an output of these files."""
    made = [OutputFile(n, len(data), ((0, data),)) for n, data in files.items()]
    label = Label(name, kind, "q")
    others = {"stale": stale, "beside": beside, "label": label, "source": source}
    with partial_files(folder, made, force=force, own_folder=not name, **others):
        pass


def content(folder):
    """Names and bytes of the files in a folder, without the manifest."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST and p.is_file()}


OLD = {"config.json": b"old", "a": b"1", "b": b"22", "index": b"333"}
NEW = {"main.xml": b"new", "config.json": b"newer", "a": b"4444"}
PARTS = ("x-[0-9]-of-[0-9].gguf", "x.gguf")


def parts(count, data=b"p"):
    return {f"x-{n}-of-{count}.gguf": data * (n + count) for n in range(1, count + 1)}


# ----------------------------------------------------------------------------------------------- the manifest


def test_the_manifest_lists_an_output_and_nothing_that_changes(tmp_path):
    for folder in (tmp_path / "1", tmp_path / "2"):
        put(folder, OLD)
    text = (tmp_path / "1" / MANIFEST).read_bytes()
    assert text == (tmp_path / "2" / MANIFEST).read_bytes()
    sizes = {name: len(data) for name, data in OLD.items()}
    output = {"output": "", "format": "mlx", "recipe": "q", "state": "complete", "files": sizes}
    assert json.loads(text) == {"phiconv": 1, "outputs": [output]}
    put(tmp_path / "1", OLD, force=True)
    assert text == (tmp_path / "1" / MANIFEST).read_bytes()


def test_a_single_file_has_none(tmp_path):
    put(tmp_path, {"x.gguf": b"1"}, "x.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_outputs_stand_side_by_side(tmp_path):
    put(tmp_path, {"b.xml": b"1", "b.bin": b"2"}, "b.xml")
    put(tmp_path, {"a.xml": b"1", "a.bin": b"2"}, "a.xml")
    assert [entry.label.name for entry in read_manifest(tmp_path)] == ["a.xml", "b.xml"]
    put(tmp_path, {"a.xml": b"3", "a.bin": b"44"}, "a.xml", force=True)
    assert content(tmp_path) == {"a.xml": b"3", "a.bin": b"44", "b.xml": b"1", "b.bin": b"2"}


def test_what_one_takes_over_is_no_longer_the_others(tmp_path):
    put(tmp_path, {"a.onnx": b"1", "genai.json": b"a"}, "a.onnx")
    with pytest.raises(OutputExistsError, match=r"genai.json: exists already; give --force"):
        put(tmp_path, {"b.onnx": b"1", "genai.json": b"b"}, "b.onnx")
    put(tmp_path, {"b.onnx": b"1", "genai.json": b"b"}, "b.onnx", force=True)
    assert [[*entry.files] for entry in read_manifest(tmp_path)] == [["a.onnx"], ["b.onnx", "genai.json"]]
    put(tmp_path, {"a.onnx": b"2"}, "a.onnx", force=True)
    assert content(tmp_path) == {"a.onnx": b"2", "b.onnx": b"1", "genai.json": b"b"}


def test_names_that_are_no_utf8(tmp_path):
    odd = os.fsdecode(b"\xff\xfe.bin")
    put(tmp_path / "m", {"main": b"1", odd: b"22"})
    assert read_manifest(tmp_path / "m")[0].files == {"main": 1, odd: 2}
    put(tmp_path / "m", {"main": b"1"}, force=True)
    assert content(tmp_path / "m") == {"main": b"1"}


# -------------------------------------------------------------------------------------------------- replacing


def test_an_output_is_replaced_as_a_whole(tmp_path):
    put(tmp_path / "m", OLD)
    put(tmp_path / "m", NEW, kind="openvino", force=True)
    assert content(tmp_path / "m") == NEW
    assert [e.label.format for e in read_manifest(tmp_path / "m")] == ["openvino"]


@pytest.mark.parametrize("name", ["mine.txt", "a.safetensors", "sub/file", "openvino_model.xml"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_of_the_output_is_refused_and_stays(tmp_path, name, force):
    put(tmp_path / "m", OLD)
    (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=rf"not of this output: {name.split('/')[0]}; choose another"):
        put(tmp_path / "m", NEW, force=force)
    assert OLD.items() <= content(tmp_path / "m").items()
    assert (tmp_path / "m" / name).read_text() == "mine"


def test_five_are_named(tmp_path):
    for number in range(7):
        (tmp_path / f"f{number}").touch()
    with pytest.raises(OutputExistsError, match="f0, f1, f2, f3, f4 and 2 more; choose"):
        put(tmp_path, NEW, force=True)


@pytest.mark.parametrize(
    "name", ["LICENSE", "NOTICE.txt", ".DS_Store", "Thumbs.db", ".gitattributes", "README.md"]
)
def test_what_is_harmless_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".git").mkdir()
    put(tmp_path, OLD)
    put(tmp_path, NEW, force=True)
    assert content(tmp_path) == {**NEW, name: b"mine"}


def test_an_edited_file_is_not_removed(tmp_path):
    put(tmp_path / "m", OLD)
    (tmp_path / "m" / "index").write_text("edited")
    with pytest.raises(OutputExistsError, match="not of this output: index"):
        put(tmp_path / "m", NEW, force=True)
    put(tmp_path / "m", OLD, force=True)  # it is one of these
    assert content(tmp_path / "m") == OLD


def test_without_a_manifest_the_same_files_are_replaced_and_others_are_not(tmp_path):
    put(tmp_path / "m", OLD)
    (tmp_path / "m" / MANIFEST).unlink()
    with pytest.raises(OutputExistsError, match="not of this output: b, index"):
        put(tmp_path / "m", NEW, force=True)
    put(tmp_path / "m", {**NEW, **OLD}, force=True)
    assert content(tmp_path / "m") == {**NEW, **OLD}


def test_without_force_nothing_is_replaced(tmp_path):
    put(tmp_path / "m", OLD)
    with pytest.raises(OutputExistsError, match=r"is not empty: an output for mlx; .* or give --force"):
        put(tmp_path / "m", OLD)
    with pytest.raises(OutputExistsError, match=r"is not empty: an output for mlx; .* or give --force"):
        put(tmp_path / "m", {"other": b"1"}, kind="openvino")
    assert content(tmp_path / "m") == OLD


def test_a_file_does_not_break_into_a_folders_output(tmp_path):
    put(tmp_path / "m", OLD)
    for force in (False, True):
        with pytest.raises(
            OutputExistsError, match=r"m: is an output for mlx .*: config.json" if force else "exists"
        ):
            put(tmp_path / "m", {"x.onnx": b"1", "config.json": b"2"}, "x.onnx", force=force)
    put(tmp_path / "m", {"x.gguf": b"1"}, "x.gguf")
    assert content(tmp_path / "m") == {**OLD, "x.gguf": b"1"}


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputExistsError, match="a: is a folder"):
        put(tmp_path, {"a": b"1"}, "a", force=True)


def test_the_source_is_not_replaced(tmp_path):
    put(tmp_path, parts(3), "x.gguf", stale=PARTS)
    with pytest.raises(OutputError, match=r"x-1-of-3.gguf: would be replaced, and is the source"):
        put(tmp_path, {"x.gguf": b"1"}, "x.gguf", stale=PARTS, force=True, source=tmp_path / "x-1-of-3.gguf")
    assert content(tmp_path) == parts(3)


@pytest.mark.parametrize("new", [parts(2), parts(4), {"x.gguf": b"1"}])
def test_parts_of_another_number(tmp_path, new):
    (tmp_path / "y-1-of-3.gguf").write_text("another")
    put(tmp_path, parts(3), "x.gguf", stale=PARTS)
    with pytest.raises(OutputExistsError, match=r"an older output of this name: x-1-of-3.gguf, .*--force"):
        put(tmp_path, new, "x.gguf", stale=PARTS)
    put(tmp_path, new, "x.gguf", stale=PARTS, force=True)
    assert content(tmp_path) == {**new, "y-1-of-3.gguf": b"another"}
    assert (tmp_path / MANIFEST).exists() == (len(new) > 1)


def test_a_single_file_gives_way_to_parts(tmp_path):
    put(tmp_path, {"x.gguf": b"1"}, "x.gguf", stale=PARTS)
    with pytest.raises(OutputExistsError, match=r"x.gguf: exists already; give --force"):
        put(tmp_path, parts(2), "x.gguf", stale=PARTS)
    put(tmp_path, parts(2), "x.gguf", stale=PARTS, force=True)
    assert content(tmp_path) == parts(2)


def test_parts_that_somebody_else_wrote_stay(tmp_path):
    put(tmp_path, parts(3), "x.gguf", stale=PARTS)
    (tmp_path / MANIFEST).unlink()
    for force in (False, True):
        with pytest.raises(
            OutputExistsError, match=r"taken for parts of this output: x-1-of-3.gguf, .*remove them"
        ):
            put(tmp_path, {"x.gguf": b"1"}, "x.gguf", stale=PARTS, force=force)
    assert content(tmp_path) == parts(3)


# -------------------------------------------------------------------------------- ended between two renamings


def raise_at(monkeypatch, number):
    """The renaming with this number, counted from 0, fails, and so do all that follow, as after a kill."""
    counts = [0]

    def watched(real):
        def call(*arguments, **options):
            counts[0] += 1
            if counts[0] > number:
                raise OSError(5, "ended")
            return real(*arguments, **options)

        return call

    for name in ("replace", "link", "rename"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Replacement, "undo", lambda *_: None)  # which a killed run does not
    return counts


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", ["", "x.xml"])
def test_an_end_between_is_seen_and_finished(tmp_path, monkeypatch, number, name):
    folder = tmp_path / "m"
    folder.mkdir()
    put(folder, OLD, name)
    with monkeypatch.context() as patch:
        counts = raise_at(patch, number)
        if number < 5:  # the manifest, three files, the manifest again
            with pytest.raises(OutputError, match="ended"):
                put(folder, NEW, name, force=True)
        else:
            put(folder, NEW, name, force=True)
        assert counts[0] >= min(number + 1, 5)
    if number == 0:
        assert content(folder) == OLD
        refuse_half_replaced(folder)
        return
    if number == 5:
        assert content(folder) == NEW
        refuse_half_replaced(folder)
        return
    assert not any(p.name.endswith(".partial") for p in folder.iterdir())
    for path in (folder, folder / "a", folder / "main.xml"):
        with pytest.raises(
            MalformedFileError, match=r"ended while it wrote this.*convert to it again, with --force"
        ):
            refuse_half_replaced(path)
    assert "main.xml" not in content(folder) or content(folder)["a"] == NEW["a"]
    with pytest.raises(OutputExistsError):
        put(folder, NEW, name)
    put(folder, NEW, name, force=True)
    assert content(folder) == NEW
    refuse_half_replaced(folder)


@pytest.mark.parametrize("number", range(1, 5))
def test_a_first_run_that_was_ended_needs_no_force(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        raise_at(patch, number)
        with pytest.raises(OutputError):
            put(tmp_path, NEW, "x.xml")
    with pytest.raises(MalformedFileError):
        refuse_half_replaced(tmp_path)
    put(tmp_path, NEW, "x.xml")
    assert content(tmp_path) == NEW
    refuse_half_replaced(tmp_path)


def test_an_end_while_the_old_is_removed(tmp_path, monkeypatch):
    put(tmp_path, parts(4), "x.gguf", stale=PARTS)
    real = Path.unlink

    def unlink(path, **options):
        if path.name == "x-3-of-4.gguf":
            raise OSError(5, "ended")
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(OutputError, match="ended"):
            put(tmp_path, {"x.gguf": b"1"}, "x.gguf", stale=PARTS, force=True)
    with pytest.raises(MalformedFileError):
        refuse_half_replaced(tmp_path / "x-3-of-4.gguf")
    with pytest.raises(MalformedFileError):
        refuse_half_replaced(tmp_path / "x.gguf")
    refuse_half_replaced(tmp_path / "y.gguf")
    put(tmp_path, {"x.gguf": b"1"}, "x.gguf", stale=PARTS, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_ended_twice(tmp_path, monkeypatch):
    put(tmp_path / "m", OLD)
    for number in (3, 2):
        with monkeypatch.context() as patch:
            raise_at(patch, number)
            with pytest.raises(OutputError):
                put(tmp_path / "m", NEW, force=True)
    put(tmp_path / "m", {"other": b"1"}, force=True)
    assert content(tmp_path / "m") == {"other": b"1"}


# --------------------------------------------------------------------------------------------- folders within


def test_files_in_folders_within(tmp_path):
    folder = tmp_path / "m"
    put(folder, {"sub/a": b"1", "sub/b": b"2", "c": b"3"})
    put(folder, {"sub/a": b"4", "c": b"5"}, force=True)
    assert [p.name for p in (folder / "sub").iterdir()] == ["a"]
    (folder / "sub" / "mine").write_text("mine")
    with pytest.raises(OutputExistsError, match="not of this output: sub/mine"):
        put(folder, {"c": b"5"}, force=True)
    (folder / "sub" / "mine").unlink()
    put(folder, {"c": b"5"}, force=True)
    assert {p.name for p in folder.iterdir()} == {"c", MANIFEST}


def test_what_may_stand_beside_stays_and_goes_with_the_folder(tmp_path):
    folder, beside, stale = tmp_path / "m", ("sub/*.onnx*",), ("sub/b.onnx_data*",)
    first = {"sub/a.onnx": b"1", "sub/a.onnx_data": b"2", "config.json": b"3"}
    put(folder, first, beside=beside)
    put(folder, {"sub/b.onnx": b"1", "sub/b.onnx_data_1": b"2"}, beside=beside, stale=stale, force=True)
    assert {p.name for p in folder.rglob("*.onnx*")} == {"a.onnx", "a.onnx_data", "b.onnx", "b.onnx_data_1"}
    assert not (folder / "config.json").exists()
    put(folder, {"sub/b.onnx": b"1"}, beside=beside, stale=stale, force=True)
    assert {p.name for p in folder.rglob("*.onnx*")} == {"a.onnx", "a.onnx_data", "b.onnx"}
    put(folder, OLD, force=True)
    assert content(folder) == OLD
    assert not (folder / "sub").exists()


def test_an_end_between_is_seen_from_a_folder_within(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        raise_at(patch, 2)
        (tmp_path / "m").mkdir()
        with pytest.raises(OutputError, match="ended"):
            put(tmp_path / "m", {"sub/a": b"1", "sub/b": b"2", "c": b"3"})
    for path in (tmp_path / "m" / "sub" / "a", tmp_path / "m" / "sub", tmp_path / "m"):
        with pytest.raises(MalformedFileError):
            refuse_half_replaced(path)
    refuse_half_replaced(tmp_path)
    put(tmp_path / "m", {"sub/a": b"1", "sub/b": b"2", "c": b"3"})
