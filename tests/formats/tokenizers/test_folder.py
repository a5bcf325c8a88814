"""Tokenizer files are read as the libraries that wrote them mean them; files that lie are refused."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from paths import FIXTURES
from phiconv.errors import ConfigError, MalformedFileError, MissingFileError
from phiconv.tokenization.tokenizer import TokenType
from phiconv_formats.tokenizers import tokenizer_json
from phiconv_formats.tokenizers.folder import read_tokenizer
from phiconv_formats.tokenizers.sentencepiece_model import read_sentencepiece_model

PHI3, PHI4MINI = FIXTURES / "tiny-phi3", FIXTURES / "tiny-phi4mini"
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "vocab.json",
         "special_tokens_map.json", "merges.txt", "generation_config.json")  # fmt: skip


def read(folder, vocab_size=2112, **config):
    return read_tokenizer(folder, vocab_size=vocab_size, config=config)


@pytest.fixture
def copy(tmp_path):
    """Copies a fixture's tokenizer files; returns the folder."""

    def make(source, *names):
        for name in names or FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, tmp_path / name)
        return tmp_path

    return make


def edit(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def put(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


# -------------------------------------------------------------------------------------- what files say


def test_phi3():
    tokenizer = read(PHI3)
    assert tokenizer.kind == "sentencepiece"
    assert tokenizer.tokens[:4] == ("<unk>", "<s>", "</s>", "<0x00>")
    assert [tokenizer.types[i] for i in (0, 1, 2, 3, 259, 2048)] == [
        TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.BYTE, TokenType.NORMAL,
        TokenType.CONTROL,
    ]  # fmt: skip
    assert len(tokenizer) == len(tokenizer.types) == len(tokenizer.scores) == 2059
    assert dict(tokenizer.special_ids) == {"bos": 1, "eos": 2048, "unk": 0, "pad": 2048}
    assert (tokenizer.add_bos, tokenizer.add_eos) == (False, False)
    assert tokenizer.eos_ids == (2048, 2049, 2055)
    assert tokenizer.sentencepiece.add_dummy_prefix
    assert tokenizer.sentencepiece.byte_fallback
    assert tokenizer.sentencepiece.charsmap == b""
    assert [token.rstrip for token in tokenizer.added] == [False, False, True, False] + [True] * 10
    assert "<|user|>" in tokenizer.chat_templates["default"]


def test_phi4mini():
    tokenizer = read(PHI4MINI)
    assert (tokenizer.kind, tokenizer.split.name) == ("byte-bpe", "o200k")
    assert tokenizer.scores == ()
    assert tokenizer.merges[:2] == (("Ġ", "Ġ"), ("Ġ", "t"))
    assert (tokenizer.tokens[2048], tokenizer.types[2048]) == (None, TokenType.UNUSED)
    assert tokenizer.tokens[2070] == "<|end|>"
    assert tokenizer.types[2073] == TokenType.USER_DEFINED
    assert tokenizer.eos_ids == (2070, 2049)


def test_the_pieces_are_those_that_sentencepiece_reads():
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(str(PHI3 / "tokenizer.model"))
    model = read_sentencepiece_model(PHI3 / "tokenizer.model")
    assert len(model.pieces) == processor.vocab_size()
    for i, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.types, strict=True)):
        assert (piece, score) == (processor.id_to_piece(i), processor.get_score(i))
        assert processor.is_unknown(i) == (kind == TokenType.UNKNOWN)
        assert processor.is_control(i) == (kind == TokenType.CONTROL)
        assert processor.is_byte(i) == (kind == TokenType.BYTE)


def test_scores_from_tokenizer_json_order_pieces_like_their_own_scores(copy):
    folder = copy(PHI3, "tokenizer.json", "tokenizer_config.json")
    made, own = read(folder), read(PHI3)
    assert made.tokens == own.tokens
    assert [*map(int, made.types)] == [*map(int, own.types)]
    merged = {own.tokens.index(left + right) for left, right in own.merges}
    assert sorted(merged, key=lambda i: -made.scores[i]) == sorted(merged, key=lambda i: (-own.scores[i], i))


def test_vocabulary_and_merges_without_tokenizer_json(copy):
    folder = copy(PHI4MINI, "merges.txt", "tokenizer_config.json", "added_tokens.json")
    vocabulary = json.loads((PHI4MINI / "vocab.json").read_text(encoding="utf-8"))
    merges = (PHI4MINI / "merges.txt").read_text(encoding="utf-8").split("\n")
    put(folder, "vocab.json", vocabulary)
    with pytest.raises(ConfigError, match=r"only tokenizer\.json says how"):
        read(folder)
    words = {token: i for token, i in vocabulary.items() if i < 256 or token.startswith("Ġ")}
    kept = [m for m in merges[1:] if {*m.split(), m.replace(" ", "")} <= {*words, ""}]
    put(folder, "vocab.json", words)
    put(folder, "merges.txt", "\n".join([merges[0], *kept]))
    tokenizer = read(folder)
    assert tokenizer.split.name == "gpt2"
    assert tokenizer.tokens[2070] == "<|end|>"
    assert len(tokenizer.merges) == len(kept) - 1  # the last line is empty
    assert dict(tokenizer.special_ids) == {"bos": 2049, "eos": 2049, "unk": 2049, "pad": 2049}
    (folder / "merges.txt").unlink()
    with pytest.raises(MissingFileError):
        read(folder)


def test_no_files_no_tokenizer(tmp_path):
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<s>"})
    assert read(tmp_path) is None


def test_config_fills_what_the_tokenizer_does_not_say(copy):
    folder = copy(PHI4MINI)
    edit(
        folder / "tokenizer_config.json", lambda data: [data.pop(f"{r}_token") for r in ("bos", "pad", "unk")]
    )
    (folder / "special_tokens_map.json").unlink()
    tokenizer = read(folder, bos_token_id=2068, eos_token_id=2070, pad_token_id=999_999, unk_token_id=[3])
    assert list(tokenizer.special_ids.items()) == [("eos", 2049), ("bos", 2068)]
    assert read(folder, text_config={"pad_token_id": 5}).special_ids["pad"] == 5


def test_special_tokens_map_is_the_last_resort(copy):
    folder = copy(PHI4MINI)
    edit(folder / "tokenizer_config.json", lambda data: data.pop("pad_token"))
    assert read(folder).special_ids["pad"] == 2049


@pytest.mark.parametrize(
    ("single", "pair", "added", "eos"),
    [
        ("<s> A", "<s> A <s> B", {"bos": True, "sep": False, "eos": False}, 2048),
        ("A </s>", "A </s> B </s>", {"eos": True, "sep": False, "bos": False}, 2),
        ("A", "A B", {"bos": False, "eos": False}, 2048),
        ("<s> A <eos>", "<s> A <eos> <s> B <eos>", {"bos": True, "eos": True, "sep": False}, 2048),
        ("A", "A <eos> B", {"sep": True, "bos": False, "eos": False}, 2048),
    ],
)  # fmt: skip
def test_templates_of_the_post_processor(copy, single, pair, added, eos):
    def template(text):
        return [
            {"Sequence" if item in "AB" else "SpecialToken": {"id": item, "type_id": 0}}
            for item in text.replace("<eos>", "<|endoftext|>").split()
        ]

    folder = copy(PHI3)
    texts = {"single": template(single), "pair": template(pair)}
    names = {item["SpecialToken"]["id"] for item in texts["pair"] if "SpecialToken" in item}
    known = {name: {"id": name, "ids": [1], "tokens": [name]} for name in names}
    processor = {"type": "TemplateProcessing", **texts, "special_tokens": known}
    edit(folder / "tokenizer.json", lambda data: data.update(post_processor=processor))
    tokenizer = read(folder)
    assert list(tokenizer.add_special.items()) == list(added.items())
    assert tokenizer.special_ids["eos"] == eos
    assert ("eot" in tokenizer.special_ids) == (eos == 2)


def test_chat_templates(copy):
    folder = copy(PHI4MINI)
    edit(folder / "tokenizer_config.json", lambda data: data.pop("chat_template"))
    assert read(folder).chat_templates == {}
    put(folder, "chat_template.json", {"chat_template": "json"})
    assert read(folder).chat_templates == {"default": "json"}
    put(folder, "chat_template.jinja", "{{ jinja }}")
    (folder / "additional_chat_templates").mkdir()
    put(folder, "additional_chat_templates/tool_use.jinja", "tools")
    assert read(folder).chat_templates == {"default": "{{ jinja }}", "tool_use": "tools"}
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    edit(folder / "tokenizer_config.json", lambda data: data.update(chat_template=named))
    assert read(folder).chat_templates == {"default": "a", "rag": "b"}


# ------------------------------------------------------------------------------------ what is refused


def model(data):
    return data["model"]


TEMPLATE = {"type": "TemplateProcessing", "single": 3}
WRONG = [
    ("no object", lambda d: d.update(model=[]), "model: expected an object"),
    ("no vocabulary", lambda d: model(d).pop("vocab"), "model.vocab: expected an object"),
    ("no merges", lambda d: model(d).update(merges={}), "model.merges: expected an array"),
    ("unigram", lambda d: model(d).update(type="Unigram"), "only BPE is supported"),
    ("id twice", lambda d: model(d)["vocab"].update(zz=5), "the id 5 is there twice"),
    ("id negative", lambda d: model(d)["vocab"].update(zz=-1), "the id -1 has no row"),
    ("id too large", lambda d: model(d)["vocab"].update(zz=2112), "the id 2112 has no row"),
    ("id is true", lambda d: model(d)["vocab"].update(zz=True), "expected an integer, found true or false"),
    ("id is text", lambda d: model(d)["vocab"].update(zz="7"), "expected an integer, found a string"),
    ("merge of strangers", lambda d: model(d)["merges"].append("zq qz"), "needs the token 'zq'"),
    ("merge of three", lambda d: model(d)["merges"].append("a b c"), "a merge is not two tokens"),
    ("merge of objects", lambda d: model(d)["merges"].append([{}, []]), "a merge is not two tokens"),
    ("suffix", lambda d: model(d).update(end_of_word_suffix="</w>"), "are not supported"),
    ("added id", lambda d: d["added_tokens"][0].update(id=2**31), "has the id 2147483648"),
    ("added flag", lambda d: d["added_tokens"][0].update(rstrip=1), "rstrip: expected true or false"),
    ("added empty", lambda d: d["added_tokens"][0].update(content=""), "is empty"),
    ("pre-tokenizer", lambda d: d.update(pre_tokenizer=None), "neither a byte-level tokenizer"),
    ("split", lambda d: d.update(pre_tokenizer={"type": ["ByteLevel"]}), "expected a component"),
    ("post-processor", lambda d: d["post_processor"].update(TEMPLATE), "expected an array"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_tokenizer_json(copy, refused, change, says):
    folder = copy(PHI4MINI)
    edit(folder / "tokenizer.json", change)
    refused(read, folder, says=says, kind=ConfigError)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token: expected a string"),
        ("tokenizer_config.json", {"bos_token": {"content": []}}, "bos_token.content: expected a string"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {}}}, "is not a token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": 3}}, "decoder.9: expected an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, None),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template: expected a string"),
        ("tokenizer_config.json", {"chat_template": [5]}, "chat_template[0]: expected an object"),
        ("added_tokens.json", {"x": 1 << 40}, "has no row in the embedding"),
        ("added_tokens.json", {"x": 65}, "the added token 'x' has the id of 'b', which a merge needs"),
        ("generation_config.json", {"eos_token_id": ["2"]}, "eos_token_id: expected an integer"),
        ("generation_config.json", {"eos_token_id": -2}, "a token id of -2"),
    ],
)  # fmt: skip
def test_wrong_settings(copy, refused, name, change, says):
    folder = copy(PHI4MINI)
    edit(folder / name, lambda data: data.update(change))
    if says is None:  # empty is the same as nothing
        assert read(folder) is not None
    else:
        refused(read, folder, says=says, kind=ConfigError)


def test_wrong_arguments(copy, refused):
    folder = copy(PHI4MINI)
    refused(lambda: read(folder, vocab_size=2**40), says="a vocabulary of 1099511627776 tokens")
    refused(lambda: read(folder, sep_token_id=-1), says="a token id of -1")


def test_large_and_deep_files(copy, refused, monkeypatch):
    folder = copy(PHI4MINI)
    put(folder, "tokenizer_config.json", "[" * 100_000)
    refused(read, folder, says="nested too deeply", kind=MalformedFileError)
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(500_000_000)  # a hole: it takes no space
    refused(read, folder, says="at most", kind=MalformedFileError)
    monkeypatch.setattr(tokenizer_json, "MAX_BYTES", 10)
    refused(read, copy(PHI3), says="at most 10", kind=MalformedFileError)


def test_files_of_two_models(copy, refused):
    folder = copy(PHI3)
    edit(
        folder / "tokenizer.json", lambda d: model(d)["vocab"].update({"zz": model(d)["vocab"].pop("\u2581")})
    )
    edit(folder / "tokenizer.json", lambda d: model(d).update(merges=[]))
    refused(read, folder, says="and another in tokenizer.json", kind=ConfigError)
    folder = copy(PHI3)
    refused(lambda: read(folder, vocab_size=2050), says="has no row in the embedding", kind=ConfigError)
    (folder / "added_tokens.json").unlink()
    refused(lambda: read(folder, vocab_size=2050), says="has the id 20", kind=ConfigError)


# --------------------------------------------------------------------------------------- tokenizer.model


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def piece(text, score=0.0, kind=1):
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


BPE = field(2, field(3, 2) + field(35, 1))


def test_a_small_model(tmp_path):
    normalizer = field(3, field(2, b"map") + field(3, 0) + field(4, 1) + field(99, b"unknown"))
    pieces = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("\u2581a", -1.5) + field(1, field(1, b"b"))
    (tmp_path / "tokenizer.model").write_bytes(pieces + BPE + normalizer)
    tokenizer = read(tmp_path, vocab_size=8, bos_token_id=1)
    assert tokenizer.tokens == ("<unk>", "<s>", "\u2581a", "b")
    assert tokenizer.scores == (0.0, 0.0, -1.5, 0.0)
    assert tokenizer.types == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.NORMAL, TokenType.NORMAL)
    options = tokenizer.sentencepiece
    assert (options.add_dummy_prefix, options.remove_extra_whitespaces, options.charsmap) == (
        False,
        True,
        b"map",
    )
    assert dict(tokenizer.special_ids) == {"bos": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it has no pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7fab", "bytes are left"),
        (b"\xff" * 20, "a number of more than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "a field with the number 0"),
        (piece("a")[:-1], "bytes are left"),
        (piece("a") + piece("a") + BPE, "a piece is there twice"),
        (piece("a", kind=9) + BPE, "has the type 9"),
        (piece("a", float("nan")) + BPE, "score of piece 0 is nan"),
        (field(1, field(1, b"\xff")) + BPE, "not UTF-8"),
        (field(1, field(1, b"")) + BPE, "is empty"),
        (field(1, 5), "a number where bytes belong"),
        (piece("a") + field(2, field(3, b"x")), "bytes where a number belongs"),
        (piece("a"), "type unigram, and only BPE"),
        (b"!! a text, not a model", "not a SentencePiece model"),
        (b"".join(piece(str(i)) for i in range(9)) + BPE, "9 pieces, and the embedding has 8 rows"),
    ],
)
def test_wrong_models(tmp_path, refused, data, says):
    (tmp_path / "tokenizer.model").write_bytes(data)
    refused(lambda: read(tmp_path, vocab_size=8), says=says)
