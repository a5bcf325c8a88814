"""Packed blocks: the exact inverse of unpacking, and read alike by the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.quantizers import decode, encode
from phiconv_formats.gguf.packing import pack, unpack
from phiconv_formats.gguf.types import TYPE_OF_ENCODING

BLOCK_ENCODINGS = [ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0]
FLOAT_ENCODINGS = [ir.F16, ir.BF16, ir.F32, ir.F64]

every_block_encoding = pytest.mark.parametrize("encoding", BLOCK_ENCODINGS, ids=lambda e: e.name)
every_float_encoding = pytest.mark.parametrize("encoding", FLOAT_ENCODINGS, ids=lambda e: e.name)


def packed_blocks(encoding, count):
    return hnp.arrays(np.uint8, count * TYPE_OF_ENCODING[encoding].block_bytes)


@st.composite
def any_blocks(draw, encoding, least=0):
    count = draw(st.integers(least, 5))
    low, high = (-128, 127) if encoding.bits == 8 else (0, (1 << encoding.bits) - 1)
    dtype = np.int8 if encoding.bits == 8 else np.uint8
    codes = draw(hnp.arrays(dtype, (8, count, 4), elements=st.integers(low, high)))
    scale = hnp.arrays(np.float16, count, elements=st.floats(width=16, allow_nan=False))
    return ir.Blocks(encoding, codes, draw(scale), draw(scale) if encoding.has_minimum else None)


@every_block_encoding
@given(data=st.data())
def test_unpack_inverts_pack(encoding, data):
    blocks = data.draw(any_blocks(encoding))
    packed = pack(blocks)
    assert packed.dtype == np.uint8
    assert packed.shape == (len(blocks) * TYPE_OF_ENCODING[encoding].block_bytes,)
    again = unpack(packed, encoding)
    assert isinstance(again, ir.Blocks)
    assert again.codes.dtype == blocks.codes.dtype
    np.testing.assert_array_equal(again.codes, blocks.codes)
    np.testing.assert_array_equal(again.scales, blocks.scales)
    if encoding.has_minimum:
        np.testing.assert_array_equal(again.minima, blocks.minima)
    else:
        assert again.minima is None


@every_block_encoding
@given(data=st.data())
def test_pack_inverts_unpack(encoding, data):
    packed = data.draw(packed_blocks(encoding, data.draw(st.integers(0, 5))))
    assert pack(unpack(packed, encoding)).tobytes() == packed.tobytes()
    assert pack(unpack(memoryview(packed.tobytes()), encoding)).tobytes() == packed.tobytes()


@every_float_encoding
def test_floats_are_their_own_bytes(encoding):
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(encoding.dtype)
    packed = pack(values)
    assert packed.tobytes() == values.tobytes()
    assert packed.base is not None
    np.testing.assert_array_equal(unpack(packed, encoding), values.reshape(-1))
    assert pack(values.T).tobytes() == values.T.tobytes()


@every_block_encoding
@given(data=st.data())
def test_gguf_reads_the_same_weights(encoding, data):
    blocks = data.draw(any_blocks(encoding, least=1))
    scales = np.nan_to_num(blocks.scales, posinf=1, neginf=-1)
    minima = None if blocks.minima is None else np.nan_to_num(blocks.minima, posinf=1, neginf=-1)
    packed = pack(ir.Blocks(encoding, blocks.codes, scales, minima))
    kind = GGMLQuantizationType[encoding.name.upper()]
    read = quants.dequantize(packed.reshape(-1, TYPE_OF_ENCODING[encoding].block_bytes), kind)
    np.testing.assert_array_equal(decode(unpack(packed, encoding), 32), read.reshape(-1, 32))


@pytest.mark.parametrize("encoding", [*BLOCK_ENCODINGS, ir.F16, ir.BF16, ir.F32], ids=lambda e: e.name)
@pytest.mark.parametrize("stored", [ir.F32, ir.BF16, ir.F16], ids=lambda e: e.name)
def test_gguf_writes_the_same_bytes(encoding, stored):
    values = (np.random.default_rng(0).standard_normal((64, 1024)) * 0.02).astype(stored.dtype)
    written = quants.quantize(values.astype(np.float32), GGMLQuantizationType[encoding.name.upper()])
    np.testing.assert_array_equal(pack(encode(values, encoding)), written.reshape(-1).view(np.uint8))


def test_refuses_what_it_does_not_know():
    with pytest.raises(UnsupportedModelError, match="iq1_s"):
        unpack(bytes(50), ir.RawEncoding("iq1_s", 256, 50))
    blocks = encode(np.zeros((1, 32), np.float32), ir.Q4_0)
    other = ir.BlockEncoding("u4_64", 64, 4)
    with pytest.raises(UsageError, match="u4_64"):
        pack(ir.Blocks(other, blocks.codes, blocks.scales))
