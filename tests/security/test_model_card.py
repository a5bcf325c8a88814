"""The head of a stranger's README.md: no minute, no gigabyte, no refusal, only a note."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import tracemalloc

import pytest
from gguf import Metadata
from hypothesis import given
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv_formats.gguf.model_card import read_model_card

NINE = [", ".join([f"*a{i}"] * 9) for i in range(20)]
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{NINE[i]}]}}\n" for i in range(19))
LAUGHS = "tags: [&a0 [x], " + ", ".join(f"&a{i + 1} [{NINE[i]}]" for i in range(19)) + "]"

HOSTILE = {
    "merges": MERGES + "license: {<<: *a19}\n",
    "laughs": LAUGHS,
    "deep": "tags: " + "[" * 60_000,
    "deep blocks": "tags: " + "- " * 30_000,
    "deep maps": "tags: " + "{a: " * 15_000,
    "keys": "license: x\n" * 300_000,
    "question marks": "name: " + "? " * 30_000,
    "long": "name: " + "x" * 3_000_000,
    "anchor": "name: &a model",
    "alias": "name: *a",
    "tag": "name: !!binary x",
    "python": "name: !!python/object/apply:os.system [echo]",
    "date": "name: !!timestamp 2024-99-99",
    "surrogate": r'name: "\ud800"',
    "beyond": r'name: "\UFFFFFFFF"',
    "open": 'name: "x',
    "control": "name: \x07",
    "colon": "name: a: b",
    "map": "license: {a: b}",
    "list of lists": "tags: [[a]]",
    "list of maps": "datasets:\n- name: x",
    "directive": "name: x\n%YAML 99999999999999.1",
}
READ = {"keys", "directive"}  # the first keys, or what stands before


def card(tmp_path, head):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    return read_model_card(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_heads_take_no_time_and_leave_a_note(tmp_path, name):
    start = time.process_time()
    found, notes = card(tmp_path, HOSTILE[name])
    assert time.process_time() - start < 2
    if name != "directive":
        assert len(notes) == 1
        assert notes[0].startswith("README.md: ")
        assert notes[0].isprintable()
    if name not in READ:
        assert found == {}
    tracemalloc.start()
    try:
        read_model_card(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


GOOD = """license: mit  # free
license_link: >-
  https://example.org/
tags: [nlp, 'code', "q\\"uote",
  more
]
"language":
- en
- no
- 'fr'
model-index:
- name: x
  results: &a [1, 2]
  other: *a
unknown: {<<: *b}
base_model:
  - example/Phi-9
datasets: []
version: 1.5
pipeline_tag:\ttext-generation
author: >
   two
   lines

name: old
name: new
"""


def test_what_is_read(tmp_path):
    assert card(tmp_path, GOOD) == (
        {
            "license": "mit",
            "license_link": "https://example.org/",
            "tags": ["nlp", "code", 'q"uote', "more"],
            "language": ["en", "no", "fr"],
            "base_model": ["example/Phi-9"],
            "pipeline_tag": "text-generation",
            "author": "two lines\n",
            "name": "new",
        },
        [],
    )


def test_the_same_as_the_gguf_package_reads(tmp_path):
    head = GOOD.replace("unknown: {<<: *b}\n", "")
    found, _ = card(tmp_path, head)
    theirs = Metadata.load_model_card(tmp_path)
    assert {key: theirs[key] for key in found} == found


@pytest.mark.parametrize(
    "text", ["", "no head", "---", "---\n---\n", "---\n- a\n- b\n---", "---\njust words\n---"]
)
def test_no_head_is_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_model_card(tmp_path) == ({}, [])
    assert read_model_card(tmp_path / "none") == ({}, [])


@pytest.mark.parametrize(
    ("content", "says"), [(b"---\nname: \xff\n---", "not valid UTF-8"), (b"x" * (5 << 20), "bytes")]
)
def test_files_that_are_no_card(tmp_path, content, says):
    (tmp_path / "README.md").write_bytes(content)
    found, notes = read_model_card(tmp_path)
    assert (found, len(notes)) == ({}, 1)
    assert says in notes[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")
def test_links_and_pipes_are_left_out(tmp_path):
    (tmp_path / "private.md").write_text("---\ndescription: PRIVATE\n---\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").symlink_to("../private.md")
    found, notes = read_model_card(tmp_path / "m")
    assert found == {}
    assert "a link out of its folder" in notes[0]
    (tmp_path / "m" / "README.md").unlink()
    os.mkfifo(tmp_path / "m" / "README.md")
    assert read_model_card(tmp_path / "m")[0] == {}


HEADS = st.lists(
    st.tuples(
        st.sampled_from(["license", "tags", "name", "base_model", "datasets", "version", "x"]),
        st.one_of(
            st.text(max_size=30),
            st.text("[]{}&*!|>-?:,'\"#%@` \n\t0a~<", max_size=40),
            st.sampled_from(
                ["!!int x", "!!binary a", "=", "<<", "1e999", "0x", "2024-99-99", "0b", "-", "..."]
            ),
        ),
    ),
    max_size=5,
)


@given(HEADS)
def test_any_head_ends_in_texts_and_notes(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("card")
    head = "\n".join(f"{key}: {value}" for key, value in pairs)
    (folder / "README.md").write_bytes(f"---\n{head}\n---\n".encode())
    found, notes = read_model_card(folder)
    for value in found.values():
        texts = [value] if isinstance(value, str) else value
        assert texts
        assert all(isinstance(text, str) and text.encode() is not None for text in texts)
    assert len(notes) <= 1
    Metadata.apply_metadata_heuristic(Metadata(), found, {}, None, 1000)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["merges", "python", "date", "surrogate", "list of maps", "open"])
def test_a_conversion_goes_on_with_a_note(tmp_path, name, caplog):
    folder = tmp_path / "m"
    shutil.copytree(FIXTURES / "tiny-phi4mini", folder)
    (folder / "README.md").write_text(f"---\nauthor: somebody\n{HOSTILE[name]}\n---\n")
    with caplog.at_level(logging.WARNING):
        result = phiconv.convert(folder, tmp_path / "m.gguf", quant="f16")
    assert not caplog.records
    assert any("README.md: " in note for note in result.plan.package.notes)
    assert phiconv.open_model(tmp_path / "m.gguf").metadata["general.author"].value == "somebody"
