"""Whatever is done to tokenizer files, they are read or refused; nothing else happens."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv_formats.gguf.values import serialize
from phiconv_formats.gguf.vocabulary import name_for_runtime, tokenizer_metadata
from phiconv_formats.tokenizers.folder import read_tokenizer

SETTINGS = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "generation_config.json")

WORDS = ["<s>", "\u2581", "ByteLevel", "Sequence", "Metaspace", "a b"]
NUMBERS = st.integers(-(2**65), 2**65) | st.integers(-1, 2200) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["tiny-phi3", "tiny-phi3 without model", "tiny-phi4mini"])
def small(request):
    """Files of a small vocabulary, as parsed JSON, and tokenizer.model where there is one."""
    name = request.param.split(maxsplit=1)[0]
    files = {file: json.loads((FIXTURES / name / file).read_text("utf-8")) for file in SETTINGS}
    model = files["tokenizer.json"]["model"]
    kept = {token for token, i in model["vocab"].items() if i < 290}
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token in kept}
    model["merges"] = [m for m in model["merges"] if {*m.split(" "), m.replace(" ", "")} <= kept][:20]
    path = FIXTURES / name / "tokenizer.model"
    return files, path.read_bytes() if request.param == "tiny-phi3" else None


def convert(files, model):
    """Reads the files and makes metadata of them; returns whether that was possible."""
    folder = Path(tempfile.mkdtemp())
    try:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name).write_bytes(data)
        if model is not None:
            (folder / "tokenizer.model").write_bytes(model)
        tokenizer = read_tokenizer(folder, vocab_size=2112, config={"eos_token_id": 7})
        if tokenizer is None:
            return False
        name_for_runtime("Phi 3", tokenizer)
        for _, value in tokenizer_metadata(tokenizer, architecture="phi3", vocab_size=2112):
            serialize(value)
    except PhiconvError:
        return False
    finally:
        shutil.rmtree(folder)
    return True


def containers(value):
    """Every object and array inside a JSON value, itself included."""
    found = [value]
    for item in found:  # it grows
        found += item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
    return [item for item in found if isinstance(item, dict | list)]


def test_the_small_files_are_read(small):
    files, model = small
    assert convert(files, None)
    assert model is None or convert({k: v for k, v in files.items() if k != "tokenizer.json"}, model)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_changed_values(small, data):
    files = json.loads(json.dumps(small[0]))
    for _ in range(data.draw(st.integers(1, 3))):
        value = files[data.draw(st.sampled_from(sorted(files)))]
        target = data.draw(st.sampled_from(containers(value)[:60]))
        keys = sorted(target)[:300] if isinstance(target, dict) else list(range(len(target)))
        if not keys:
            continue
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.booleans()):
            target[key] = data.draw(VALUES)
        else:
            del target[key]
            break  # the indexes of a list have moved
    convert(files, small[1] if data.draw(st.booleans()) else None)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 4), name=st.integers(0, 20))
@settings(max_examples=60)
def test_changed_bytes(small, seed, count, name):
    files, model = small
    files = {key: json.dumps(value, ensure_ascii=seed % 2 == 0).encode() for key, value in files.items()}
    if model is not None:
        del files["tokenizer.json"]
    names = [*sorted(files), *(["tokenizer.model"] if model else [])]
    chosen = names[name % len(names)]
    content = bytearray(model if chosen == "tokenizer.model" else files[chosen])
    rng = random.Random(seed)  # noqa: S311 - hypothesis gives the seed
    for _ in range(count):
        at = rng.randrange(max(len(content), 1))
        match rng.randrange(4):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.randrange(1, 9)]
            case 2:
                content[at:at] = rng.choice(
                    [b"[", b"{", b'"', b"-1", b"99999999", b"null", b"\xff\xff\xff\xff\x7f"]
                )
            case _:
                del content[at + 1 :]
    if chosen == "tokenizer.model":
        convert(files, bytes(content))
    else:
        convert({**files, chosen: bytes(content)}, model)
