"""Rows of tensors that are stored differently, as one view and in every target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import phiconv
from memory_rows import in_memory
from mixed_types import mixed_types
from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.quantizers import decode
from phiconv.quantizers.joining import alike, join

IDS = np.arange(5, 29).reshape(1, 24)


def tensor(encoding, rows=4, columns=32, label="rows"):
    values = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    return in_memory(values, encoding, label)


def decoded(t):
    return decode(t.read(0, t.rows), t.columns)


KINDS = st.sampled_from([ir.F32, ir.F16, ir.BF16, ir.Q4_0, ir.Q8_0])


@given(st.lists(st.tuples(KINDS, st.integers(1, 5)), min_size=1, max_size=4), st.data())
def test_any_rows_are_those_of_the_parts(kinds, data):
    parts = [tensor(*kind) for kind in kinds]
    whole = join(parts)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, whole.rows), st.integers(0, whole.rows))))
    expected = np.concatenate([decoded(part) for part in parts])[start:stop]
    assert whole.shape == (sum(part.rows for part in parts), 32)
    np.testing.assert_array_equal(decode(whole.read(start, stop), 32), expected)


def test_parts_of_one_encoding_stay_as_they_are():
    parts = [tensor(ir.Q4_0), tensor(ir.Q4_0, 3)]
    assert alike(parts) == parts
    assert join(parts) == ir.concatenate(parts)
    assert isinstance(join(parts).read(0, 7), ir.Blocks)


@pytest.mark.parametrize(
    ("kinds", "encoding"),
    [
        ((ir.F16, ir.BF16), ir.F32),
        ((ir.F16, ir.F64), ir.F64),
        ((ir.Q4_0, ir.F64), ir.MixedEncoding("q4_0 + f64")),
        ((ir.Q4_0, ir.Q8_0, ir.Q4_0), ir.MixedEncoding("q4_0 + q8_0")),
    ],
)
def test_what_they_are_read_as(kinds, encoding):
    whole = join([tensor(kind) for kind in kinds])
    assert whole.encoding == encoding
    assert whole.read(0, 12).dtype == (np.float64 if encoding == ir.F64 else np.float32)


def test_a_signalling_nan_passes_without_a_warning():
    values = np.array([[0x7F800001]], "<u4").view("<f4")
    odd = in_memory(values)
    assert np.isnan(join([odd, tensor(ir.F64, 2, 1)]).read(0, 1)).all()


def test_a_change_of_a_part_is_seen():
    whole = join([tensor(ir.F32), tensor(ir.F16, label="changed")])
    assert [run.source.changed() for run in whole.runs] == [False, True]


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="cannot join"):
        join([tensor(ir.F32), tensor(ir.F16, columns=64)])


# ----------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module", params=["phi3-gqa", "phimoe"])
def mixed(request, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    phiconv.convert(model_folder(request.param), folder / "f32.gguf", quant="f32")
    return mixed_types(folder / "f32.gguf", folder / "mixed.gguf")


@pytest.mark.parametrize("target", ["safetensors", "mlx"])
def test_every_weight_of_a_folder_is_the_source_s(mixed, tmp_path, target):
    source = phiconv.open_model(mixed)
    phiconv.convert(source, tmp_path / "m", to=target, quant="f32")
    result = phiconv.open_model(tmp_path / "m")
    assert result.tensors.keys() == source.tensors.keys()
    for role, stored in source.tensors.items():
        np.testing.assert_array_equal(phiconv.read(result.tensors[role]), phiconv.read(stored), str(role))
    expected = phiconv.logits(source, IDS)
    np.testing.assert_allclose(phiconv.logits(result, IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["safetensors", "mlx", "onnx", "openvino"])
def test_a_plan_says_what_happens(mixed, tmp_path, target):
    plan = phiconv.plan(mixed, tmp_path / "m", to=target, quant="f32")
    actions = {t.stored.name: t.action for t in plan.tensors if isinstance(t.stored, ir.MixedEncoding)}
    assert set(actions.values()) <= {"dequantized"}
    joined = {"phi3": {"safetensors", "mlx", "openvino"}, "phimoe": {"onnx"}}[plan.model.architecture]
    assert bool(actions) == (target in joined)


@pytest.mark.parametrize("mixed", ["phi3-gqa"], indirect=True)
def test_quantizing_the_whole_again_has_to_be_allowed(mixed, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"qkv_proj.*q4_0 \+ q8_0 \+ f16.*--allow-requantize"):
        phiconv.plan(mixed, tmp_path / "m", to="mlx", quant="4bit-g32")
    choices = phiconv.Choices(allow_requantize=True)
    result = phiconv.convert(mixed, tmp_path / "m", to="mlx", quant="8bit-g32", choices=choices)
    actions = {t.action for t in result.plan.tensors if isinstance(t.stored, ir.MixedEncoding)}
    assert actions == {"requantized"}
    logits, expected = phiconv.logits(tmp_path / "m", IDS), phiconv.logits(mixed, IDS)
    assert np.linalg.norm(logits - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("mixed", ["phi3-gqa"], indirect=True)
@pytest.mark.parametrize("quant", ["f32", "q8_0"])
def test_a_gguf_of_another_format_is_fused(mixed, tmp_path, quant):
    """A GGUF becomes a GGUF tensor by tensor; a model of any other format gets llama.cpp's own matrices."""
    source = replace(phiconv.open_model(mixed), format="another")
    choices = phiconv.Choices(allow_requantize=True)
    phiconv.convert(source, tmp_path / "x.gguf", quant=quant, choices=choices)
    result = phiconv.open_model(tmp_path / "x.gguf")
    assert "blk.1.attn_qkv.weight" in result.stored
    logits, expected = phiconv.logits(result, IDS), phiconv.logits(mixed, IDS)
    assert np.linalg.norm(logits - expected) < {"f32": 1e-6, "q8_0": 0.03}[quant] * np.linalg.norm(expected)
