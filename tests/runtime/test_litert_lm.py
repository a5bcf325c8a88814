"""LiteRT-LM runs what phiconv writes: it tokenizes, generates, stops and chats as the source does."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import phiconv
from paths import FIXTURES
from phiconv.recipes import override
from phiconv_formats.litert.metadata import chat_template

pytestmark = pytest.mark.runtime

TRAINED = ["tiny-phi3", "tiny-phi4mini"]
TEMPLATES = json.loads((FIXTURES / "phi_templates.json").read_text())
USER, SYSTEM, ANSWER, NEXT = (
    {"role": role, "content": content}
    for role, content in (
        ("user", "Hi there"),
        ("system", "Be brief"),
        ("assistant", "Hello"),
        ("user", "And {{ 'then' }}?"),
    )
)
CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, NEXT], [SYSTEM, USER, ANSWER, NEXT]]


@pytest.fixture(scope="module")
def opened(litert_lm, tmp_path_factory):
    """Writes a file and opens it in the runtime: a context manager of the engine."""
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)

    @contextmanager
    def open_(source, quant, **options):
        folder = tmp_path_factory.mktemp("engine")
        path = folder / "m.litertlm"
        phiconv.convert(source, path, quant=quant, choices=phiconv.Choices(**options))
        engine = litert_lm.Engine(
            os.fspath(path), litert_lm.Backend.CPU(thread_count=1), cache_dir=os.fspath(folder)
        )
        try:
            yield engine
        finally:
            engine.close()

    return open_


def greedy(litert_lm, engine, prompt, count):
    sampler = litert_lm.SamplerConfig(top_k=1)
    session = engine.create_session(
        apply_prompt_template=False, sampler_config=sampler, max_output_tokens=count
    )
    try:
        session.run_prefill([prompt])
        return session.run_decode().texts[0]
    finally:
        session.close()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("quant", ["f32", "f16"])
@pytest.mark.parametrize("name", TRAINED)
def test_greedy_texts(litert_lm, opened, name, quant, target):
    """A file for a GPU runs on a processor, too; there with a float embedding, as the texts were made."""
    items = json.loads((FIXTURES / name / "generations.json").read_text())["items"]
    floats = (override(f"embed={quant}"),)
    with opened(FIXTURES / name, quant, context=512, target=target, tensor_types=floats) as engine:
        for item in items:
            assert engine.tokenize(item["prompt"]) == item["prompt_ids"]
            ids = item["greedy_ids"]
            assert greedy(litert_lm, engine, item["prompt"], len(ids)) == engine.detokenize(ids)


def test_a_phi_2_kind(litert_lm, opened, make_model, tmp_path):
    """LayerNorm, biases, GELU, a partly rotated head, and a byte-level tokenizer."""
    source = make_model(tmp_path / "s", "phi2", seed=7)
    with opened(source, "f32") as engine:
        for prompt in ("def f(x):", "The list", "a b c", "import os"):
            ids = list(phiconv.generate(source, prompt, 12))
            assert greedy(litert_lm, engine, prompt, len(ids)) == engine.detokenize(ids)


def test_it_stops_where_it_should(litert_lm, opened, tmp_path):
    """Before the first token that ends a text, whichever of several that is."""
    item = json.loads((FIXTURES / "tiny-phi4mini/generations.json").read_text())["items"][0]
    ids = item["greedy_ids"]
    place = next(i for i in range(5, len(ids)) if ids[i] not in ids[:i])
    shutil.copytree(FIXTURES / "tiny-phi4mini", tmp_path / "s")
    settings = {"eos_token_id": [2070, ids[place]]}
    (tmp_path / "s" / "generation_config.json").write_text(json.dumps(settings))
    with opened(tmp_path / "s", "f32", context=512) as engine:
        text = greedy(litert_lm, engine, item["prompt"], len(ids))
        assert text == engine.detokenize(ids[:place])


def test_it_knows_where_texts_end(opened):
    """At every token that the files name, and at those of the family."""
    with opened(FIXTURES / "tiny-phi3", "f32") as engine:
        assert engine.eos_token_ids == [[2048], [2049], [2055], [2]]
        assert engine.bos_token_id is None


@pytest.fixture(scope="module")
def engine(opened):
    with opened(FIXTURES / "tiny-phi3", "f32") as found:
        yield found


@pytest.mark.parametrize("chat", CHATS, ids=["user", "system", "three", "four"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_written_as_jinja2_writes_them(engine, name, chat):
    tokenizer = phiconv.open_model(FIXTURES / "tiny-phi3").tokenizer
    tokenizer = replace(tokenizer, chat_templates={"default": TEMPLATES[name]})
    texts = {f"{role}_token": tokenizer.tokens[i] for role, i in tokenizer.special_ids.items()}
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = jinja.from_string(TEMPLATES[name]).render(messages=chat, add_generation_prompt=True, **texts)
    conversation = engine.create_conversation(
        messages=chat[:-1] or None, chat_template=chat_template(tokenizer)
    )
    try:
        assert conversation.render_message_to_string(chat[-1]) == expected
    finally:
        conversation.close()


def test_a_conversation(litert_lm, engine):
    """With the file's own template."""
    conversation = engine.create_conversation(
        sampler_config=litert_lm.SamplerConfig(top_k=1), max_output_tokens=8
    )
    try:
        assert conversation.send_message("What is a list?")["content"]
    finally:
        conversation.close()
