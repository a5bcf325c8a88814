"""Whatever is done to the keys and tensors of a GGUF, it opens or is refused; nothing else happens."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiconv
from phiconv.errors import PhiconvError
from phiconv_formats.gguf.values import GgufValue, ValueType
from phiconv_formats.tokenizers.writer import tokenizer_files

KINDS = ("phi", "phi4mini", "phimoe", "llama3")
FAMILIES = {"phi", "phi3", "phimoe", "llama"}

WORDS = [
    "",
    "phi2",
    "phi3",
    "phimoe",
    "llama",
    "gpt2",
    "none",
    "default",
    "adapter",
    "<s>",
    "[PAD5]",
    "{arch}{0}",
]
TEXTS = st.sampled_from(WORDS) | st.text(max_size=6) | st.just("\udc80")
NUMBERS = st.sampled_from([0, 1, 2, 3, 16, 64, 65, 96, 2111, 2112, 2**31 - 1, 2**31, 2**32 - 1])
FRACTIONS = st.floats(width=32) | st.sampled_from([0.0, 1.0, 1e-38, 3e38])
VALUES = st.one_of(
    st.builds(GgufValue, st.just(ValueType.STRING), TEXTS),
    st.builds(GgufValue, st.just(ValueType.UINT32), NUMBERS),
    st.builds(GgufValue, st.just(ValueType.INT64), st.integers(-(2**63), 2**63 - 1)),
    st.builds(GgufValue, st.just(ValueType.FLOAT32), FRACTIONS),
    st.builds(GgufValue, st.just(ValueType.BOOL), st.booleans()),
    *(
        st.builds(GgufValue, st.just(ValueType.ARRAY), st.lists(items, max_size=4), st.just(kind))
        for items, kind in (
            (TEXTS, ValueType.STRING),
            (FRACTIONS, ValueType.FLOAT32),
            (NUMBERS, ValueType.UINT32),
        )
    ),
    st.just(GgufValue(ValueType.ARRAY, [], ValueType.ARRAY)),
)  # fmt: skip
EXTRA = ["attention.key_length", "attention.value_length", "rope.scaling.type", "rope.scaling.factor"]
NAMES = [
    "token_embd.weight", "output.weight", "blk.0.attn_qkv.weight", "blk.0.attn_qkv.bias",
    "rope_factors_long.weight", "rope_freqs.weight", "blk.0.attn_q.weight", "blk.0.attn_q.bias",
]  # fmt: skip
SHAPES = st.sampled_from(
    [(1,), (8,), (12,), (96, 64), (192, 64), (256, 128), (2112, 64), (4, 32, 64), (3, 1)]
)


@pytest.fixture(scope="module")
def originals(gguf_of, contents):
    """Keys and tensors of a file of each kind, with a vocabulary of few tokens."""
    result = {}
    for kind in KINDS:
        entries, tensors = contents(gguf_of(kind))
        for name in ("token_embd.weight", "output.weight", "output.bias"):
            if name in tensors:
                tensors[name] = tensors[name][:300]
        for key, value in entries.items():
            if key.startswith("tokenizer.ggml.") and value.type is ValueType.ARRAY:
                merges = key.endswith("merges")
                entries[key] = GgufValue(value.type, value.value[: 20 if merges else 300], value.item_type)
            elif key.endswith("_token_id"):
                entries[key] = GgufValue(ValueType.UINT32, 1)
        result[kind] = entries, tensors
    return result


def opens(path):
    """Opens a file and writes its tokenizer down; its architecture, or None where it is refused."""
    try:
        model = phiconv.open_model(path)
        if model.tokenizer is not None:
            tokenizer_files(model.tokenizer)
    except PhiconvError as error:
        return None if str(error).isprintable() else "a message of several lines"
    return model.architecture


@pytest.mark.parametrize("kind", KINDS)
def test_the_small_files_open(kind, originals, gguf_bytes, tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(*originals[kind]))
    assert opens(tmp_path / "x.gguf") in FAMILIES


def change(data, entries, tensors):
    """One change of a key, of an item of an array, or of a tensor."""
    arrays = sorted(k for k, v in entries.items() if v.type is ValueType.ARRAY and v.value)
    what = data.draw(st.integers(0, 4))
    if what == 0:
        entries.pop(data.draw(st.sampled_from(sorted(entries))))
    elif what == 1:
        keys = [
            *sorted(entries),
            *(f"{arch}.{key}" for arch in ("phi2", "phi3", "phimoe", "llama") for key in EXTRA),
        ]
        entries[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    elif what == 2 and arrays:
        key = data.draw(st.sampled_from(arrays))
        items, kind = list(entries[key].value), entries[key].item_type
        index = data.draw(st.integers(0, len(items) - 1))
        items[index] = data.draw(TEXTS if kind is ValueType.STRING else st.integers(-9, 9))
        entries[key] = GgufValue(ValueType.ARRAY, items, kind)
    elif what == 3:
        tensors.pop(data.draw(st.sampled_from(sorted(tensors))))
    else:
        name = data.draw(st.sampled_from(NAMES) | st.sampled_from(sorted(tensors)))
        fill = data.draw(st.sampled_from([1.0, 0.0, float("nan")]))
        tensors[name] = np.full(data.draw(SHAPES), fill, np.float32)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_changed_keys_and_tensors(originals, gguf_bytes, tmp_path, data):
    entries, tensors = map(dict, originals[data.draw(st.sampled_from(KINDS))])
    for _ in range(data.draw(st.integers(1, 3))):
        change(data, entries, tensors)
    path = tmp_path / "x.gguf"
    try:
        path.write_bytes(gguf_bytes(entries, tensors))
    except ValueError:  # a negative number in an array of unsigned ones
        return
    assert opens(path) in {None, *FAMILIES}


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_changed_bytes(originals, gguf_bytes, tmp_path, seed, kind):
    content = bytearray(gguf_bytes(*originals[kind]))
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, 12_000))  # about where the keys are
        content[at : at + 1] = bytes([int(rng.integers(0, 256))])
        if rng.integers(0, 4) == 0:
            struct.pack_into("<I", content, at, int(rng.choice([0, 1, 2**31, 2**32 - 1])))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert opens(path) in {None, *FAMILIES}
