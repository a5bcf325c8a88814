"""Added tokens that a runtime finds otherwise than the library, and bytes without a token, are told of."""

from __future__ import annotations

import json
import shutil

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import UnsupportedModelError
from phiconv_formats.tokenizers.folder import read_tokenizer

RUNTIMES = {"gguf": "llama.cpp", "onnx": "ONNX Runtime GenAI", "openvino": "OpenVINO"}
NORMALIZED, ALONE = "in normalized text", "only as a word of its own"
BEFORE, AFTER = (f"together with the white space {side} it" for side in ("before", "after"))
LEFT = "without the white space after it"  # a Phi-3 strips for llama.cpp, every token but a few

CASES = {  # source, flags, and what is told for each runtime
    "plain": ("tiny-phi3", {}, {"gguf": [LEFT]}),
    "normalized": ("tiny-phi3", {"normalized": True}, {key: [NORMALIZED] for key in RUNTIMES} | {
        "gguf": [NORMALIZED, LEFT]
    }),
    "alone": ("tiny-phi3", {"single_word": True, "rstrip": True}, {key: [ALONE] for key in RUNTIMES}),
    "left": ("tiny-phi3", {"lstrip": True, "rstrip": True}, {"gguf": [BEFORE], "onnx": [BEFORE]}),
    "right": ("tiny-phi3", {"rstrip": True}, {}),
    "all": (
        "tiny-phi3",
        {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True},
        {
            "gguf": [ALONE, NORMALIZED, BEFORE],
            "onnx": [ALONE, NORMALIZED, BEFORE],
            "openvino": [ALONE, NORMALIZED],
        },
    ),
    "bytes normalized": ("tiny-phi4mini", {"normalized": True}, {}),
    "bytes alone": ("tiny-phi4mini", {"single_word": True}, {key: [ALONE] for key in RUNTIMES}),
    "bytes left": ("tiny-phi4mini", {"lstrip": True}, {"gguf": [BEFORE], "onnx": [BEFORE]}),
}  # fmt: skip


def with_token(folder, source, flags, content="<mine>"):
    """A copy of a fixture as `add_tokens` of transformers leaves it."""
    shutil.copytree(FIXTURES / source, folder)
    token = {"content": content, "special": False, "lstrip": False, "rstrip": False}
    token |= {"single_word": False, "normalized": False} | flags
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    number = 1 + max(entry["id"] for entry in data["added_tokens"])
    data["added_tokens"].append({"id": number, **token})
    path.write_text(json.dumps(data), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["added_tokens_decoder"][str(number)] = token
    path.write_text(json.dumps(settings), encoding="utf-8")
    return number


def told(notes, runtime):
    """What is said of <mine>, or of it with others."""
    own = [n for n in notes if f"{runtime} does not do: ids of texts" in n]
    return [note.split("should be found ")[1].split(",")[0] for note in own if "<mine>" in note]


@pytest.mark.parametrize("to", [*RUNTIMES, "mlx", "safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_is_told_for_every_target(case, to, tmp_path):
    source, flags, expected = CASES[case]
    number = with_token(tmp_path / "source", source, flags)
    out = tmp_path / ("Phi-3.gguf" if to == "gguf" else "model")
    result = phiconv.convert(tmp_path / "source", out, to=to, quant="f32")
    notes = result.plan.package.notes
    assert told(notes, RUNTIMES.get(to)) == expected.get(to, [])
    if to == "openvino":
        assert (out / "openvino_tokenizer.xml").is_file()
    if to not in ("gguf", "openvino"):  # the files say it all, whatever the runtime does with it
        config = json.loads((out / "config.json").read_text())
        token = next(t for t in read_tokenizer(out, vocab_size=2112, config=config).added if t.id == number)
        assert all(getattr(token, flag) for flag in flags)


def test_several_tokens_are_counted():
    plan = phiconv.plan(FIXTURES / "tiny-phi4mini", "model.gguf", quant="f32")
    (note,) = [note for note in plan.package.notes if "added token" in note]
    assert note.endswith("which llama.cpp does not do: ids of texts with it differ")
    assert "added tokens, as '<|" in note
    assert AFTER in note


def without(folder, pieces, source="tiny-phi3"):
    """A copy of the fixture in which the tokens have other texts, so that the ids are as before."""
    shutil.copytree(FIXTURES / source, folder)
    (folder / "tokenizer.model").unlink()
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    data["model"]["vocab"] = {pieces.get(token, token): i for token, i in vocabulary.items()}
    path.write_text(json.dumps(data), encoding="utf-8")
    return folder


ALL = [f"<0x{byte:02X}>" for byte in range(256)]
OTHER = {  # which byte tokens have another text, and how many bytes then have none
    "none": ({piece: f"[{piece}" for piece in ALL}, 163),
    "no line feed": ({"<0x0A>": "[x]"}, 1),
    "no last bytes": ({piece: f"[{piece}" for piece in ALL[0xF0:]}, 16),
    "small letters": ({piece: f"<0x{piece[3:5].lower()}>" for piece in ALL}, None),
    "no byte of a letter": ({"<0x41>": "[x]"}, 0),
    "all": ({}, 0),
}


@pytest.mark.parametrize("to", ["gguf", "onnx", "mlx", "safetensors"])
@pytest.mark.parametrize("case", OTHER)
def test_bytes_without_a_token_are_refused_where_the_runtime_needs_them(case, to, tmp_path):
    pieces, missing = OTHER[case]
    source = without(tmp_path / "source", pieces)
    out = tmp_path / ("model.gguf" if to == "gguf" else "model")
    if missing == 0 or to not in ("gguf", "onnx"):
        phiconv.convert(source, out, to=to, quant="f32")
        assert out.exists()
        return
    with pytest.raises(UnsupportedModelError) as caught:
        phiconv.convert(source, out, to=to, quant="f32")
    message = str(caught.value)
    assert ("llama.cpp aborts" if to == "gguf" else "GenAI makes the id -1") in message
    assert "take a tokenizer with all byte tokens" in message
    if missing == 1:
        assert "the byte <0x0A> has no token" in message
    assert not out.exists()
