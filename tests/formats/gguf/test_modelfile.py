"""A Modelfile beside a GGUF: its template says of a chat what the model's own says."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

import phiconv
from paths import FIXTURES
from phiconv.guide.running import run_command
from phiconv_formats.gguf.go_template import UnknownTemplateError, go_template
from phiconv_formats.gguf.modelfile import modelfile

TINY = FIXTURES / "tiny-phi4mini"
TEMPLATES = json.loads((FIXTURES / "phi_templates.json").read_text()) | {
    # What other releases of the family have otherwise.
    "phi-3.5-mini": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "lines": (
        "{# a }} chat #}\n{%- for m in messages %}\n  {% if not add_generation_prompt %}never{% endif %}\n"
        "  {{- '<|' ~ 'x' }}{% endfor %}"
    ).replace("'<|' ~ 'x'", "'<|' + m.role + '|>' + m.content")
    + "\n{% if true %}\n<|assistant|>\n{% endif %}\n",
}
USER, ANSWER, SYSTEM = (
    {"role": role, "content": f"{text} 'twas\n{{ }} <&>"}
    for role, text in (("user", "Hello"), ("assistant", "Yes"), ("system", "Be brief"))
)
CHATS = {
    "one turn": [USER],
    "several": [USER, ANSWER, USER, ANSWER, USER],
    "told": [SYSTEM, USER],
    "told and several": [SYSTEM, USER, ANSWER, USER],
    "told nothing": [{"role": "system", "content": ""}, USER],
}


def rendered(template, messages):
    """What Go makes of a template, as far as it consists of what phiconv writes: by way of Python's code."""
    code, depth = ["def run(messages):", " out = ''"], 1

    def line(text):
        code.append(" " * depth + text)

    for place, part in enumerate(re.split(r"\{\{ (.*?) \}\}", template)):
        match part.split() if place % 2 else None:
            case None:
                line(f"out += {part!r}")
            case ["range", ".Messages"]:
                line("for message in messages:")
                depth += 1
            case ["if", *condition]:
                line(f"if {value(condition)}:")
                depth += 1
            case ["else", "if", *condition]:
                depth -= 1
                line(f"elif {value(condition)}:")
                depth += 1
            case ["else"]:
                depth -= 1
                line("else:")
                depth += 1
            case ["end"]:
                depth -= 1
            case words:
                line(f"out += {value(words)}")
    assert depth == 1
    scope = {}
    exec("\n".join([*code, " return out"]), scope)  # noqa: S102 - of what is built above
    return scope["run"](messages)


def value(words):
    match words:
        case ["eq" | "ne" as sign, field, word]:
            return f"{value([field])} {'==' if sign == 'eq' else '!='} {word}"
        case [".Role" | ".Content" as field]:
            return f"message[{field[1:].lower()!r}]"
        case ["and", *terms]:
            return " and ".join(value(term.split()) for term in re.findall(r"\((.*?)\)", " ".join(terms)))
    raise AssertionError(words)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_the_same_in_go(name, chat):
    jinja2 = pytest.importorskip("jinja2.sandbox")
    environment = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = environment.from_string(TEMPLATES[name]).render(
        messages=CHATS[chat], add_generation_prompt=True, **ends
    )
    assert rendered(go_template(TEMPLATES[name], "<s>"), CHATS[chat]) == expected


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% set x = 1 %}", "set x = 1"),
        ("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}", "trim"),
        ("{% for m in messages %}{% if loop.first %}a{% endif %}{% endfor %}", "loop . first"),
        ("{% for m in messages[1:] %}{% endfor %}", "messages"),
        ("{{ message['content'] }}", "message"),
        ("{% if messages[0]['role'] == 'system' %}{% endif %}", "messages"),
        ("{% for m in messages %}{% if m['role'] == 'a b' %}{% endif %}{% endfor %}", "a b"),
        ("{% for m in messages %}", "no endfor"),
        ("{% if true %}", "without its end"),
        ("{% endif %}", "without a beginning"),
        ("{{ '{' + '{{' }}", "text"),
        ('{{ \'"""\' }}', "text"),
        ("a {{ b", "without an end"),
        ("{{ }}", "nothing"),
    ],
)
def test_what_is_not_translated_is_named(template, named):
    with pytest.raises(UnknownTemplateError, match=re.escape(named)):
        go_template(template)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ollama")
    choices = phiconv.Choices(modelfile=True)
    return phiconv.convert(TINY, folder / "a b.gguf", quant="q8", choices=choices)


def test_it_stands_beside_the_file_and_in_its_receipt(written):
    gguf, beside = written.files
    assert (gguf.name, beside.name) == ("a b.gguf", "a b.Modelfile")
    text = beside.read_text(encoding="utf-8")
    assert text.startswith('FROM ./a b.gguf\nTEMPLATE """{{ range .Messages }}<|{{ .Role }}|>')
    assert text.endswith("PARAMETER num_ctx 4096\n")
    assert 'PARAMETER stop "<|end|>"\n' in text
    assert written.plan.size == sum(file.stat().st_size for file in written.files)
    assert phiconv.verify(gguf, source=TINY).outcome == "verified"
    assert "ollama create a-b -f " in str(run_command(written.plan))


def test_it_is_replaced_with_its_output(written):
    again = phiconv.convert(TINY, written.files[0], quant="q8", force=True)
    assert [file.exists() for file in written.files] == [True, False]
    choices = phiconv.Choices(modelfile=True, context=64)
    phiconv.convert(TINY, again.files[0], quant="q8", force=True, choices=choices)
    assert "PARAMETER num_ctx 64\n" in written.files[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "choices", "says"),
    [
        ({"split_max_size": 2_000_000}, {}, "Ollama opens no GGUF in several files"),
        ({}, {"context": 1 << 29}, "positions at most"),
        ({"to": "mlx"}, {}, "--modelfile means nothing for mlx"),
        ({}, {"modelfile": False, "context": 64}, "--context means nothing here"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, choices, says):
    name = "m" if options.get("to") else "m.gguf"
    asked = phiconv.Choices(**{"modelfile": True, **choices})
    with pytest.raises(phiconv.UsageError, match=says):
        phiconv.plan(TINY, tmp_path / name, quant="q8", choices=asked, **options)


@pytest.mark.parametrize(("template", "says"), [(None, "no chat template"), ("{% set a = 1 %}", "set a = 1")])
def test_a_template_that_is_not_known_is_refused(template, says):
    model = phiconv.open_model(TINY)
    templates = {} if template is None else {"default": template}
    other = replace(model, tokenizer=replace(model.tokenizer, chat_templates=templates))
    with pytest.raises(phiconv.UnsupportedModelError, match=says):
        modelfile(other, "a.gguf", None)
