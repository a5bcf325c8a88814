"""Links in a model's folder: no file of the reader's own comes into an output by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError
from phiconv_formats.shared.files import read_small_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")

SECRET = b"PRIVATE private PRIVATE\n"
JSON_SECRET = b'{"secret": "PRIVATE"}'
COMPANIONS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "stranger"
    shutil.copytree(FIXTURES / "tiny-phi4mini", path)
    return path


@pytest.fixture
def own(tmp_path):
    """A file of the reader's own, beside the stranger's folder."""
    (tmp_path / "home").mkdir()

    def write(content):
        path = tmp_path / "home" / "private"
        path.write_bytes(content)
        return path

    return write


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def into_folder(source, path):
    return phiconv.convert(source, path, to="safetensors")


def nothing_left(tmp_path, names=("home", "stranger")):
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def without_template(folder):
    """Makes the reader look for the chat template in files of its own."""
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("secret", [SECRET, JSON_SECRET])
@pytest.mark.parametrize("name", COMPANIONS)
def test_a_link_to_a_private_file_is_refused_by_name(folder, own, tmp_path, name, secret):
    without_template(folder)
    link(folder / name, own(secret))
    with pytest.raises(InputError, match="a link out of its folder") as caught:
        into_folder(folder, tmp_path / "out")
    assert caught.value.path == folder / name
    assert "--follow-links" in str(caught.value)
    nothing_left(tmp_path)


@pytest.mark.parametrize("name", COMPANIONS)
def test_so_is_a_relative_one_and_one_over_others(folder, own, tmp_path, name):
    without_template(folder)
    own(SECRET)
    link(folder / "step", "../home/private")
    link(folder / name, "step")
    with pytest.raises(InputError, match="a link out of its folder"):
        into_folder(folder, tmp_path / "out")
    nothing_left(tmp_path)


def test_a_folder_of_templates_is_no_way_out(folder, tmp_path, refused):
    without_template(folder)
    (folder / "chat_template.jinja").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.jinja").write_bytes(SECRET)
    (folder / "additional_chat_templates").symlink_to(tmp_path / "home")
    refused(phiconv.open_model, folder, says="a link out of its folder")


def test_links_inside_the_folder_are_followed(folder, tmp_path):
    (folder / "files").mkdir()
    for path in [p for p in folder.iterdir() if p.is_file()]:
        path.rename(folder / "files" / path.name)
        path.symlink_to(f"files/{path.name}")
    into_folder(folder, tmp_path / "linked")
    merges = (tmp_path / "linked" / "merges.txt", FIXTURES / "tiny-phi4mini" / "merges.txt")
    assert merges[0].read_bytes() == merges[1].read_bytes()


def hub_cache(folder, root, names):
    """Lays a folder out as the cache of the Hugging Face hub does; returns the snapshot."""
    snapshot, blobs = root / "snapshots" / "0123", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        names[path.name] = shutil.copy(path, blobs / f"sha-{len(names)}")
        (snapshot / path.name).symlink_to(os.path.relpath(names[path.name], snapshot))
    return snapshot


def test_links_of_a_hub_cache_are_followed(folder, tmp_path):
    snapshot = hub_cache(folder, tmp_path / "models--a--b", {})
    (tmp_path / "other").symlink_to(snapshot)
    for number, path in enumerate((snapshot, tmp_path / "other", snapshot / "model.safetensors")):
        into_folder(path, tmp_path / f"out{number}")
        assert (tmp_path / f"out{number}" / "tokenizer.json").exists()


def test_but_not_into_the_blobs_of_another_model(folder, tmp_path, refused):
    names = {}
    hub_cache(folder, tmp_path / "models--a--private", names)
    snapshot = hub_cache(folder, tmp_path / "models--a--b", {})
    link(snapshot / "merges.txt", names["merges.txt"])
    with pytest.raises(InputError, match="a link out of its folder") as caught:
        into_folder(snapshot, tmp_path / "out")
    assert caught.value.path == snapshot / "merges.txt"


def test_nor_into_blobs_that_are_a_link_themselves(folder, own, tmp_path, refused):
    own(SECRET)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (tmp_path / "models--a--b" / "blobs").symlink_to(tmp_path / "home")
    link(snapshot / "config.json", "../../blobs/private")
    refused(phiconv.open_model, snapshot, says="a link out of its folder")


def test_those_who_mean_it_can_follow_any(folder, own, tmp_path):
    link(folder / "merges.txt", own((folder / "merges.txt").read_bytes()))
    with phiconv.following_links():
        into_folder(folder, tmp_path / "out")
    assert (tmp_path / "out" / "merges.txt").read_bytes() == (tmp_path / "home" / "private").read_bytes()
    with pytest.raises(InputError, match="a link out of its folder"):
        into_folder(folder, tmp_path / "again")


def test_the_command(folder, own, tmp_path):
    link(folder / "merges.txt", own((folder / "merges.txt").read_bytes()))
    command = [sys.executable, "-m", "phiconv", str(folder), str(tmp_path / "out"), "--to", "safetensors"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == InputError.exit_code
    assert "merges.txt" in run.stderr
    assert "give --follow-links" in run.stderr
    nothing_left(tmp_path)
    run = subprocess.run([*command, "--follow-links"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_link_that_comes_between_look_and_open(tmp_path, monkeypatch, refused):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr("phiconv_formats.shared.files.real_path", lambda *_: tmp_path / "other")
    (tmp_path / "other").symlink_to("file")
    refused(read_small_file, tmp_path / "file", 100, says="cannot be opened")


CLAIMS = {
    "merges.txt": (b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n", "a merge is not two tokens"),
    "tokenizer.model": (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "not a SentencePiece model"),
    "vocab.json": (JSON_SECRET, "not the id of a token"),
    "added_tokens.json": (b'{"key": -1}', "added tokens['key']"),
    "special_tokens_map.json": (b"[1, 2]", "expected a JSON object"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_is_copied_is_what_its_name_says(folder, tmp_path, name):
    content, says = CLAIMS[name]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        into_folder(folder, tmp_path / "out")
    assert says in str(caught.value)
    assert caught.value.path == folder / name
    nothing_left(tmp_path, ["stranger"])


def test_a_vocabulary_of_tiktoken_is_copied(folder, tmp_path):
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    into_folder(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"IQ== 0\nIg== 1\n"
