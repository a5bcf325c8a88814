"""GPTQ's and AWQ's layouts: what is stored is what was quantized, however it was cut into tasks."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import make_golden_server as peers
import phiconv
from phiconv import ir
from phiconv.conversion import rows as spans
from phiconv.errors import UsageError
from phiconv.ir.hub_encodings import grouped_integers
from phiconv.quantizers import decode, encode
from phiconv.quantizers.best import supports
from phiconv.recipes import Choices, override

AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
DOWN = "model.layers.1.mlp.down_proj"


def gptq_int(bits, group_size, method="gptq", symmetric=True, runtime=False):
    return grouped_integers(method, bits, group_size, ir.F16, symmetric=symmetric, runtime=runtime)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return peers.make_source(tmp_path_factory.mktemp("source"), "phi3")


def fields(words, bits, axis):
    """The numbers of words along an axis, the lowest bits first."""
    shifts = np.expand_dims(bits * np.arange(32 // bits), [i for i in (0, 1, 2) if i != axis + 1])
    numbers = np.expand_dims(words, axis + 1) >> shifts & (2**bits - 1)
    shape = list(words.shape)
    shape[axis] *= 32 // bits
    return numbers.reshape(shape)


def formula(tensors, base, method, bits):
    """A matrix by the formulas of the format."""

    def part(suffix, dtype):
        _, shape, data = tensors[f"{base}.{suffix}"]
        return np.frombuffer(data, dtype).reshape(shape)

    words, zeros, scales = part("qweight", "<u4"), part("qzeros", "<u4"), part("scales", "<f2")
    if method == "awq":
        codes, zero = (
            fields(w, 4, 1).reshape(len(w), -1, 8)[..., AWQ_PLACES].reshape(len(w), -1)
            for w in (words, zeros)
        )
        group = np.arange(len(codes)) // (len(codes) // len(scales))
    else:
        one = np.uint32(sum(1 << (bits * k) for k in range(32 // bits)))
        zero = fields(zeros if method == "gptq-v2" else zeros + one, bits, 1)
        codes, group = fields(words, bits, 0), part("g_idx", "<i4")
    return ((codes.astype(np.float32) - zero[group]) * scales.astype(np.float32)[group]).T


@pytest.mark.parametrize(
    ("to", "recipe", "encoding"),
    [
        ("gptq", "4bit", gptq_int(4, 128)),
        ("gptq", "4bit-v2-g32", gptq_int(4, 32, method="gptq-v2")),
        ("gptq", "8bit-g64", gptq_int(8, 64)),
        ("awq", "4bit-g32", gptq_int(4, 32, method="awq", symmetric=False)),
    ],
)
@pytest.mark.parametrize("span", [None, 1 << 12])
def test_the_formula_gives_what_was_quantized(source, tmp_path, monkeypatch, to, recipe, encoding, span):
    if span:  # so that a matrix is written in several tasks, and a task in several tiles
        monkeypatch.setattr(spans, "SPAN", span)
        monkeypatch.setattr(spans, "TILE", span // 4)
    phiconv.convert(source, tmp_path / "o", to=to, quant=recipe, jobs=3)
    tensors, stored = peers.tensors_of(tmp_path / "o"), phiconv.open_model(source).stored
    bases = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    assert len(bases) == 8
    for base in bases:
        tensor = stored[f"{base}.weight"]
        wanted = decode(encode(tensor.read(0, tensor.rows), encoding), tensor.columns)
        method = encoding.name.partition("_")[0]
        np.testing.assert_array_equal(formula(tensors, base, method, encoding.bits), wanted)


def test_no_group_is_cut_off_and_no_code_wraps_around():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=(64, 128))).astype(ml_dtypes.bfloat16)
    tiny = (rng.normal(size=(64, 128)) * 2.0**-22).astype(ml_dtypes.bfloat16)
    for rows in (values, tiny):
        exact, size = rows.astype(np.float32), np.abs(rows.astype(np.float32)).max()
        for bits, options in ((4, {}), (8, {}), (4, {"method": "awq", "symmetric": False})):
            blocks = encode(rows, gptq_int(bits, 32, **options))
            error = np.abs(decode(blocks, 128) - exact).max()
            assert error <= max(size / (2**bits - 1), 2.0**-25 * 2**bits)
    runtime = decode(encode(values, gptq_int(4, 32, runtime=True)), 128)
    assert np.abs(runtime - values.astype(np.float32)).max() > 0.3 * values.astype(np.float32).max()


def test_the_configuration(source, tmp_path):
    choices = Choices(tensor_types=(override(r"layers\.1.*down_proj=bf16"),))
    for to in ("gptq", "awq"):
        phiconv.convert(source, tmp_path / to, to=to, quant="q4", choices=choices)
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert config == json.loads((tmp_path / "gptq" / "quantize_config.json").read_text())
    assert config["dynamic"] == {"-:^model\\.layers\\.1\\.mlp\\.down_proj$": {}}
    wanted = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    wanted |= {"checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False}
    assert {key: config[key] for key in wanted} == wanted
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert config == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [DOWN],
    }
    assert f"{DOWN}.weight" in peers.tensors_of(tmp_path / "awq")


def test_a_channel_is_a_group_of_minus_1(source, tmp_path):
    phiconv.convert(source, tmp_path / "o", to="gptq", quant="8bit-channel")
    said = json.loads((tmp_path / "o" / "quantize_config.json").read_text())
    assert (said["group_size"], said["bits"]) == (-1, 8)


def test_what_the_layouts_cannot_hold_is_refused(source, tmp_path):
    two = Choices(tensor_types=(override("down_proj=8bit"),))
    with pytest.raises(UsageError, match="one type of integers"):
        phiconv.plan(source, tmp_path / "o", to="gptq", quant="4bit", choices=two)
    odd = peers.make_source(tmp_path, "phi3-odd")
    with pytest.raises(UsageError, match=r"192 weights .* groups of 128: tensor model\.layers\.0"):
        phiconv.plan(odd, tmp_path / "o", to="awq", quant="4bit")


def test_best_effort_knows_them():
    assert supports(gptq_int(4, 128))
    assert supports(gptq_int(8, 3072))
    assert supports(gptq_int(4, 128, method="awq", symmetric=False))
    assert gptq_int(4, 128).scale_type == ir.F16
