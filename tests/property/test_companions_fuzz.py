"""What stands beside the weights, changed at random: it is copied, left out or refused, and nothing else.

``PHICONV_FUZZ_EXAMPLES`` is that of test_readers_fuzz.py.
"""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import phiconv
from memory import resident
from mutations import changes, mutate
from phiconv.errors import PhiconvError

EXAMPLES = int(os.environ.get("PHICONV_FUZZ_EXAMPLES", "8"))
SECONDS, MEMORY = 2.0, 200 << 20

CARD = """---
license: mit
license_name: x
base_model:
- microsoft/phi-4
tags: [a, "b"]
language:
  - en
---
# A model
"""
PIECES = [
    b"---\n", b"&a [*a, *a]", b"<<: *a\n", b"!!python/object:os.system ", b"- ", b": ", b"|\n  ", b"{{ x }}",
    b"\\u", b"\xff\xfe", b"\xf0\x9f\x98\x80", b"[[[[", b'{"', b"null", b"-1", b"1e999", b"NaN", b"#version",
    b"\r\n", b" ",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_miniature):
    """Two model folders, with each kind of file in one of them."""
    root = tmp_path_factory.mktemp("companions")
    one = make_miniature.make_miniature(root / "one")
    (one / "README.md").write_text(CARD)
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (one / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>", "lstrip": false}}')
    two = make_miniature.make_miniature(root / "two")
    model = json.loads((two / "tokenizer.json").read_text())["model"]
    (two / "tokenizer.json").unlink()
    (two / "vocab.json").write_text(json.dumps({t: i for t, i in model["vocab"].items() if t.isalpha()}))
    (two / "merges.txt").write_text("#version: 0.2\n")
    pieces = make_miniature.make_miniature(root / "pieces", sentencepiece=True)
    shutil.copy(pieces / "tokenizer.model", one)
    return {"one": one, "two": two}


FILES = {
    "README.md": "one",
    "chat_template.jinja": "one",
    "special_tokens_map.json": "one",
    "tokenizer_config.json": "one",
    "generation_config.json": "one",
    "tokenizer.json": "one",
    "tokenizer.model": "one",
    "added_tokens.json": "two",
    "vocab.json": "two",
    "merges.txt": "two",
}


TARGETS = ["gguf", "mlx", "onnx", "openvino", "safetensors"]


def plan(source, out, target):
    refusal, start = None, time.process_time()
    try:
        phiconv.plan(source, out, to=target, quant="f16")
    except PhiconvError as error:
        refusal = error
    assert time.process_time() - start < SECONDS
    assert refusal is None or str(refusal).isprintable()
    return "planned" if refusal is None else type(refusal).__name__


@pytest.mark.parametrize("name", FILES)
@given(
    target=st.sampled_from(["gguf", "mlx", "onnx", "openvino", "safetensors"]), wanted=changes(content=PIECES)
)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_changed_companions(name, folders, tmp_path, target, wanted):
    source = tmp_path / "source"
    if not source.exists():
        shutil.copytree(folders[FILES[name]], source)
    data = (folders[FILES[name]] / name).read_bytes()
    (source / name).write_bytes(mutate(data, wanted))
    before = resident(reset=True)
    event(plan(source, tmp_path / ("x.gguf" if target == "gguf" else "out"), target))
    assert resident() - before < MEMORY
