"""Importance matrices: both formats, and what is wrong with damaged ones."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

import phiconv
from phiconv.errors import InputError, MalformedFileError
from phiconv_formats.gguf.imatrix import read_imatrix


@pytest.fixture
def write_gguf(tmp_path):
    """Writes the current format with the gguf package: sums and counts by name."""

    def write(entries, name="imatrix.gguf", **more):
        writer = gguf.GGUFWriter(tmp_path / name, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["wiki.train.raw"])
        writer.add_uint32("imatrix.chunk_count", 12)
        writer.add_uint32("imatrix.chunk_size", 512)
        for tensor, (sums, counts) in entries.items():
            writer.add_tensor(f"{tensor}.in_sum2", np.asarray(sums, np.float32))
            writer.add_tensor(f"{tensor}.counts", np.asarray(counts, np.float32))
        for tensor, values in more.items():
            writer.add_tensor(tensor, np.asarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def legacy(entries, tail=b""):
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += np.asarray(values, "<f4").tobytes()
    return data + tail


def test_means_of_the_current_format(write_gguf):
    random = np.random.default_rng(0)
    sums = random.random(64, dtype=np.float32) * 1000
    stacked = random.random((3, 32), dtype=np.float32)
    path = write_gguf({"blk.0.a.weight": (sums, [37.0]), "blk.0.b.weight": (stacked, [[5.0], [0.0], [2.0]])})
    matrix = read_imatrix(path)
    assert (matrix.datasets, matrix.chunks) == (("wiki.train.raw",), 12)
    assert np.array_equal(matrix.weights["blk.0.a.weight"], sums / np.float32(37))
    expected = np.stack([stacked[0] / np.float32(5), np.ones(32, np.float32), stacked[2] / np.float32(2)])
    assert np.array_equal(matrix.weights["blk.0.b.weight"], expected.reshape(-1))


def test_legacy_format(tmp_path):
    values = np.random.default_rng(1).random(32, dtype=np.float32)
    tail = struct.pack("<ii", 7, 4) + b"wiki"
    (tmp_path / "i.dat").write_bytes(legacy({"a": (4, values), "b": (0, values)}, tail))
    matrix = read_imatrix(tmp_path / "i.dat")
    assert np.array_equal(matrix.weights["a"], values / np.float32(4))
    assert np.array_equal(matrix.weights["b"], values)
    assert (matrix.datasets, matrix.chunks) == (("wiki",), 7)
    (tmp_path / "short.dat").write_bytes(legacy({"a": (4, values)}))
    assert read_imatrix(tmp_path / "short.dat").chunks == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<i", -1),
        struct.pack("<i", 1 << 30),
        struct.pack("<ii", 1, 1 << 30),
        legacy({"a": (1, [1.0, 2.0])})[:-1],
        legacy({"a": (1, [1.0, np.nan])}),
        legacy({"a": (1, [])}),
        legacy({}),
        struct.pack("<i", 2) + 2 * legacy({"a": (1, [1.0])})[4:],
    ],
)
def test_damaged_legacy_files(tmp_path, refused, data):
    (tmp_path / "i.dat").write_bytes(data)
    refused(read_imatrix, tmp_path / "i.dat", says="i.dat", kind=MalformedFileError)


def test_damaged_current_files(write_gguf, refused):
    refused(read_imatrix, write_gguf({"a": ([1.0, 2.0, 3.0], [1.0, 1.0])}), says="2 counts for 3 sums")
    refused(read_imatrix, write_gguf({}, name="b.gguf", w=[1.0]), says="holds no importance weights")
    alone = write_gguf({}, name="c.gguf", **{"a.in_sum2": [1.0]})
    refused(read_imatrix, alone, says="a.counts: no float32 tensor")
    refused(read_imatrix, write_gguf({"a": ([np.inf], [1.0])}, name="d.gguf"), says="NaN or infinite")


def test_missing_file(tmp_path, refused):
    refused(read_imatrix, tmp_path / "nowhere.gguf", says="no such file")


def test_weights_of_another_model_are_refused(write_gguf, model_folder, tmp_path):
    path = write_gguf({"blk.0.ffn_down.weight": (np.ones(64), [1.0])})
    with pytest.raises(InputError, match=r"blk\.0\.ffn_down\.weight: has 64 importance weights.*1 x 768"):
        phiconv.plan(model_folder("tiny-phi3"), tmp_path / "o.gguf", quant="q4", imatrix=path)


def test_metadata_names_the_importance_matrix(write_gguf, model_folder, tmp_path):
    path = write_gguf({"blk.0.ffn_down.weight": (np.arange(768), [3.0])})
    phiconv.convert(model_folder("tiny-phi3"), tmp_path / "o.gguf", quant="q4", imatrix=path)
    fields = gguf.GGUFReader(tmp_path / "o.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "imatrix.gguf"
    assert fields["quantize.imatrix.dataset"].contents() == "wiki.train.raw"
    assert fields["quantize.imatrix.entries_count"].contents() == 1
    assert fields["quantize.imatrix.chunks_count"].contents() == 12


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7F800000, 0xBF800000])
def test_numbers_that_no_sum_of_squares_is(tmp_path, write_gguf, refused, bits):
    """Among them a signalling NaN, with which NumPy would not compute without a warning."""
    value = np.array([bits], "<u4").view("<f4")
    record = struct.pack("<i", 1) + b"a" + struct.pack("<ii", 3, 1) + value.tobytes()
    (tmp_path / "x.dat").write_bytes(struct.pack("<i", 1) + record)
    refused(read_imatrix, tmp_path / "x.dat", says="a: an importance weight is missing, negative, NaN")
    refused(read_imatrix, write_gguf({"a": (value, [1.0])}), says="a.in_sum2: an importance weight")
    refused(read_imatrix, write_gguf({"a": ([1.0], value)}), says="a.counts: an importance weight")
