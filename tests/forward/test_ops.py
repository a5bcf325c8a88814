"""The description of each decoder, and the check of a model's weights by it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from phiconv.architectures import ARCHITECTURES
from phiconv.errors import ConfigError, MalformedFileError
from phiconv.forward.ops import Attention, MixtureOfExperts, Recorder, check_weights, output_matrix
from phiconv.ir.model import Role
from phiconv.ir.rope import Rope

KINDS = (
    "phi",
    "phi2",
    "phi3",
    "phi3-gqa",
    "phi4mini",
    "phimoe",
    "phimoe-stacked",
    "phimoe-tiny",
    "llama",
    "qwen2",
    "qwen3",
)


@pytest.fixture
def model(model_folder):
    return lambda kind: phiconv.open_model(model_folder(kind))


def check(model, tensors):
    forward = ARCHITECTURES[model.architecture].forward
    return check_weights(forward, model.hyperparameters, tensors, model.path)


def inputs_of(call):
    count = {"embed": 0, "add": 2}.get(call.operation, 1)
    return call.arguments[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_used(model, kind):
    opened = model(kind)
    calls = check(opened, opened.tensors)
    assert calls[0].operation == "embed"
    assert calls[-1].operation == "logits"
    # A value is made before it is used, and every value but the last is used.
    inputs = [inputs_of(call) for call in calls]
    assert {a for some in inputs for a in some} == set(range(len(calls) - 1))
    assert all(a < i for i, some in enumerate(inputs) for a in some)


def test_calls_are_the_decoder(model):
    opened = model("phi3")
    operations = [call.operation for call in check(opened, opened.tensors)]
    layer = "rms_norm attention linear add rms_norm gated linear add"
    assert " ".join(operations) == f"embed {layer} {layer} rms_norm logits"
    opened = model("phi")
    operations = [call.operation for call in check(opened, opened.tensors)]
    layer = "layer_norm attention linear linear activate linear add add"
    assert " ".join(operations[:9]) == f"embed {layer}"


def essential(tensors):
    """Weights that a decoder cannot do without: biases of matrices are not among them."""
    return [r for r in tensors if r.part == "weight" or r.name.endswith("_norm")]


@pytest.mark.parametrize("kind", ["phi", "phi3", "phi4mini", "phimoe"])
def test_missing_weight(model, kind):
    opened = model(kind)
    for role in essential(opened.tensors):
        if role == Role("output"):
            continue  # without it the output is tied to the embedding
        with pytest.raises(MalformedFileError, match="this weight is missing") as caught:
            check(opened, opened.tensors.keys() - {role})
        assert caught.value.at == f"weight {role}"


def test_bias_may_be_missing(model):
    opened = model("phimoe")
    check(opened, essential(opened.tensors))


@pytest.mark.parametrize(
    "role", [Role("ffn_gate", 0), Role("attn_q", 2), Role("attn_norm", 0, "bias"), Role("surprise")]
)
def test_unused_weight(model, role):
    opened = model("phi" if role.name == "ffn_gate" else "phi3")
    known = {*opened.tensors, role}
    if role.part == "bias":  # rms_norm has none, but a matrix may have one anywhere
        check(opened, known)
        return
    with pytest.raises(MalformedFileError, match="nothing uses this weight") as caught:
        check(opened, known)
    assert caught.value.at == f"weight {role}"


def test_output_matrix():
    assert output_matrix({Role("output"), Role("token_embedding")}) == Role("output")
    assert output_matrix({Role("output", part="bias"), Role("token_embedding")}) == Role("token_embedding")


def test_values_are_the_numbers_of_calls():
    recorder = Recorder()
    x = recorder.embed(Role("token_embedding"))
    y = recorder.add(x, recorder.linear(x, Role("ffn_up", 0)))
    assert recorder.logits(y, Role("output")) == 3
    assert recorder.calls[2].arguments == (0, 1)


def test_specifications_are_keys(model):
    hp = model("phimoe-tiny").hyperparameters
    attention, experts = Attention.of(hp), MixtureOfExperts.of(hp, "silu")
    assert {attention, replace(attention)} == {attention}
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.window) == (4, 1, 32, 2047)
    assert experts == MixtureOfExperts(4, 2, 0.01, "silu")


@pytest.mark.parametrize(("value", "jitter"), [(0.05, 0.05), (0, 0.0), (None, 0.01)])
def test_jitter_of_the_router(value, jitter, make_model, tmp_path):
    model = phiconv.open_model(make_model(tmp_path, "phimoe", router_jitter_noise=value))
    assert model.hyperparameters.experts.jitter == jitter


@pytest.mark.parametrize("value", [-0.01, True, "0"])
def test_bad_jitter(value, make_model, tmp_path):
    folder = make_model(tmp_path, "phimoe", router_jitter_noise=value)
    with pytest.raises(ConfigError, match="router_jitter_noise: must be a positive number"):
        phiconv.open_model(folder)


# ----------------------------------------------------------------------------------------------------- rope

LONG = Rope(8, 10000.0, 512, (1.0, 1.1, 2.0, 3.0), (1.5, 4.0, 30.0, 60.0), 1.2, 1.3)


def test_frequencies():
    i = np.arange(4)
    for long, factors in ((False, LONG.short_factor), (True, LONG.long_factor)):
        expected = 1 / (np.array(factors) * 10000.0 ** (2 * i / 8))
        found = LONG.inverse_frequencies(long=long)
        np.testing.assert_allclose(found, expected, rtol=3e-7)
        assert np.float32(found).tolist() == list(found)
    plain = Rope(8, 500000.0, 512)
    np.testing.assert_allclose(plain.inverse_frequencies(long=False), 500000.0 ** -(i / 4), rtol=3e-7)
    assert plain.inverse_frequencies(long=True) == plain.inverse_frequencies(long=False)


def test_frequencies_are_those_of_float32_arithmetic():
    # NumPy's own power is off by a bit or two here; torch 2.13 agrees with phiconv in 47 of these 48.
    rope = Rope(96, 10000.0, 4096, (1.08,) * 48, (64.0,) * 48)
    expected = np.float32(1) / (
        np.float32(1.08) * np.float32(10000) ** (np.arange(0, 96, 2, dtype=np.float32) / np.float32(96))
    )
    found = np.array(rope.inverse_frequencies(long=False), np.float32)
    assert (np.abs(found.view(np.int32) - expected.view(np.int32)) <= 2).all()


def test_long_factors_start_beyond_the_original_context():
    assert [LONG.is_long(n) for n in (1, 512, 513)] == [False, False, True]
    assert (LONG.mscale(long=False), LONG.mscale(long=True)) == (1.2, 1.3)
    assert not Rope(8, 10000.0, 512).is_long(100000)


@pytest.mark.parametrize("factor", [1e-300, 3e38])
def test_absurd_factors_do_not_crash(factor):
    rope = Rope(4, 1e38, 512, (factor, factor), (factor, factor))
    found = rope.inverse_frequencies(long=False)
    assert all(f >= 0 for f in found)
    assert math.isinf(found[0]) == (factor < 1)
