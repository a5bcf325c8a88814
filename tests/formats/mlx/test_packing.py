"""MLX's bytes: pack and unpack are inverse, and the stream of bits is what it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv import ir
from phiconv.errors import MalformedFileError, UsageError
from phiconv.quantizers import decode, encode
from phiconv_formats.gguf import packing as gguf_packing
from phiconv_formats.mlx.packing import pack, row_bytes, unpack

f32 = np.float32

FLOATS_8_BIT = (ir.MLX_MXFP4, ir.MLX_MXFP8, ir.MLX_NVFP4)
ENCODINGS = (*ir.MLX_AFFINE, *FLOATS_8_BIT)

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)


def bits_of(encoding):
    return encoding.bits if isinstance(encoding, ir.BlockEncoding) else len(encoding.table).bit_length() - 1


def random_blocks(encoding, count, seed=0):
    """Any codes, and scales of any size that the encoding has."""
    rng = np.random.default_rng(seed)
    shape = (encoding.block_size // 4, count, 4)
    codes = rng.integers(0, 1 << bits_of(encoding), shape, dtype=np.uint8)
    if isinstance(encoding, ir.BlockEncoding):
        scales, minima = rng.standard_normal((2, count)).astype(encoding.scale_type.dtype)
        return ir.Blocks(encoding, codes, scales, minima)
    if encoding == ir.MLX_NVFP4:
        scales = np.array(ir.MLX_MXFP8.table, f32)[rng.integers(0, 127, count)] / 2
    else:
        scales = np.ldexp(f32(1), rng.integers(-127, 127, count) - (encoding == ir.MLX_MXFP4))
    return ir.Blocks(encoding, codes, scales.astype(f32))


def assert_equal(a, b):
    np.testing.assert_array_equal(a.codes, b.codes)
    assert a.scales.tobytes() == b.scales.tobytes()
    assert (a.minima is None) == (b.minima is None)
    assert a.minima is None or a.minima.tobytes() == b.minima.tobytes()


@every_encoding
@settings(max_examples=4, deadline=None)
@given(rows=st.integers(0, 5), groups=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_unpack_is_the_inverse(encoding, rows, groups, seed):
    columns = groups * encoding.block_size
    blocks = random_blocks(encoding, rows * groups, seed)
    before = blocks.codes.copy()
    packed = pack(blocks)
    np.testing.assert_array_equal(blocks.codes, before)
    assert tuple(part.size for part in packed) == tuple(rows * n for n in row_bytes(encoding, columns))
    again = unpack(encoding, columns, *packed)
    assert again.encoding == encoding
    assert_equal(again, blocks)
    assert again.codes.flags.c_contiguous


@pytest.mark.parametrize("encoding", FLOATS_8_BIT, ids=lambda e: e.name)
def test_pack_is_the_inverse_for_every_byte(encoding):
    codes, scales = (
        np.random.default_rng(0).bytes(encoding.block_size * 32 * bits_of(encoding)),
        bytes(range(256)),
    )
    packed = pack(unpack(encoding, encoding.block_size * 256, codes, scales))
    assert packed[0].tobytes() == codes
    assert packed[1].tobytes() == scales


@pytest.mark.parametrize("encoding", ENCODINGS[:2] + ENCODINGS[12:14] + FLOATS_8_BIT, ids=lambda e: e.name)
def test_more_than_is_packed_at_a_time(encoding):
    blocks = random_blocks(encoding, 9000)
    assert_equal(unpack(encoding, encoding.block_size, *pack(blocks)), blocks)


@every_encoding
def test_codes_are_one_stream_of_bits(encoding):
    blocks = random_blocks(encoding, 6)
    codes = blocks.codes.transpose(1, 0, 2).reshape(-1, 1)
    stream = np.unpackbits(codes, axis=1, bitorder="little")[:, : bits_of(encoding)]
    np.testing.assert_array_equal(pack(blocks)[0], np.packbits(stream, bitorder="little"))


@every_encoding
def test_bits_per_weight(encoding):
    assert encoding.bits_per_weight == 8 * sum(row_bytes(encoding, 256)) / 256


@pytest.mark.parametrize("stored", [ir.F16, ir.BF16, ir.F32], ids=lambda t: t.name)
def test_float_rows(stored):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(stored.dtype)
    (data,) = pack(x)
    assert data.tobytes() == x.tobytes()
    assert row_bytes(stored, 5) == (x[0].nbytes,)
    np.testing.assert_array_equal(unpack(stored, 5, data.tobytes()), x)


# ------------------------------------------------------------------------------------- under another name


@pytest.mark.parametrize(("encoding", "bits"), [(ir.Q4_1, 4), (ir.Q5_1, 5)], ids=["q4_1", "q5_1"])
def test_blocks_of_llama_cpp_go_to_mlx_and_back(encoding, bits):
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(f32)
    blocks = encode(x, encoding)
    ours = unpack(ir.mlx_affine(bits, 32, ir.F16), 64, *pack(blocks))
    assert_equal(ours, blocks)
    np.testing.assert_array_equal(decode(ours, 64), decode(blocks, 64))
    assert_equal(unpack(encoding, 64, *pack(ours)), blocks)


@pytest.mark.parametrize(
    ("encoding", "ours"), [(ir.MXFP4, ir.MLX_MXFP4), (ir.NVFP4, ir.MLX_NVFP4)], ids=["mxfp4", "nvfp4"]
)
def test_float_blocks_of_llama_cpp_go_to_mlx_and_back(encoding, ours):
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(f32)
    blocks = gguf_packing.unpack(gguf_packing.pack(encode(x, encoding)), encoding)
    moved = unpack(ours, 64, *pack(blocks))
    assert_equal(moved, blocks)
    np.testing.assert_array_equal(decode(moved, 64), decode(blocks, 64))


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("encoding", [ir.Q4_0, ir.Q8_0, ir.Q4_K, ir.IQ4_NL, ir.RawEncoding("i8", 1, 1)])
def test_refuses_what_mlx_does_not_have(encoding):
    with pytest.raises(UsageError, match=f"no tensor type for {encoding.name}"):
        row_bytes(encoding, 256)
    with pytest.raises(UsageError, match=encoding.name):
        unpack(encoding, 256, b"")
    if not isinstance(encoding, ir.RawEncoding):
        with pytest.raises(UsageError, match=encoding.name):
            pack(encode(np.zeros((1, 256), f32), encoding))


def test_refuses_groups_that_do_not_fit():
    with pytest.raises(UsageError, match="rows of 96 weights"):
        row_bytes(ir.mlx_affine(4, 64, ir.F16), 96)


@pytest.mark.parametrize("sizes", [(31, 2, 2), (32, 4, 2), (32, 2, 0), (64, 2, 2), (0, 2, 2)])
def test_refuses_tensors_of_different_lengths(sizes):
    with pytest.raises(MalformedFileError, match="are no rows of 64 weights"):
        unpack(ir.mlx_affine(4, 64, ir.F16), 64, *(bytes(size) for size in sizes))


def test_the_power_of_two_that_is_no_number():
    """MLX computes with infinity there."""
    for encoding, size in ((ir.MLX_MXFP4, 16), (ir.MLX_MXFP8, 32)):
        blocks = unpack(encoding, 32, bytes(3 * size), bytes([254, 255, 0]))
        assert np.isfinite(blocks.scales).tolist() == [True, False, True]


def test_what_is_not_finite_becomes_no_number():
    scales = np.array([np.inf, np.nan, 0.5], f32)
    for encoding, byte in ((ir.MLX_MXFP4, 255), (ir.MLX_MXFP8, 255), (ir.MLX_NVFP4, 127)):
        codes = np.zeros((encoding.block_size // 4, 3, 4), np.uint8)
        assert pack(ir.Blocks(encoding, codes, scales))[1].tolist()[:2] == [byte, byte]
