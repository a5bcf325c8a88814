"""A stranger's folder may have a manifest: no file outside goes, and none that only looks listed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from phiconv.conversion.manifest import MANIFEST, read_manifest, refuse_half_replaced
from phiconv.conversion.outputs import partial_files
from phiconv.errors import InputError, OutputExistsError
from phiconv_formats.shared.output import Label, OutputFile

OLD = {"config.json": b"old", "a": b"1", "b": b"22", "index": b"333"}
NEW = {"main.xml": b"new", "config.json": b"newer", "a": b"4444"}


def put(folder, files, name=""):
    """Writes an output of these files over what is there."""
    made = [OutputFile(n, len(data), ((0, data),)) for n, data in files.items()]
    with partial_files(folder, made, force=True, own_folder=not name, label=Label(name, "mlx", "q")):
        pass


def listing(files, **others):
    output = {"output": "", "format": "mlx", "recipe": "q", "state": "complete", "files": files} | others
    return json.dumps({"phiconv": 1, "outputs": [output]})


HOSTILE = {
    "parent": listing({"../victim": 4}),
    "absolute": listing({"/victim": 4}),
    "above": listing({"sub/../../victim": 4}),
    "twice apart": listing({"sub//victim": 4}),
    "itself": listing({MANIFEST: 4, "..": 4}),
    "nul": listing({"a\0b": 4}),
    "size": listing({"b": True}),
    "state": listing({"b": 4}, state="finished"),
    "old": listing({"b": 4}, state="replacing", old={"../victim": 4}),
    "no old": listing({"b": 4}, state="replacing"),
    "name": listing({"b": 4}, output="../x"),
    "version": '{"phiconv": 2, "outputs": []}',
    "list": "[]",
    "twice": '{"phiconv": 1, "phiconv": 1, "outputs": []}',
    "deep": "[" * 100_000,
    "long integer": '{"phiconv": ' + "1" * 10_000 + "}",
    "nothing": "",
    "bytes": "\udcff",
    "huge": " " * ((16 << 20) + 1),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_none(tmp_path, text):
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "victim", folder / "b", folder / "sub" / "victim"):
        path.write_text("mine")
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError):
        read_manifest(folder)
    refuse_half_replaced(folder)
    for name in ("", "x.xml"):
        with pytest.raises(OutputExistsError, match=r"phiconv.json: another file has the name .*remove it"):
            put(folder, {"a": b"1", "c": b"2"}, name)
    put(folder, {"x.gguf": b"1"}, "x.gguf")
    assert (tmp_path / "victim").read_text() == (folder / "b").read_text() == "mine"
    assert (folder / MANIFEST).read_bytes() == text.encode("utf-8", "surrogateescape")


@pytest.mark.skipif(os.name == "nt", reason="files as on Unix")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_manifest_is_a_regular_file(tmp_path, kind):
    (tmp_path / "real").write_text(listing({"b": 4}))
    (tmp_path / "b").write_text("mine")
    manifest = tmp_path / MANIFEST
    if kind == "link":
        manifest.symlink_to("real")
    elif kind == "pipe":
        os.mkfifo(manifest)
    else:
        manifest.mkdir()
    with pytest.raises(OutputExistsError, match="not a regular file"):
        put(tmp_path, {"a": b"1", "c": b"2"}, "x")


@pytest.mark.skipif(os.name == "nt", reason="links as on Unix")
def test_links_that_a_manifest_lists_are_not_the_outputs(tmp_path):
    (tmp_path / "victim").write_text("mine")
    put(tmp_path / "m", OLD)
    (tmp_path / "m" / "b").unlink()
    (tmp_path / "m" / "b").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputExistsError, match="not of this output: b"):
        put(tmp_path / "m", NEW)
    (tmp_path / "m" / "b").rename(tmp_path / "m" / "main.xml")
    put(tmp_path / "m", NEW)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "m" / "main.xml").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="links as on Unix")
def test_a_link_to_a_folder_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a").write_text("mine")
    put(tmp_path / "m", {"sub/a": b"1234", "b": b"1"})
    shutil.rmtree(tmp_path / "m" / "sub")
    (tmp_path / "m" / "sub").symlink_to(tmp_path / "outside")
    for new in ({"b": b"2"}, {"b": b"2", "sub/a": b"3"}):
        with pytest.raises(OutputExistsError, match="not of this output: sub"):
            put(tmp_path / "m", new)
    assert (tmp_path / "outside" / "a").read_text() == "mine"
