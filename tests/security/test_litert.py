"""Hostile LiteRT files: each is refused with one line that names the file and what is wrong in it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError
from phiconv_formats.litert.container import HEADER, LLM_METADATA, MODEL, TOKENIZER, Section, header
from phiconv_formats.litert.flatbuffer import Number, Table, Tables, Text, Vector, finish, int32s
from phiconv_formats.litert.schema import IDENTIFIER, ElementType

HUGE = 2**31 - 1


@pytest.fixture
def write(tmp_path):
    """Writes bytes to a file of this name."""

    def write_(data, name="x.tflite"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_


def model(tensors=(), buffers=(), operators=(), codes=(), **others):
    """A model of one subgraph, as bytes."""
    subgraph = Table({0: Tables(list(tensors)), 3: Tables(list(operators)), 4: Text("decode")})
    fields = {
        0: Number("I", 3),
        1: Tables(list(codes)),
        2: Tables([subgraph]),
        4: Tables([Table({}), *buffers]),
        7: Tables([Table({2: Text("decode"), 4: Number("I", 0)})]),
        **{int(key[1:]): value for key, value in others.items()},
    }
    return bytes(finish(Table(fields), IDENTIFIER).data)


def tensor(name="decode/w.weight", shape=(4, 4), kind=ElementType.FLOAT32, buffer=1, quantization=None):
    fields = {0: int32s(shape), 1: Number("b", kind), 2: Number("I", buffer), 3: Text(name)}
    return Table(fields | ({} if quantization is None else {4: quantization}))


def data(size):
    return Table({0: Vector(np.zeros(size, np.uint8))})


def behind(offset, size):
    return Table({1: Number("Q", offset), 2: Number("Q", size)})


def rows(scales=4, dimension=0, zeros=4, zero=0):
    return Table(
        {
            2: Vector(np.ones(scales, np.float32)),
            3: Vector(np.full(zeros, zero, np.int64)),
            6: Number("i", dimension),
        }
    )


def blocks(size, scales=1, zero_points=-1):
    details = {0: Number("i", scales), 1: Number("i", zero_points), 2: Number("i", size)}
    return Table({4: Number("B", 2), 5: Table(details)})


INT8, INT4 = ElementType.INT8, ElementType.INT4
MODELS = {
    "a buffer there is not": (model([tensor(buffer=9)]), "buffer 9, and there are 1"),
    "a buffer beyond the end": (
        model([tensor()], [behind(64, 1 << 40)]),
        "ends beyond the end of the file",
    ),
    "an offset that wraps around": (model([tensor()], [behind(2**64 - 32, 64)]), "ends beyond the end"),
    "too few bytes": (model([tensor()], [data(60)]), "60 bytes are not the size of tensor w.weight"),
    "a huge shape": (model([tensor(shape=(HUGE, HUGE, HUGE))], [data(64)]), "a constant of shape"),
    "a negative shape": (model([tensor(shape=(-4, -4))], [data(64)]), "a constant of shape"),
    "a rank of 9": (model([tensor(shape=(1,) * 9)], [data(4)]), "9 numbers, where there are at most 8"),
    "an operator of no kind": (
        model([tensor()], [data(64)], [Table({0: Number("I", 7)})]),
        "an operator of kind 7, and there are 0",
    ),
    "a long name": (
        model(x7=Tables([Table({2: Text("n" * 5000), 4: Number("I", 0)})])),
        "a name of 5000 bytes",
    ),
    "long names": (
        model([tensor(name="n" * 4090)] * 9000, [data(64)]),
        "names of more than 33554432 bytes together",
    ),
    "a signature of no subgraph": (
        model(x7=Tables([Table({2: Text("decode"), 4: Number("I", 5)})])),
        "it has no subgraph 5",
    ),
    "many signatures": (
        model(x7=Tables([Table({2: Text(f"s{i}")}) for i in range(70)])),
        "more than 64 signatures",
    ),
}
STORED_OTHERWISE = {
    "too few scales": (tensor(kind=INT8, quantization=rows(scales=3)), 16),
    "scales for columns": (tensor(kind=INT8, quantization=rows(dimension=1)), 16),
    "zero points": (tensor(kind=INT8, quantization=rows(zero=3)), 16),
    "no scales": (tensor(kind=INT8), 16),
    "blocks of 0": (tensor(kind=INT4, quantization=blocks(0)), 8),
    "blocks of less than nothing": (tensor(kind=INT4, quantization=blocks(-4)), 8),
    "blocks of more than a row": (tensor(kind=INT4, quantization=blocks(32)), 8),
    "blocks whose scales are not there": (tensor(kind=INT4, quantization=blocks(4, scales=77)), 8),
    "blocks with zero points": (tensor(kind=INT4, quantization=blocks(4, zero_points=0)), 8),
    "three dimensions": (tensor(kind=INT8, shape=(1, 4, 4), quantization=rows()), 16),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(write, refused, name):
    content, says = MODELS[name]
    refused(phiconv.open_model, write(content), says=says, kind=MalformedFileError)


@pytest.mark.parametrize("name", STORED_OTHERWISE)
def test_integers_that_are_stored_otherwise(write, refused, name):
    stored, size = STORED_OTHERWISE[name]
    path = write(model([stored], [data(size)]))
    refused(
        phiconv.open_model,
        path,
        says="stored in a way that phiconv does not read",
        kind=UnsupportedModelError,
    )


def test_two_constants_of_one_name(write, refused):
    path = write(model([tensor(), tensor()], [data(64)]))
    refused(phiconv.open_model, path, says="two constants are called so", kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0\0\0\0TFL3", "without a list of its fields"),
        (struct.pack("<I", 8) + b"TFL3" + struct.pack("<iH", -HUGE, 0), "leads out of it"),
        (struct.pack("<I", HUGE) + b"TFL3" + bytes(64), "leads out of it"),
        (struct.pack("<I", 12) + b"TFL3" + struct.pack("<HHi", 3, 0, 4) + bytes(32), "without a list"),
        (b"abcdefghijklmnop", "it does not begin as one"),
        (b"", "it ends within a table"),
    ],
)
def test_what_is_no_flatbuffer(write, refused, content, says):
    refused(phiconv.open_model, write(content), says=says, kind=MalformedFileError)


LINEAR = (
    "x.ExportableModule/y.LlamaForCausalLM_model/z.LlamaModel_model/z.LlamaDecoderLayer_0/z.Linear_q_proj"
)


def products(count, outputs):
    """A model whose operations give these tensors, each of a matrix of its own; and their operator's kind."""
    matrices = [tensor(name=f"constant{i}", buffer=i + 1) for i in range(count)]
    results = [Table({0: int32s([4]), 3: Text(name)}) for name in outputs]
    calls = [
        Table({0: Number("I", 0), 1: int32s([-1, i]), 2: int32s([count + i])}) for i in range(len(outputs))
    ]
    codes = [Table({0: Number("b", 9), 3: Number("i", 9)})]
    return model([*matrices, *results], [data(64)] * count, calls, codes)


@pytest.mark.parametrize(
    ("content", "says", "kind"),
    [
        (products(2, [LINEAR, LINEAR]), "two constants are this weight", MalformedFileError),
        (
            products(2, [LINEAR, LINEAR.replace("Llama", "Phi").replace("q_proj", "k_proj")]),
            "several models in one graph: LlamaForCausalLM, PhiForCausalLM",
            UnsupportedModelError,
        ),
        (products(1, [LINEAR]), "the embedding is in another graph", UnsupportedModelError),
        (
            products(1, [LINEAR.replace("q_proj", "embed")]),
            "the graph does not say the shape of model.embed_tokens with certainty",
            MissingFileError,
        ),
    ],
)
def test_operations_whose_names_are_wrong(write, refused, content, says, kind):
    refused(phiconv.open_model, write(content), says=says, kind=kind)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff" * 20, "a number without an end"), (b"\x12\x7f", "a field of 127 bytes, where 0 are left")],
)
def test_metadata_that_is_none(write, refused, content, says):
    """Of a file of another converter: phiconv's own says elsewhere what is to be known."""
    graph = products(1, [LINEAR.replace("q_proj", "embed")])
    path = write(container((LLM_METADATA, content), (MODEL, graph)), "x.litertlm")
    refused(phiconv.open_model, path, says=f"not LiteRT-LM's metadata: {says}")


def test_many_references_to_one_table_keep_nobody_busy(write, refused):
    """Every entry of a list of millions leads to the same table."""
    count = 1_000_000
    whole = bytearray(model())
    start = len(whole) + -len(whole) % 4
    whole += bytes(start - len(whole)) + struct.pack("<I", count)
    end = start + 4 + 4 * count
    whole += (end - np.arange(start + 4, end, 4, dtype=np.uint32)).astype("<u4").tobytes()
    whole += struct.pack("<HHi", 4, 4, 4)  # an empty table, whose vtable comes first
    whole[end : end + 0] = b""
    table = end + 4
    offsets = (table - np.arange(start + 4, end, 4)).astype("<u4")
    whole[start + 4 : end] = offsets.tobytes()
    root = struct.unpack_from("<I", whole, 0)[0]
    vtable = root - struct.unpack_from("<i", whole, root)[0]
    field = root + struct.unpack_from("<H", whole, vtable + 4 + 2)[0]  # the list of operator codes
    struct.pack_into("<I", whole, field, start - field)
    path = write(bytes(whole))
    with pytest.raises(MalformedFileError, match="tables, which no model has"):
        phiconv.open_model(path)


# ----------------------------------------------------------------------------------------------- containers


def container(*sections):
    """A .litertlm of sections: their kinds and bytes."""
    top, places = header([Section(kind, len(content), {}) for kind, content in sections])
    whole = bytearray(top)
    for place, (_, content) in zip(places, sections, strict=True):
        whole += bytes(place - len(whole)) + content
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"LITERTLM" + bytes(24), "a header of 0 bytes"),
        (b"LITERTLM" + bytes(16) + struct.pack("<Q", 2**63), "a header of"),
        (b"LITERTLM", "the file ends at byte 8"),
        (container((LLM_METADATA, b"abc")), "there is no model in it"),
        (container((MODEL, b"abc")), "it ends within a table"),
        (container((MODEL, bytes(100)))[:-50], "a section at"),
        (container(*[(1, b"")] * 70), "more than 64 sections"),
    ],
)
def test_containers(write, refused, content, says):
    refused(phiconv.open_model, write(content, "x.litertlm"), says=says, kind=MalformedFileError)


BOMB = struct.pack("<Q", 1 << 20) + zlib.compress(bytes(1 << 24))


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (BOMB, "not of the 1048576 bytes that it says"),
        (struct.pack("<Q", 1 << 40) + zlib.compress(b"{}"), "a tokenizer of 1099511627776 bytes"),
        (struct.pack("<Q", 2) + b"no zlib", "a damaged tokenizer"),
        (struct.pack("<Q", 2) + zlib.compress(b"{}")[:-6], "a damaged tokenizer|not of the 2 bytes"),
        (b"", "not of the 0 bytes|tokenizer"),
    ],
)
def test_tokenizers(tmp_path, write, stored, says):
    phiconv.convert(FIXTURES / "tiny-phi4mini", tmp_path / "m.tflite", quant="wi4")
    graph = (tmp_path / "m.tflite").read_bytes()
    path = write(container((TOKENIZER, stored), (MODEL, graph)), "x.litertlm")
    with pytest.raises(MalformedFileError, match=says) as caught:
        phiconv.open_model(path)
    assert caught.value.path == path


def test_an_error_in_a_tokenizer_names_the_file_that_has_it(tmp_path, write):
    phiconv.convert(FIXTURES / "tiny-phi4mini", tmp_path / "m.tflite", quant="wi4")
    graph = (tmp_path / "m.tflite").read_bytes()
    text = b"{}"
    stored = struct.pack("<Q", len(text)) + zlib.compress(text)
    path = write(container((TOKENIZER, stored), (MODEL, graph)), "x.litertlm")
    with pytest.raises(phiconv.PhiconvError) as caught:
        phiconv.open_model(path)
    assert caught.value.path == path
    assert "tokenizer.json" in str(caught.value)


def test_a_header_that_points_behind_itself(write, refused):
    whole = bytearray(container((MODEL, bytes(64))))
    struct.pack_into("<I", whole, HEADER, 0x7FFFFFFF)
    refused(phiconv.open_model, write(bytes(whole), "x.litertlm"), says="leads out", kind=MalformedFileError)
