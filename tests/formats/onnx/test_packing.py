"""ONNX Runtime's bytes: pack and unpack are inverse, and the layouts are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv import ir
from phiconv.errors import MalformedFileError, UsageError
from phiconv.quantizers import encode
from phiconv_formats.gguf import packing as gguf_packing
from phiconv_formats.onnx.integers import pack_integers, row_sizes, unpack_integers
from phiconv_formats.onnx.packing import (
    pack,
    pack_columns,
    row_bytes,
    unpack,
    unpack_columns,
)

f32 = np.float32

ENCODINGS = ir.ONNX_AFFINE["default"]
INT4 = [e for e in ENCODINGS if e.bits == 4]

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
every_int4 = pytest.mark.parametrize("encoding", INT4, ids=lambda e: e.name)
few = settings(max_examples=4, deadline=None)


def random_blocks(encoding, count, seed=0):
    rng = np.random.default_rng(seed)
    shape = (encoding.block_size // 4, count, 4)
    codes = rng.integers(0, 1 << encoding.bits, shape, dtype=np.uint8)
    scales = rng.standard_normal(count).astype(encoding.scale_type.dtype)
    zeros = rng.integers(0, 1 << encoding.bits, count, dtype=np.uint8) if encoding.has_zero_point else None
    return ir.Blocks(encoding, codes, scales, zero_points=zeros)


def matrices(blocks, rows):
    """Codes of shape (rows, columns), scales and zero points (rows, blocks of a row)."""
    codes = blocks.codes.transpose(1, 0, 2).reshape(rows, -1)
    zeros = None if blocks.zero_points is None else blocks.zero_points.reshape(rows, -1)
    return codes, blocks.scales.reshape(rows, -1), zeros


def halves(numbers):
    """Numbers of 4 bits as one stream, the first in the lower half of a byte."""
    flat = np.append(numbers.reshape(-1), [0] * (numbers.size % 2)).astype(np.uint8)
    return flat[::2] | flat[1::2] << 4


def assert_equal(a, b):
    assert a.encoding == b.encoding
    np.testing.assert_array_equal(a.codes, b.codes)
    assert a.codes.flags.c_contiguous
    assert a.scales.tobytes() == b.scales.tobytes()
    assert (a.zero_points is None) == (b.zero_points is None)
    assert a.zero_points is None or a.zero_points.tobytes() == b.zero_points.tobytes()


@every_encoding
@few
@given(rows=st.integers(0, 5), per_row=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_unpack_is_the_inverse(encoding, rows, per_row, seed):
    columns = per_row * encoding.block_size
    blocks = random_blocks(encoding, rows * per_row, seed)
    before = blocks.codes.copy()
    packed = pack(blocks, columns)
    np.testing.assert_array_equal(blocks.codes, before)
    assert tuple(part.size for part in packed) == tuple(rows * n for n in row_bytes(encoding, columns))
    assert_equal(unpack(encoding, columns, *(part.tobytes() for part in packed)), blocks)


@every_encoding
@few
@given(rows=st.integers(0, 5), per_row=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_unpack_integers_is_the_inverse(encoding, rows, per_row, seed):
    columns = per_row * encoding.block_size
    blocks = random_blocks(encoding, rows * per_row, seed)
    packed = pack_integers(blocks)
    sizes = row_sizes(encoding, columns)
    assert [part.size for part in packed] == [-(-rows * size // together) for size, together in sizes]
    assert_equal(unpack_integers(encoding, *packed), blocks)


@every_int4
@few
@given(pairs=st.integers(1, 3), per_row=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_unpack_columns_is_the_inverse(encoding, pairs, per_row, seed):
    blocks = random_blocks(encoding, 2 * pairs * per_row, seed)
    packed = pack_columns(blocks, per_row * encoding.block_size)
    before = [part.copy() for part in packed]
    assert_equal(unpack_columns(encoding, *packed), blocks)
    for part, copy in zip(packed, before, strict=True):
        np.testing.assert_array_equal(part, copy)


@every_encoding
def test_layout_of_matmul_nbits(encoding):
    rows, per_row = 3, 5
    blocks = random_blocks(encoding, rows * per_row)
    codes, scales, zeros = matrices(blocks, rows)
    packed = pack(blocks, per_row * encoding.block_size)
    np.testing.assert_array_equal(packed[0], halves(codes) if encoding.bits == 4 else codes.reshape(-1))
    assert packed[1].tobytes() == scales.tobytes()
    if zeros is not None and encoding.bits == 4:  # the unused half is an 8
        zeros = halves(np.pad(zeros, ((0, 0), (0, 1)), constant_values=8))
    assert len(packed) == 2 or packed[2].tobytes() == zeros.tobytes()


@every_int4
def test_layout_of_int4(encoding):
    rows, per_row = 3, 4
    blocks = random_blocks(encoding, rows * per_row)
    codes, scales, zeros = matrices(blocks, rows)
    packed = pack_integers(blocks)
    signed = codes if encoding.has_zero_point else (codes.astype(int) - 8) & 15
    np.testing.assert_array_equal(packed[0], halves(signed))
    assert packed[1].tobytes() == scales.tobytes()
    assert len(packed) == 2 or packed[2].tobytes() == halves(zeros).tobytes()


@every_int4
def test_layout_of_columns(encoding):
    rows, per_row = 6, 3
    blocks = random_blocks(encoding, rows * per_row)
    codes, scales, zeros = matrices(blocks, rows)
    packed = pack_columns(blocks, per_row * encoding.block_size)
    signed = codes if encoding.has_zero_point else (codes.astype(int) - 8) & 15
    assert packed[0].tobytes() == halves(signed.T).tobytes()
    assert packed[1].tobytes() == scales.T.tobytes()
    assert len(packed) == 2 or packed[2].tobytes() == halves(zeros.T).tobytes()


def test_columns_of_tiles_lie_next_to_each_other():
    encoding = ir.onnx_affine(4, 16, ir.F16, symmetric=False, method="qdq")
    x = np.random.default_rng(0).standard_normal((10, 48)).astype(np.float16)
    whole = pack_columns(encode(x, encoding), 48)
    tiles = [pack_columns(encode(x[start : start + 4], encoding), 48) for start in (0, 4, 8)]
    for part, pieces in zip(whole, zip(*tiles, strict=True), strict=True):
        np.testing.assert_array_equal(part, np.concatenate(pieces, axis=1))


@pytest.mark.parametrize("stored", [ir.F16, ir.BF16, ir.F32], ids=lambda t: t.name)
def test_float_rows(stored):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(stored.dtype)
    (data,) = pack(x, 5)
    assert data.tobytes() == x.tobytes()
    assert row_bytes(stored, 5) == (x[0].nbytes,)
    np.testing.assert_array_equal(unpack(stored, 5, data.tobytes()), x)


@every_encoding
def test_bits_per_weight(encoding):
    assert encoding.bits_per_weight == 8 * sum(row_bytes(encoding, 512)) / 512


def test_q4_0_goes_to_onnx_and_back():
    blocks = encode(np.random.default_rng(0).standard_normal((4, 96)).astype(f32), ir.Q4_0)
    stored = gguf_packing.pack(blocks)
    ours = unpack(ir.Q4_0, 96, *pack(gguf_packing.unpack(stored, ir.Q4_0), 96))
    assert_equal(ours, blocks)
    np.testing.assert_array_equal(gguf_packing.pack(ours), stored)
    assert pack(blocks, 96)[0].tobytes() == halves(matrices(blocks, 4)[0]).tobytes()


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("encoding", [ir.Q4_1, ir.Q8_0, ir.Q4_K, ir.IQ4_NL, ir.RawEncoding("i8", 1, 1)])
def test_refuses_what_onnx_runtime_does_not_have(encoding):
    with pytest.raises(UsageError, match=f"no tensor type for {encoding.name}"):
        row_bytes(encoding, 256)
    with pytest.raises(UsageError, match=encoding.name):
        unpack(encoding, 256, b"")
    if not isinstance(encoding, ir.RawEncoding):
        with pytest.raises(UsageError, match=encoding.name):
            pack(encode(np.zeros((1, 256), f32), encoding), 256)


def test_refuses_8_bits_as_int4():
    encoding = ir.onnx_affine(8, 32, ir.F16)
    with pytest.raises(UsageError, match="no codes of 4 bits"):
        pack_columns(random_blocks(encoding, 2), 32)


def test_refuses_halves_of_bytes():
    encoding = ir.onnx_affine(4, 32, ir.F16, symmetric=False)
    with pytest.raises(UsageError, match="3 rows of 4-bit codes, as columns, do not fill whole bytes"):
        pack_columns(random_blocks(encoding, 3), 32)


def test_refuses_rows_that_are_no_whole_blocks():
    with pytest.raises(UsageError, match="rows of 100 weights cannot be cut"):
        row_bytes(ir.onnx_affine(4, 32, ir.F16), 100)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_refuses_tensors_of_different_lengths(part):
    encoding = ir.onnx_affine(4, 32, ir.F16, symmetric=False)
    blocks = random_blocks(encoding, 8)
    cut = [p[:-1] if i == part else p for i, p in enumerate(pack(blocks, 64))]
    with pytest.raises(MalformedFileError, match="bytes are no rows of 64 weights"):
        unpack(encoding, 64, *cut)
    cut = [p[:-1] if i == part else p for i, p in enumerate(pack_integers(blocks))]
    with pytest.raises(MalformedFileError, match="are no blocks of onnx_int4"):
        unpack_integers(encoding, *cut)
    if part:
        cut = [p[:-1] if i == part else p for i, p in enumerate(pack_columns(blocks, 64))]
        with pytest.raises(MalformedFileError, match="for codes of shape"):
            unpack_columns(encoding, *cut)


def test_refuses_zero_points_that_the_encoding_has_not():
    blocks = random_blocks(ir.onnx_affine(4, 32, ir.F16), 8)
    with pytest.raises(MalformedFileError, match="bytes are no rows"):
        unpack(blocks.encoding, 64, *pack(blocks, 64), b"12")
    codes, scales = pack_columns(blocks, 64)
    with pytest.raises(MalformedFileError, match="for codes of shape"):
        unpack_columns(blocks.encoding, codes, scales, np.zeros((2, 2), np.uint8))
