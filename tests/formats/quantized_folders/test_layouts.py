"""The layouts against the formulas written out plainly, for codes and orders that no tool chose."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv.ir.model import Checkpoint
from phiconv.quantizers import decode
from phiconv_formats.quantized_folders import awq, bitsandbytes, fp8, gptq, modelopt
from phiconv_formats.shared import columns
from phiconv_formats.shared.safetensors import open_safetensors
from quantized_folder import array, write_file

FEW = settings(max_examples=25)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Writes the arrays of one matrix "m", and returns it as a reader puts it together."""
    number = iter(range(1 << 30))

    def read(assemble, arrays, said):
        path = tmp_path_factory.mktemp("m") / f"{next(number)}.safetensors"
        write_file(path, {f"m.{name}": stored for name, stored in arrays.items()})
        archive = open_safetensors(path)
        made = assemble(Checkpoint(path, "safetensors", archive.tensors, {}, path), said)
        return made.stored["m.weight"]

    return read


def weights_of(tensor, start, stop):
    return decode(tensor.read(start, stop), tensor.columns)


def stream(codes, bits):
    """Codes along the first axis as 32-bit words, by the bits of one large integer per column."""
    height, width = codes.shape
    words = np.zeros((height * bits // 32, width), np.uint32)
    for column in range(width):
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes[:, column]))
        for k in range(len(words)):
            words[k, column] = number >> (32 * k) & 0xFFFFFFFF
    return words.view(np.int32)


def minus_one(words, bits):
    """Version 1: the constant is subtracted from whole words."""
    if bits == 3:
        raise NotImplementedError
    constant = np.uint32(sum(1 << at for at in range(0, 32, bits)))
    return (words.view(np.uint32) - constant).view(np.int32)


@given(
    seed=st.integers(0, 1 << 20),
    bits=st.sampled_from([2, 3, 4, 8]),
    version=st.sampled_from([1, 2]),
    order=st.sampled_from(["none", "given", "mixed"]),
    cut=st.tuples(st.integers(0, 64), st.integers(0, 64)),
)
@FEW
def test_gptq(opened, seed, bits, version, order, cut):
    rng = np.random.default_rng(seed)
    rows, columns_, size = 64, 96, 32
    codes = rng.integers(0, 1 << bits, (columns_, rows))
    zeros = rng.integers(0, 1 << bits, (3, rows)) * rng.integers(0, 2, (3, rows))  # 0 is half of them
    scales = rng.standard_normal((3, rows)).astype(np.float16)
    groups = np.arange(columns_) // size
    if order == "mixed":
        groups = rng.permutation(groups)
    less = version == 1
    packed = stream(((zeros - less) % 8 if bits == 3 else zeros).T, bits).T
    if less and bits != 3:
        packed = minus_one(np.ascontiguousarray(packed), bits)
    arrays = {
        "qweight": array("I32", stream(codes, bits)),
        "qzeros": array("I32", packed),
        "scales": array("F16", scales),
    }
    if order != "none":
        arrays["g_idx"] = array("I32", groups)
    said = {"bits": bits, "group_size": size, "sym": False, "checkpoint_format": ["gptq_v2", "gptq"][less]}
    tensor = opened(gptq.assemble, arrays, said)
    expected = (codes - zeros[groups]).astype(np.float32) * scales[groups].astype(np.float32)
    start, stop = sorted(cut)
    np.testing.assert_array_equal(weights_of(tensor, start, stop), expected.T[start:stop])
    assert (tensor.encoding.name == f"gptq_int{bits}_asym_g32_f16") == (order != "mixed")


@given(seed=st.integers(0, 1 << 20), cut=st.tuples(st.integers(0, 64), st.integers(0, 64)))
@FEW
def test_awq(opened, seed, cut):
    rng = np.random.default_rng(seed)
    codes, zeros = rng.integers(0, 16, (96, 64)), rng.integers(0, 16, (3, 64))
    scales = rng.standard_normal((3, 64)).astype(np.float16)

    def packed(numbers):
        words = np.zeros((len(numbers), 8), np.uint32)
        for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words |= numbers[:, output::8].astype(np.uint32) << np.uint32(4 * place)
        return words.view(np.int32)

    arrays = {"qweight": array("I32", packed(codes)), "qzeros": array("I32", packed(zeros))}
    arrays["scales"] = array("F16", scales)
    tensor = opened(awq.assemble, arrays, {"bits": 4, "group_size": 32, "version": "gemm"})
    groups, (start, stop) = np.arange(96) // 32, sorted(cut)
    expected = (codes - zeros[groups]).astype(np.float32) * scales[groups].astype(np.float32)
    np.testing.assert_array_equal(weights_of(tensor, start, stop), expected.T[start:stop])


@given(
    seed=st.integers(0, 1 << 20),
    shape=st.sampled_from([(8, 128), (12, 48), (5, 96)]),
    nested=st.booleans(),
)
@FEW
def test_bitsandbytes_where_blocks_go_on_in_the_next_row(opened, seed, shape, nested):
    rng = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    blocks = -(-count // 64)
    codes, table = rng.integers(0, 16, count), rng.standard_normal(16).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    arrays = {"weight.quant_map": array("F32", table)}
    arrays["weight"] = array("U8", (codes[::2] << 4 | codes[1::2])[:, None])
    if nested:
        map_, absmax = rng.standard_normal(256).astype(np.float32), rng.integers(0, 256, blocks)
        outer = rng.standard_normal(-(-blocks // 16)).astype(np.float32)
        scales = map_[absmax] * outer[np.arange(blocks) // 16] + np.float32(0.3)
        arrays |= {"weight.absmax": array("U8", absmax), "weight.nested_quant_map": array("F32", map_)}
        arrays["weight.nested_absmax"] = array("F32", outer)
        state |= {"nested_blocksize": 16, "nested_offset": 0.3}
    else:
        scales = rng.standard_normal(blocks).astype(np.float32)
        arrays["weight.absmax"] = array("F32", scales)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    arrays["weight.quant_state.bitsandbytes__nf4"] = array("U8", text)
    tensor = opened(bitsandbytes.assemble, arrays, {})
    expected = (table[codes] * scales[np.arange(count) // 64]).reshape(shape)
    for start in range(shape[0]):
        np.testing.assert_array_equal(weights_of(tensor, start, start + 1), expected[start : start + 1])


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale"])
def test_codes_of_fp8_that_are_no_numbers_are_none(opened, scale):
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    arrays = {"weight": array("F8_E4M3", codes), scale: array("F32", np.full((1, 2), 0.5))}
    tensor = opened(fp8.assemble, arrays, {"weight_block_size": [128, 64]})
    weights = weights_of(tensor, 0, 2)
    assert np.isnan(weights[:, 64:]).all()
    assert np.isfinite(weights[:, :64]).all()
    assert weights[0, 56] == 0.5  # 0x38 is 1


def test_fp8_with_scales_that_are_powers(opened):
    codes = np.full((4, 128), 0x38, np.uint8)
    exponents = np.array([[126], [129]], np.uint8)
    arrays = {"weight": array("F8_E4M3", codes), "weight_scale_inv": array("F8_E8M0", exponents)}
    tensor = opened(fp8.assemble, arrays, {"weight_block_size": [2, 128]})
    np.testing.assert_array_equal(weights_of(tensor, 0, 4)[:, 0], [0.5, 0.5, 4, 4])


def test_every_number_of_nvfp4(opened):
    numbers = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    codes = np.arange(16) | np.roll(np.arange(16), -1) << 4
    arrays = {
        "weight": array("U8", np.tile(codes[::2], (1, 2))),
        "weight_scale": array("F8_E4M3", np.array([[0x38, 0x40]])),
        "weight_scale_2": array("F32", np.array(0.25)),
    }
    weights = weights_of(opened(modelopt.assemble, arrays, {"quant_algo": "NVFP4"}), 0, 1)
    expected = np.array([*numbers, *(-n for n in numbers)], np.float32)
    np.testing.assert_array_equal(weights[0], np.concatenate([expected * 0.25, expected * 0.5]))


def test_strips_are_read_once_and_forgotten_in_time(opened, monkeypatch):
    monkeypatch.setattr(columns, "_STRIP", 1 << 10)
    monkeypatch.setattr(columns, "_PIECE", 8)
    monkeypatch.setattr(columns, "_KEPT", 4 << 10)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (128, 256))
    arrays = {
        "qweight": array("I32", stream(codes, 4)),
        "qzeros": array("I32", np.full((1, 32), 0x77777777, np.int64).astype(np.int32)),
        "scales": array("F16", np.ones((1, 256))),
    }
    tensor = opened(gptq.assemble, arrays, {"bits": 4, "group_size": 128})
    part = tensor.runs[0].source.parts[0]
    assert part._width() == 16
    reads = []
    whole = columns.ColumnRows._columns
    monkeypatch.setattr(columns.ColumnRows, "_columns", lambda *a: reads.append(a[1:]) or whole(*a))
    found = [weights_of(tensor, at, at + 4) for at in range(0, 256, 4)]
    np.testing.assert_array_equal(np.concatenate(found), (codes - 8).T)
    of_codes = [r for r in reads if r[1] - r[0] == 64]
    assert len(of_codes) == len(set(of_codes)) == 16
    assert columns._STRIPS._bytes <= 4 << 10
    assert replace(part) == part
