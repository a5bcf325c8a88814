"""The safetensors reader against the safetensors package, and the rules of the format."""

from __future__ import annotations

import json
import pickle  # of our own objects, between our own processes

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import phiconv
from phiconv import ir
from phiconv.errors import MissingFileError, PhiconvError, UnsupportedModelError
from phiconv_formats.shared.safetensors import load_weight_map, open_safetensors, open_sharded

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def numbers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def shards(tmp_path):
    """Three shards and their index, each written by the safetensors package."""
    weight_map = {}
    for shard in range(3):
        name = f"model-{shard + 1:05d}-of-00003.safetensors"
        tensors = {f"layer.{shard}.{part}": numbers((4, 8), seed=shard) for part in ("b", "a")}
        save_file(tensors, tmp_path / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 768}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 5), (7,), (), (2, 3, 4), (0,), (3, 0), (0, 3), (1, 1)])
def test_reads_what_the_package_writes(tmp_path, dtype, shape):
    expected = {"first": numbers((3, 3)), "second": numbers(shape, dtype)}
    save_file(expected, tmp_path / "f", {"format": "pt"})
    archive = open_safetensors(tmp_path / "f")
    assert archive.metadata == {"format": "pt"}
    assert archive.tensors.keys() == expected.keys()
    tensor = archive.tensors["second"]
    assert tensor.shape == shape
    assert isinstance(tensor.encoding, ir.FloatEncoding)
    rows = tensor.runs[0].source.read(0, tensor.rows)
    assert rows.dtype == dtype
    assert rows.shape == (tensor.rows, tensor.columns)
    assert rows.tobytes() == expected["second"].tobytes()
    assert tensor.label == f"{tmp_path / 'f'}: second"


def test_reads_any_rows(tmp_path):
    values = numbers((9, 4))
    save_file({"a": numbers((5, 5)), "w": values}, tmp_path / "f")
    tensor = open_safetensors(tmp_path / "f").tensors["w"]
    assert np.array_equal(tensor.read(2, 7), values[2:7])
    assert np.array_equal(tensor.slice_rows(4, 9).read(1, 3), values[5:7])
    copy = pickle.loads(pickle.dumps(tensor))  # noqa: S301
    assert np.array_equal(copy.read(8, 9), values[8:])


def test_lists_other_types_and_does_not_decode_them(tmp_path):
    save_file({"ids": np.arange(6, dtype=np.int64).reshape(2, 3)}, tmp_path / "f")
    tensor = open_safetensors(tmp_path / "f").tensors["ids"]
    assert tensor.encoding == ir.RawEncoding("i64", 1, 8)
    with pytest.raises(UnsupportedModelError, match="ids: stored as i64, which phiconv cannot decode"):
        phiconv.read(tensor)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "bits"),
    [
        ("BOOL", [3], 3, 8),
        ("F8_E4M3", [2, 3], 6, 8),
        ("F4", [2, 4], 4, 4),
        ("F6_E2M3", [4], 3, 6),
        ("C64", [2], 16, 64),
    ],
)
def test_sizes_of_other_types(write_safetensors, dtype, shape, size, bits):
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    tensor = open_safetensors(write_safetensors(header, bytes(size))).tensors["w"]
    assert tensor.encoding.bits_per_weight == bits


def test_tensors_keep_the_order_of_the_header(write_safetensors):
    header = {
        "z": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "__metadata__": {"k": "v"},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "empty": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
    }
    archive = open_safetensors(write_safetensors(header, np.float32([1, 2]).tobytes()))
    assert list(archive.tensors) == ["z", "a", "empty"]
    assert archive.tensors["z"].read(0, 1)[0, 0] == 2


def test_spaces_after_the_header_are_legal(write_safetensors):
    header = b'{"w":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}     '
    assert open_safetensors(write_safetensors(header, b"\0<")).tensors["w"].read(0, 1)[0, 0] == 1


def test_no_tensors_at_all(write_safetensors):
    assert open_safetensors(write_safetensors({})).tensors == {}


def test_opens_shards_as_one(shards):
    archive = open_sharded(shards)
    assert list(archive.tensors) == [f"layer.{n}.{part}" for n in range(3) for part in "ab"]
    assert archive.metadata == {"format": "pt"}
    assert archive.path == shards
    for file in archive.files:
        for name, expected in load_file(file.path).items():
            assert np.array_equal(archive.tensors[name].read(0, 4), expected)


def test_a_missing_shard_is_named(shards):
    (shards.parent / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError) as caught:
        open_sharded(shards)
    assert "1 of 3 shards are not there: model-00002-of-00003.safetensors" in str(caught.value)
    assert "download model-00002-of-00003.safetensors again" in str(caught.value)


def test_a_missing_index(tmp_path):
    with pytest.raises(MissingFileError):
        load_weight_map(tmp_path / "model.safetensors.index.json")


# ------------------------------------------------------------------------------------------------ fuzzing


def _valid_file(folder):
    path = folder / "valid"
    save_file(
        {
            "weight": numbers((4, 6), ml_dtypes.bfloat16),
            "bias": numbers(6),
            "scalar": numbers(()),
            "none": numbers(0),
        },
        path,
        {"format": "pt"},
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder / "fuzzed", _valid_file(folder)


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "digit"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=9),
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
        elif kind == "cut":
            del data[at : at + len(content)]
        elif kind == "insert":
            data[at:at] = content
        elif kind == "digit" and (digits := [i for i, byte in enumerate(data) if 48 <= byte <= 57]):
            data[digits[int(where * (len(digits) - 1))]] = 48 + content[0] % 10
    return bytes(data)


@settings(max_examples=400)
@given(edits)
def test_a_damaged_file_is_refused_or_read(fuzzed, changes):
    path, valid = fuzzed
    path.unlink(missing_ok=True)  # writing anew is much quicker than writing over
    path.write_bytes(mutate(valid, changes))
    try:
        for tensor in open_safetensors(path).tensors.values():
            source = tensor.runs[0].source
            assert source.read(0, tensor.rows).nbytes == tensor.size * tensor.encoding.bits_per_weight / 8
    except PhiconvError as error:
        assert str(error).isprintable()  # noqa: PT017 - most examples raise nothing to look at, or this
