"""Chat templates whose lines end with CR or CR LF: what is written has line feeds only."""

from __future__ import annotations

import json
import shutil

import pytest
from gguf import GGUFReader

import phiconv
from paths import FIXTURES

RAW = "{% for m in messages %}\r\n{{ m.content }}{{ '\\r\\n' }}\r{% endfor %}\r\n\r\r\n\n"
TEMPLATE = "{% for m in messages %}\n{{ m.content }}{{ '\\r\\n' }}\n{% endfor %}\n\n\n\n"
OTHER_RAW, OTHER = "a\r\nb\rc", "a\nb\nc"
NAMED = [{"name": "default", "template": RAW}, {"name": "tool_use", "template": OTHER_RAW}]
TARGETS = ["gguf", "mlx", "onnx", "openvino", "safetensors"]


def settings_of(folder):
    return json.loads((folder / "tokenizer_config.json").read_bytes())


def place(folder, where):
    """A copy of the fixture with the template in one of the places where there may be one."""
    shutil.copytree(FIXTURES / "tiny-phi3", folder)
    settings = settings_of(folder)
    del settings["chat_template"]
    if where in ("string", "list", "dict"):
        named = {entry["name"]: entry["template"] for entry in NAMED}
        settings["chat_template"] = {"string": RAW, "list": NAMED, "dict": named}[where]
    elif where == "json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": RAW}))
    else:
        (folder / "chat_template.jinja").write_bytes(RAW.encode())
        if where == "files":
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / "tool_use.jinja").write_bytes(OTHER_RAW.encode())
    # Line ends of other texts are theirs: a token may be one.
    settings["extra"] = "kept\r\nas it is"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


PLACES = ["string", "list", "dict", "json", "jinja", "files"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("to", TARGETS)
def test_every_target_of_every_place_has_line_feeds(where, to, tmp_path):
    source = place(tmp_path / "source", where)
    out = tmp_path / ("model.gguf" if to == "gguf" else "model")
    phiconv.convert(source, out, to=to, quant="f32")
    expected = {"default": TEMPLATE} | ({"tool_use": OTHER} if where in ("list", "dict", "files") else {})
    if to == "gguf":
        assert dict(phiconv.open_model(out).tokenizer.chat_templates) == expected
        fields = GGUFReader(out).fields
        assert fields["tokenizer.chat_template"].contents() == TEMPLATE
        return
    assert (out / "chat_template.jinja").read_bytes() == TEMPLATE.encode()
    settings = settings_of(out)
    template = settings["chat_template"]
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    assert template == ({**expected} if isinstance(template, dict) else TEMPLATE)
    assert settings["extra"] == "kept\r\nas it is"
    if to == "openvino":
        assert "&#13;" not in (out / "openvino_tokenizer.xml").read_text()


def gguf_with_templates(tmp_path):
    """A GGUF with carriage returns in its templates, which phiconv itself would not write."""
    source = place(tmp_path / "source", "list")
    settings = settings_of(source)
    for entry in settings["chat_template"]:
        entry["template"] = entry["template"].replace("\r", "\1")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    path = tmp_path / "source.gguf"
    phiconv.convert(source, path, quant="f32")
    data = path.read_bytes()
    for text in (RAW, OTHER_RAW):
        assert data.count(text.replace("\r", "\1").encode()) == 1
        data = data.replace(text.replace("\r", "\1").encode(), text.encode())
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("to", TARGETS)
def test_templates_of_a_gguf_have_line_feeds(to, tmp_path):
    source = gguf_with_templates(tmp_path)
    assert GGUFReader(source).fields["tokenizer.chat_template"].contents() == RAW
    out = tmp_path / ("model.gguf" if to == "gguf" else "model")
    phiconv.convert(source, out, to=to, quant="f32")
    if to == "gguf":
        fields = GGUFReader(out).fields
        assert fields["tokenizer.chat_template"].contents() == TEMPLATE
        assert fields["tokenizer.chat_template.tool_use"].contents() == OTHER
        return
    assert (out / "chat_template.jinja").read_bytes() == TEMPLATE.encode()
    settings = settings_of(out)
    assert {entry["name"]: entry["template"] for entry in settings["chat_template"]} == {
        "default": TEMPLATE,
        "tool_use": OTHER,
    }


def test_tokens_keep_their_carriage_returns(tmp_path):
    source = place(tmp_path / "source", "string")
    settings = settings_of(source)
    settings["added_tokens_decoder"]["2060"] = {"content": "<a\r\n>", "special": True}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    phiconv.convert(source, tmp_path / "model", to="safetensors")
    phiconv.convert(source, tmp_path / "model.gguf")
    assert settings_of(tmp_path / "model")["added_tokens_decoder"]["2060"]["content"] == "<a\r\n>"
    for name in ("model", "model.gguf"):
        assert phiconv.open_model(tmp_path / name).tokenizer.tokens[2060] == "<a\r\n>"
