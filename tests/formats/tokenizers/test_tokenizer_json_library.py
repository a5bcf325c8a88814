"""Every small change of a tokenizer.json: what the library does not load phiconv does not read."""

from __future__ import annotations

import re

import pytest

from paths import ROOT
from phiconv.errors import PhiconvError
from phiconv_formats.tokenizers.folder import read_tokenizer
from tokenizer_mutations import cases

ONLY_THEY = {"a regular expression that is none": "Oniguruma error"}
"""What only the library refuses, and a part of its message."""

ONLY_WE = {
    "keys that are twice in an object": "twice in one object",
    "ids that two tokens have": "the id [0-9]+ is there twice",
    "ids beyond the embedding": "no row in the embedding|the embedding has",
    "added tokens that take the id of another token": "which a merge needs",
    "added tokens without text": "is empty",
    "models other than BPE": "only BPE is supported",
    "texts without bytes or pieces": "neither a byte-level tokenizer",
    "prefixes or suffixes of tokens": "prefixes and suffixes",
    "components without a type": "a component that the tokenizers library has",
    "templates whose tokens are not listed": "which (single|pair) has|as many ids as tokens",
    "tables of characters without a trie": "a SentencePiece charsmap",
    "null where a flag is meant": "true or false, found null",
}
"""What only phiconv refuses, and its message."""


def theirs(library, data):
    """What the library says against a file, "" for nothing."""
    try:
        library.Tokenizer.from_buffer(data)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return f"{error}"
    return ""


def ours(folder, data):
    (folder / "tokenizer.json").write_bytes(data)
    try:
        read_tokenizer(folder, vocab_size=1000, config={})
    except PhiconvError as error:
        return error.message if str(error).isprintable() else "not on one line"
    return ""


def reason(said, known):
    return next((name for name, pattern in known.items() if re.search(pattern, said)), None)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Name, the library's refusal and phiconv's, of every case."""
    library, folder = pytest.importorskip("tokenizers"), tmp_path_factory.mktemp("cases")
    return [(case.name, theirs(library, case.data), ours(folder, case.data)) for case in cases()]


def test_what_the_library_refuses_is_refused(verdicts):
    assert sum(bool(library) for _, library, _ in verdicts) > 3000
    only = {
        name: reason(library, ONLY_THEY) for name, library, refused in verdicts if library and not refused
    }
    assert [name for name, why in only.items() if why is None] == []
    assert {*only.values()} == {*ONLY_THEY}


def test_what_only_phiconv_refuses_is_known(verdicts):
    only = {name: reason(refused, ONLY_WE) for name, library, refused in verdicts if refused and not library}
    assert [name for name, why in only.items() if why is None] == []
    assert {*only.values()} == {*ONLY_WE}


def test_the_files_themselves_are_read(verdicts):
    fine = [name for name, library, refused in verdicts if not library and not refused]
    assert {name.partition(":")[0] for name in fine} >= {"byte-level", "pieces", "spaces"}
    assert "40 levels" in fine


def test_the_tables_of_the_documentation():
    text = (ROOT / "docs" / "tokenizer-json.md").read_text("utf-8")
    rows = set(re.findall(r"^\| ([^|]+) \| [^|-]", text, re.MULTILINE)) - {"what"}
    assert rows == {*ONLY_THEY, *ONLY_WE}
