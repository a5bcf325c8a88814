"""The GGUF reader and the serialized header against the gguf package, in both directions."""

from __future__ import annotations

import pickle  # of our own objects, between our own processes
import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from hypothesis import given, settings
from hypothesis import strategies as st

import phiconv
from phiconv import ir
from phiconv.errors import MissingFileError, PhiconvError, UnsupportedModelError
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.types import GGML_TYPES
from phiconv_formats.gguf.values import (
    GgufValue,
    ValueType,
    serialize,
    serialize_header,
    serialize_kv,
    serialize_tensor_info,
)

NUMBERS = {
    ValueType.UINT8: 255, ValueType.INT8: -128, ValueType.UINT16: 65535, ValueType.INT16: -32768,
    ValueType.UINT32: 2**32 - 1, ValueType.INT32: -(2**31),
    ValueType.UINT64: 2**64 - 1, ValueType.INT64: -(2**63),
    ValueType.FLOAT32: 0.1, ValueType.FLOAT64: 0.1, ValueType.BOOL: True,
}  # fmt: skip


def numbers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def metadata():
    """One value of each type, one array of each."""
    result = {"general.architecture": GgufValue(ValueType.STRING, "phi3")}
    for kind, number in NUMBERS.items():
        exact = float(np.float32(number)) if kind is ValueType.FLOAT32 else number
        result[f"one.{kind.name}"] = GgufValue(kind, exact)
        result[f"many.{kind.name}"] = GgufValue(ValueType.ARRAY, [exact, type(number)(0), exact], kind)
    result["one.text"] = GgufValue(ValueType.STRING, "naïve \0 \n 😀")
    result["many.texts"] = GgufValue(ValueType.ARRAY, ["", "▁the", "Ġ"], ValueType.STRING)
    return result


def build(entries, tensors=()):
    """A file of metadata and float32 tensors, in phiconv's own bytes."""
    parts = [serialize_header(len(tensors), len(entries))]
    parts += [serialize_kv(key, value) for key, value in entries.items()]
    offset, data = 0, b""
    for name, array in tensors:
        parts.append(serialize_tensor_info(name, array.shape, 0, offset))
        data += array.tobytes() + bytes(-array.nbytes % 32)
        offset = len(data)
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + data


class TestAgainstThePackage:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "model.gguf"

    def write(self, path, fill):
        writer = GGUFWriter(path, "phi3")
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def test_reads_every_type_of_value(self, path):
        def fill(writer):
            for key, value in list(metadata().items())[1:]:
                writer.add_key_value(key, value.value, value.type, value.item_type)

        self.write(path, fill)
        file = open_gguf(path)
        assert file.version == 3
        assert file.metadata == metadata()

    def test_writes_every_type_of_value(self, path):
        path.write_bytes(build(metadata(), [("w", numbers((2, 3)))]))
        fields = GGUFReader(path).fields
        for key, value in metadata().items():
            contents = fields[key].contents()
            assert contents == value.value, key
            assert fields[key].types[0] == value.type
        assert open_gguf(path).metadata == metadata()

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
    @pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 4), (2, 2, 2, 2)])
    def test_reads_floats(self, path, dtype, shape):
        values = numbers(shape, dtype)

        def fill(writer):
            writer.add_tensor("first", numbers((3, 3)))
            writer.add_tensor("w", values)

        self.write(path, fill)
        tensor = open_gguf(path).tensors["w"]
        assert tensor.shape == shape
        rows = tensor.read(1, tensor.rows)
        assert rows.dtype == dtype
        assert np.array_equal(rows, values.reshape(tensor.rows, tensor.columns)[1:])

    def test_reads_bfloat16(self, path):
        values = numbers((3, 8))

        def fill(writer):
            kind = GGMLQuantizationType.BF16
            writer.add_tensor("w", quants.quantize(values, kind), raw_dtype=kind)

        self.write(path, fill)
        tensor = open_gguf(path).tensors["w"]
        assert tensor.shape == (3, 8)
        assert np.array_equal(tensor.read(0, 3), values.astype(ir.BF16.dtype))

    @pytest.mark.parametrize("encoding", [ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0])
    def test_reads_blocks(self, path, encoding):
        kind = GGMLQuantizationType[encoding.name.upper()]
        data = quants.quantize(numbers((5, 96)), kind)
        self.write(path, lambda writer: writer.add_tensor("w", data, raw_dtype=kind))
        file = open_gguf(path)
        tensor = file.tensors["w"]
        assert (tensor.shape, tensor.encoding) == ((5, 96), encoding)
        assert file.types["w"].name == kind.name
        copy = pickle.loads(pickle.dumps(tensor))  # noqa: S301
        blocks = copy.read(1, 4)
        assert isinstance(blocks, ir.Blocks)
        assert len(blocks) == 9
        # Block after block, weight after weight: what the package computes from the same bytes.
        weights = blocks.scales.astype(np.float32)[:, None] * (
            blocks.codes.transpose(1, 0, 2).reshape(9, 32).astype(np.float32) - encoding.offset
        )
        if blocks.minima is not None:
            weights += blocks.minima.astype(np.float32)[:, None]
        assert np.array_equal(weights.reshape(3, 96), quants.dequantize(data, kind)[1:4])

    def test_lists_types_that_it_cannot_decode(self, path):
        kind = GGMLQuantizationType.Q8_K
        data = np.zeros((2, 292), np.uint8)
        self.write(path, lambda writer: writer.add_tensor("w", data, raw_dtype=kind))
        file = open_gguf(path)
        assert file.types["w"] == GGML_TYPES[kind]
        assert file.tensors["w"].shape == (2, 256)
        assert file.tensors["w"].read(0, 2).tobytes() == bytes(584), "their bytes can be copied"
        with pytest.raises(UnsupportedModelError, match="w: stored as q8_k, which phiconv cannot decode"):
            phiconv.read(file.tensors["w"])

    def test_reads_another_alignment(self, path):
        def fill(writer):
            writer.add_custom_alignment(128)
            writer.add_tensor("v", numbers(3))
            writer.add_tensor("w", numbers((2, 2)))

        self.write(path, fill)
        file = open_gguf(path)
        assert file.alignment == 128
        assert file.data_offset % 128 == 0
        assert np.array_equal(file.tensors["w"].read(0, 2), numbers((2, 2)))

    def test_the_package_reads_our_tensors(self, path):
        tensors = [("a", numbers(7)), ("ünï", numbers((2, 3, 4)))]
        path.write_bytes(build(metadata(), tensors))
        for ours, theirs in zip(tensors, GGUFReader(path).tensors, strict=True):
            assert (theirs.name, theirs.data.shape) == (ours[0], ours[1].shape)
            assert np.array_equal(theirs.data, ours[1])
        for name, array in tensors:
            tensor = open_gguf(path).tensors[name]
            assert tensor.shape == array.shape
            assert np.array_equal(tensor.read(0, tensor.rows).ravel(), array.ravel())

    def test_reads_parts(self, tmp_path):
        writer = GGUFWriter(tmp_path / "m.gguf", "phi3", split_max_tensors=2)
        writer.add_uint32("phi3.block_count", 2)
        arrays = {f"t{i}": numbers((3, 4), seed=i) for i in range(5)}
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = open_gguf(tmp_path / "m-00001-of-00003.gguf")
        assert list(file.tensors) == list(file.types) == list(arrays)
        assert set(file.metadata) == {"general.architecture", "phi3.block_count"}
        assert len(file.files) == 3
        for name, array in arrays.items():
            assert np.array_equal(file.tensors[name].read(0, 3), array)
        with pytest.raises(PhiconvError, match=r"not the first of 3 parts; give m-00001-of-00003\.gguf"):
            open_gguf(tmp_path / "m-00002-of-00003.gguf")
        (tmp_path / "m-00002-of-00003.gguf").unlink()
        with pytest.raises(
            MissingFileError, match=r"part 2 of 3 is not there; download m-00002-of-00003\.gguf"
        ):
            open_gguf(tmp_path / "m-00001-of-00003.gguf")


def test_version_2_has_the_same_layout(tmp_path):
    data = build(metadata(), [("w", numbers((2, 3)))])
    (tmp_path / "f").write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    file = open_gguf(tmp_path / "f")
    assert file.version == 2
    assert file.metadata == metadata()


def test_nothing_but_a_header(tmp_path):
    (tmp_path / "f").write_bytes(serialize_header(0, 0))
    file = open_gguf(tmp_path / "f")
    assert (file.metadata, file.tensors, file.types) == ({}, {}, {})


def test_a_header_larger_than_the_first_read(tmp_path):
    tokens = [f"token {i}" for i in range(30_000)]
    entries = {
        "text": GgufValue(ValueType.STRING, "x" * 300_000),
        "tokens": GgufValue(ValueType.ARRAY, tokens, ValueType.STRING),
        "scores": GgufValue(ValueType.ARRAY, [0.5] * 100_000, ValueType.FLOAT32),
    }
    (tmp_path / "f").write_bytes(build(entries, [("w", numbers(9))]))
    file = open_gguf(tmp_path / "f")
    assert file.metadata == entries
    assert np.array_equal(file.tensors["w"].read(0, 9)[:, 0], numbers(9))


def test_a_cut_vector_of_blocks(tmp_path):
    header = serialize_header(1, 0) + serialize_tensor_info("w", (64,), GGMLQuantizationType.Q8_0, 0)
    (tmp_path / "f").write_bytes(header + bytes(-len(header) % 32) + bytes(68))
    tensor = open_gguf(tmp_path / "f").tensors["w"]
    assert len(tensor.read(32, 64)) == 1
    with pytest.raises(
        UnsupportedModelError, match="w: weights 1 to 32 of a Q8_0 vector are not whole blocks"
    ):
        tensor.read(1, 32)


class TestSerialize:
    @pytest.mark.parametrize(
        "value",
        [
            GgufValue(ValueType.UINT8, 256),
            GgufValue(ValueType.UINT32, -1),
            GgufValue(ValueType.INT32, "1"),
            GgufValue(ValueType.FLOAT32, 1e39),
            GgufValue(ValueType.ARRAY, [1, 70_000], ValueType.UINT16),
            GgufValue(ValueType.ARRAY, [1]),
        ],
    )
    def test_what_does_not_fit_is_refused(self, value):
        with pytest.raises(ValueError):
            serialize(value)

    def test_nested_arrays_come_back(self, tmp_path):
        inner = GgufValue(ValueType.ARRAY, [1, 2], ValueType.INT16)
        entries = {"a": GgufValue(ValueType.ARRAY, [inner, inner], ValueType.ARRAY)}
        (tmp_path / "f").write_bytes(build(entries))
        assert open_gguf(tmp_path / "f").metadata == entries

    @given(st.lists(st.binary(max_size=12), max_size=8))
    def test_any_bytes_of_a_token_come_back(self, folder, tokens):
        texts = [token.decode("utf-8", "surrogateescape") for token in tokens]
        data = build({"tokens": GgufValue(ValueType.ARRAY, texts, ValueType.STRING)})
        path = folder / "tokens.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        value = open_gguf(path).metadata["tokens"]
        assert [text.encode("utf-8", "surrogateescape") for text in value.value] == tokens
        assert serialize(value) in data


# ------------------------------------------------------------------------------------------------ fuzzing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


VALID = build(
    {
        "general.architecture": GgufValue(ValueType.STRING, "phi3"),
        "general.alignment": GgufValue(ValueType.UINT32, 32),
        "tokens": GgufValue(ValueType.ARRAY, ["a", "b\udcff"], ValueType.STRING),
        "types": GgufValue(ValueType.ARRAY, [1, 2, 3], ValueType.INT32),
        "flags": GgufValue(ValueType.ARRAY, [True, False], ValueType.BOOL),
        "half": GgufValue(ValueType.FLOAT32, 0.5),
    },
    [("token_embd.weight", numbers((4, 32))), ("blk.0.bias", numbers(5)), ("exps", numbers((2, 3, 4)))],
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)
    ),
    min_size=1,
    max_size=4,
)


def mutate(data, changes):
    """Applies changes, most of them to the header, where they matter."""
    data = bytearray(data)
    for kind, where, content in changes:
        at = int(where * where * (len(data) - 1)) if data else 0
        if kind == "flip" and data:
            data[at] ^= content[0]
        elif kind == "set":
            data[at : at + len(content)] = content
        elif kind == "cut":
            del data[at : at + len(content)]
        elif kind == "insert":
            data[at:at] = content
    return bytes(data)


@settings(max_examples=500)
@given(edits)
def test_a_damaged_file_is_refused_or_read(folder, changes):
    path = folder / "fuzzed.gguf"
    path.unlink(missing_ok=True)  # writing anew is much quicker than writing over
    path.write_bytes(mutate(VALID, changes))
    try:
        file = open_gguf(path)
        for tensor in file.tensors.values():
            part = tensor.read(0, tensor.rows)
            assert len(part) > 0
    except PhiconvError as error:
        assert str(error).isprintable()  # noqa: PT017 - most examples raise nothing to look at, or this
    else:
        # What was understood can be said again.
        assert all(serialize_kv(key, value) in path.read_bytes() for key, value in file.metadata.items())


def test_every_truncation_is_refused(folder):
    end = len(VALID) - 32 + 96 % 32  # the last tensor ends with its padding
    path = folder / "truncated.gguf"
    for size in range(end):
        path.unlink(missing_ok=True)
        path.write_bytes(VALID[:size])
        with pytest.raises(PhiconvError):
            open_gguf(path)
