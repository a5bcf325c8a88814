"""Time and memory for files that are as expensive as a file can be made: not much beside the file itself."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import time

import pytest

import phiconv
from memory import resident
from phiconv.errors import PhiconvError
from phiconv_formats.tokenizers.folder import MAX_TOKENS, read_tokenizer

SECONDS, MEMORY = 2.0, 200 << 20
WIDE = "\U0001f600"
"""One such character makes Python hold all of a string in four bytes each."""


def numbered(count, form):
    return ",".join(form.replace("N", f"{i:x}") for i in range(count))


def pairs(count):
    return "{" + ",".join(f'"{i:x}":{i}' for i in range(count)) + "}"


def whole(text):
    return lambda _: text.encode()


def more(text, key="x"):
    """One key more than the file has."""
    return lambda old: old.rstrip()[:-1] + f', "{key}": {text}}}'.encode()


def listed(item, count):
    return f"[{','.join([item] * count)}]"


def merges(form, count):
    """The first merge, many times."""

    def change(old):
        value = json.loads(old)
        first = value["model"]["merges"][0]
        left, right = first.split(" ") if isinstance(first, str) else first
        merge = json.dumps(form(left, right), separators=(",", ":"))
        text = json.dumps(value | {"model": value["model"] | {"merges": "HERE"}})
        return text.replace('"HERE"', listed(merge, count)).encode()

    return change


def braced(text):
    return "{" + text + "}"


def index(count):
    return braced('"weight_map":' + braced(numbered(count, '"N":"x"')))


def header(text):
    return lambda _: struct.pack("<Q", len(text.encode())) + text.encode()


def tensor(name, shape="[1]", end=4):
    return f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}'


def gguf_texts(text, count=1):
    """A GGUF whose only value is a text, or a list of many."""
    item = struct.pack("<Q", len(text)) + text
    kind = struct.pack("<i", 8) if count == 1 else struct.pack("<iiQ", 9, 8, count)
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 12) + b"general.name"
    return lambda _: start + kind + item * count


ALONE = '{"model":{"vocab":{},"merges":[]},"pre_tokenizer":{"type":"ByteLevel"}}'
PAIR = '"N":"x"'
ESCAPE = r"\ud83d\ude00"

JSON_FILES = {
    "tokens": ("tokenizer.json", whole(ALONE.replace("{}", pairs(650_000)))),
    "merges, too many": ("tokenizer.json", merges(lambda left, right: f"{left} {right}", 2_000_000)),
    "merges as lists": ("tokenizer.json", merges(lambda left, right: [left, right], 499_000)),
    "a wide text": ("tokenizer.json", more(f'"{WIDE}{"x" * 21_000_000}"')),
    "a wide text, too long": ("tokenizer.json", more(f'"{WIDE}{"x" * 60_000_000}"')),
    "wide texts": ("tokenizer.json", more(listed(f'"{WIDE}123456"', 1_200_000))),
    "escapes": ("tokenizer.json", more(f'"{ESCAPE * 3_400_000}"')),
    "numbers": ("config.json", more(listed("1000", 490_000))),
    "dicts": ("config.json", more(listed('{"a":1}', 240_000))),
    "digits": ("config.json", more("9" * 15_000_000)),
    "digits of a fraction": ("config.json", more("0." + "9" * 15_000_000)),
    "spaces": ("config.json", lambda old: b" " * 15_000_000 + old),
    "a long name": ("config.json", more(f'{{"{"x" * 15_000_000}": 1}}')),
    "templates": ("tokenizer_config.json", more(listed('{"name":"a","template":"b"}', 120_000))),
    "ends": ("generation_config.json", whole(f'{{"eos_token_id": {listed("2", 490_000)}}}')),
    "shards": ("model.safetensors.index.json", whole(index(240_000))),
    "shards, too many": ("model.safetensors.index.json", whole(index(600_000))),
}  # fmt: skip

OTHER_FILES = {
    "tensors": ("model.safetensors", header(braced(numbered(35_000, tensor("N", "[0]", 0))))),
    "dimensions": ("model.safetensors", header(braced(tensor("a", listed("0", 240_000))))),
    "metadata": ("model.safetensors", header(braced('"__metadata__":' + braced(numbered(240_000, PAIR))))),
    "a long name of a tensor": ("model.safetensors", header(braced(tensor("x" * 99_000_000)))),
    "a wide name of a tensor": ("model.safetensors", header(braced(tensor(WIDE + "x" * 20_000_000)))),
    "spaces in a header": ("model.safetensors", header(" " * 99_000_000 + "{}")),
    "no lines": ("merges.txt", whole("\n" * 499_000)),
    "lines of merges": ("merges.txt", whole("#version\n" + "! !\n" * 499_000)),
    "a long line": ("merges.txt", whole(WIDE + "x" * 16_000_000)),
    "a text of GGUF": ("x.gguf", gguf_texts(WIDE.encode() + b"x" * 29_000_000)),
    "a text of GGUF, too long": ("x.gguf", gguf_texts(b"x" * 180_000_000)),
    "texts of GGUF": ("x.gguf", gguf_texts(WIDE.encode() + b"xyz", 1_500_000)),
    "texts of GGUF without anything": ("x.gguf", gguf_texts(b"", 1_599_999)),
    "a tokenizer.model of lines": ("tokenizer.model", whole("\n" * 30_000_000)),
    "a tokenizer.model of ranks": ("tokenizer.model", whole("a 1\n" * 1_040_000)),
    "a card": ("README.md", whole("---\n" + "tags:\n- x\n" * 390_000)),
}  # fmt: skip


def in_two_files(folder):
    """The tokenizer as vocab.json and merges.txt."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | {"!!": 300}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.fixture
def source(request, tmp_path, make_miniature):
    """What phiconv is given, and the size of the file in it."""
    name, change = request.param
    folder = make_miniature.make_miniature(tmp_path / "source")
    if name in ("vocab.json", "merges.txt"):
        in_two_files(folder)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    path = folder / name
    data = change(path.read_bytes() if path.exists() else b"")
    path.write_bytes(data)
    yield path if name == "x.gguf" else folder, name, len(data)
    shutil.rmtree(folder)


FILES = JSON_FILES | OTHER_FILES
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")


@pytest.mark.parametrize("source", FILES.values(), ids=FILES, indirect=True)
def test_what_a_file_costs(source, tmp_path):
    path, file, size = source
    gc.collect()
    before, start = resident(reset=True), time.process_time()
    said = "converted"
    try:
        if file in TOKENIZER:  # of a larger model, which fewer tokens are too many for
            read_tokenizer(path, vocab_size=MAX_TOKENS, config={})
        else:
            phiconv.convert(path, tmp_path / "out", to="safetensors", quant="f16", jobs=1)
    except PhiconvError as error:
        said = str(error)
    seconds, memory = time.process_time() - start, resident() - before
    assert said.isprintable()
    assert len(said) < 1000
    assert seconds < SECONDS
    assert memory < size + MEMORY
