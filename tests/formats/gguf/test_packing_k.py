"""Packed K-quants: the exact inverse of unpacking, and read alike by the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.quantizers import decode
from phiconv_formats.gguf.packing import pack, unpack
from phiconv_formats.gguf.types import TYPE_OF_ENCODING

ENCODINGS = [ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K]

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)

PARTS = ["codes", "scales", "minima", "sub_scales", "sub_minima"]


@st.composite
def any_blocks(draw, encoding):
    count, seed = draw(st.integers(0, 5)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << encoding.bits, (64, count, 4), dtype=np.uint8)
    half = hnp.arrays(np.float16, count, elements=st.floats(width=16, allow_nan=False, allow_infinity=False))
    shape, limit = (encoding.sub_blocks, count), 1 << encoding.scale_bits
    if encoding.offset:
        sub_scales = rng.integers(-limit // 2, limit // 2, shape, dtype=np.int8)
        return ir.Blocks(encoding, codes, draw(half), None, sub_scales)
    sub_scales, sub_minima = rng.integers(0, limit, (2, *shape), dtype=np.uint8)
    return ir.Blocks(encoding, codes, draw(half), draw(half), sub_scales, sub_minima)


@every_encoding
@given(data=st.data())
def test_unpack_inverts_pack(encoding, data):
    blocks = data.draw(any_blocks(encoding))
    packed = pack(blocks)
    assert packed.shape == (len(blocks) * TYPE_OF_ENCODING[encoding].block_bytes,)
    again = unpack(packed, encoding)
    assert isinstance(again, ir.Blocks)
    for part in PARTS:
        expected, got = getattr(blocks, part), getattr(again, part)
        assert (expected is None) == (got is None)
        if expected is not None:
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(got, expected)


@every_encoding
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 5))
def test_pack_inverts_unpack(encoding, seed, count):
    size = count * TYPE_OF_ENCODING[encoding].block_bytes
    packed = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    assert pack(unpack(packed, encoding)).tobytes() == packed.tobytes()
    assert pack(unpack(memoryview(packed.tobytes()), encoding)).tobytes() == packed.tobytes()


@every_encoding
@given(data=st.data())
def test_gguf_reads_the_same_weights(encoding, data):
    blocks = data.draw(any_blocks(encoding).filter(len))
    kind = GGMLQuantizationType[encoding.name.upper()]
    read = quants.dequantize(pack(blocks).reshape(len(blocks), -1), kind)
    np.testing.assert_array_equal(decode(blocks, 256), read)


@every_encoding
def test_bits_per_weight(encoding):
    assert encoding.bits_per_weight == TYPE_OF_ENCODING[encoding].block_bytes * 8 / 256


def test_refuses_what_it_does_not_know():
    other = ir.SuperBlockEncoding("q9_k", 4, sub_block_size=32, scale_bits=6)
    with pytest.raises(UnsupportedModelError, match="q9_k"):
        unpack(bytes(144), other)
    blocks = unpack(bytes(144), ir.Q4_K)
    with pytest.raises(UsageError, match="q9_k"):
        pack(ir.Blocks(other, blocks.codes, blocks.scales, None, blocks.sub_scales))
