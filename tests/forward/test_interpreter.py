"""The NumPy interpreter against stored logits of transformers, and against itself in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.errors import MalformedFileError, UnsupportedModelError, UsageError
from phiconv.forward import interpreter
from phiconv.forward.interpreter import compute, logits_of
from phiconv.ir.model import Role
from references import RANDOM, open_reference, random_model, relative_l2

TRAINED = ("tiny-phi3", "tiny-phi4mini")


@pytest.fixture
def folder(make_model, make_models, tmp_path):
    return lambda name: random_model(make_model, make_models, tmp_path / name, name)


@pytest.mark.parametrize("name", RANDOM)
def test_random_models(name, folder):
    reference = open_reference(f"references/{name}.npz")
    model, ids = phiconv.open_model(folder(name)), reference["input_ids"][None]
    values = compute(model, ids).all()[0]
    assert relative_l2(values[reference["positions"]], reference["logits"]) < 1e-5
    assert (values.argmax(axis=-1) == reference["argmax"]).all()
    exact = compute(model, ids, precision="float64").all()[0]
    assert (values.dtype, exact.dtype) == (np.float32, np.float64)
    assert 0 < relative_l2(values, exact) < 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models(name):
    reference = open_reference(f"{name}/reference.npz")
    values = phiconv.logits(FIXTURES / name, reference["input_ids"])
    assert values.shape == reference["logits_f16"].shape
    assert relative_l2(values[:2], reference["logits_f32"]) < 1e-6
    assert (values.argmax(axis=-1) == reference["logits_f16"].argmax(axis=-1)).all()
    # 768 tokens: tiny-phi4mini's original context is 512.
    result = compute(phiconv.open_model(FIXTURES / name), reference["long_input_ids"])
    assert relative_l2(result.at(np.arange(736, 768)), reference["long_logits_last32_f32"][0]) < 2e-6


def test_layouts_of_a_checkpoint_give_the_same_logits(model_folder):
    ids = [[5, 6, 7, 8, 9]]
    expected = phiconv.logits(model_folder("phimoe"), ids)
    for kind in ("phimoe-transformers5", "phimoe-stacked"):
        np.testing.assert_array_equal(phiconv.logits(model_folder(kind), ids), expected)


def test_switch_of_factors_is_per_call(make_model, tmp_path):
    config = {"original_max_position_embeddings": 8, "max_position_embeddings": 64}
    model = phiconv.open_model(make_model(tmp_path, "phi4mini", **config))
    ids = np.arange(9)[None] + 40
    short, long = (compute(model, ids[:, :n]).all()[0] for n in (8, 9))
    always_long = replace(model.hyperparameters.rope, original_context=1)
    other = replace(model, hyperparameters=replace(model.hyperparameters, rope=always_long))
    np.testing.assert_array_equal(compute(other, ids).all()[0], long)
    # The first position is not rotated, and both factors have one mscale.
    np.testing.assert_allclose(short[0], long[0], atol=1e-5)
    assert np.abs(short[1:] - long[1:8]).max() > 1e-3


def test_no_position_sees_what_follows(model_folder):
    model, ids = phiconv.open_model(model_folder("phi3")), np.arange(20)[None] + 50
    expected = compute(model, ids).all()
    ids[0, 12:] += 1
    found = compute(model, ids).all()
    np.testing.assert_allclose(found[0, :12], expected[0, :12], atol=1e-6)
    assert np.abs(found[0, 12:] - expected[0, 12:]).max(axis=-1).min() > 1e-3


def test_sequences_of_a_batch_do_not_meet(model_folder):
    model, ids = phiconv.open_model(model_folder("phimoe")), np.arange(36).reshape(3, 12) + 60
    together = compute(model, ids).all()
    for one, expected in zip(ids, together, strict=True):
        np.testing.assert_allclose(compute(model, one[None]).all()[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["phi", "phi4mini", "phimoe"])
def test_tiles_do_not_change_the_result(kind, model_folder, monkeypatch):
    model, ids = phiconv.open_model(model_folder(kind)), np.arange(10)[None] + 70
    expected = compute(model, ids, precision="float64").all()
    monkeypatch.setattr(interpreter, "_TILE", 1000)
    monkeypatch.setattr(interpreter, "_PIECE", 300)
    np.testing.assert_allclose(compute(model, ids, precision="float64").all(), expected, atol=1e-12)


def test_logits_at_some_positions(model_folder):
    model = phiconv.open_model(model_folder("phi3"))
    result = compute(model, np.arange(10).reshape(2, 5) + 70)
    everything, positions = result.all().reshape(10, -1), np.array([9, 1, 2, 7, 4])
    assert result.shape == (2, 5, everything.shape[1])
    np.testing.assert_allclose(result.at(positions), everything[positions], rtol=1e-4, atol=1e-5)
    again = logits_of(model, result.hidden, (2, 5))
    assert np.array_equal(again.all(), result.all())


@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_quantized_weights_are_read_tile_by_tile(quant, tmp_path, make_model, monkeypatch):
    # 2 MB of float32 in each of the large matrices; less than one of them in memory.
    folder = make_model(tmp_path / "m", "phi3", hidden_size=256, intermediate_size=2048, num_hidden_layers=1)
    monkeypatch.setattr(interpreter, "_TILE", 1 << 15)
    monkeypatch.setattr(interpreter, "_PIECE", 1 << 15)
    model = phiconv.open_model(folder)
    stored = phiconv.open_model(phiconv.convert(folder, tmp_path / "m.gguf", quant=quant).files[0]).stored
    fused = stored["blk.0.ffn_up.weight"]
    tensors = dict(model.tensors) | {
        Role("ffn_gate", 0): fused.slice_rows(0, 2048),
        Role("ffn_up", 0): fused.slice_rows(2048, 4096),
    }
    quantized = replace(model, tensors=tensors)
    compute(quantized, [[1, 2]])  # imports, threads
    tracemalloc.start()
    result = compute(quantized, [[1, 2, 3, 4]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000
    weights = phiconv.read(fused)
    parts = {Role("ffn_gate", 0): weights[:2048], Role("ffn_up", 0): weights[2048:]}
    plain = dict(model.tensors) | {role: in_memory(rows) for role, rows in parts.items()}
    expected = compute(replace(model, tensors=plain), [[1, 2, 3, 4]]).all()
    np.testing.assert_allclose(result.all(), expected, atol=1e-5)
    assert np.abs(expected - phiconv.logits(folder, [[1, 2, 3, 4]])).max() > 1e-4


def in_memory(rows):
    flat = ir.constant(rows.reshape(-1).tolist(), "rows")

    class Rows:
        label, encoding = "rows", ir.F32

        def read(self, start, stop):
            return flat.read(start * rows.shape[1], stop * rows.shape[1]).reshape(-1, rows.shape[1])

    return ir.Tensor.of(Rows(), rows.shape)


@pytest.mark.parametrize("kind", ["phi", "phimoe"])
def test_watch_sees_what_goes_into_every_matrix(kind, model_folder):
    model, seen = phiconv.open_model(model_folder(kind)), {}

    def watch(role, x, expert):
        seen.setdefault(role, []).append((expert, x.shape))

    compute(model, np.arange(6)[None] + 80, watch=watch)
    matrices = {r: t for r, t in model.tensors.items() if len(t.shape) > 1 and r.layer is not None}
    assert seen.keys() == matrices.keys()
    for role, calls in seen.items():
        assert all(shape[1] == matrices[role].columns for _, shape in calls)
        stacked = len(matrices[role].shape) > 2
        assert sum(shape[0] for _, shape in calls) == (12 if stacked else 6)  # each token uses two experts
        assert all((expert is not None) == stacked for expert, _ in calls)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "ids", [[1, 2], [[1.0]], [], [[]], [[1], [1, 2]], [["a"]], [[-1, 2]], [[2112]], [[True]]]
)
def test_wrong_ids(ids, model_folder):
    with pytest.raises(UsageError, match="token id"):
        phiconv.logits(model_folder("phi3"), ids)


def test_plain_tensors_are_no_model(write_safetensors):
    path = write_safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    with pytest.raises(UnsupportedModelError, match="plain tensors"):
        phiconv.logits(path, [[1]])


def test_weights_are_checked_before_they_are_read(model_folder):
    model = phiconv.open_model(model_folder("phi3"))
    tensors = {role: t for role, t in model.tensors.items() if role != Role("ffn_up", 1)}
    with pytest.raises(MalformedFileError, match="this weight is missing"):
        compute(replace(model, tensors=tensors), [[1]])
