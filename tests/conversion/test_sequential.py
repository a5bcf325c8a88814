"""One matrix after the other: what the targets are, and that predictions come nearer to the model for it."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.conversion import sequential
from phiconv.conversion.drift import Target, Value
from phiconv.conversion.sequential import pays
from phiconv.conversion.stored_blocks import StoredBlocks
from phiconv.errors import DiskFullError
from phiconv.quantizers import decode, encode

TINY = FIXTURES / "tiny-phi4mini"
BEST = phiconv.Choices(effort="best")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return phiconv.calibrate(TINY, None, tmp_path_factory.mktemp("c") / "c", tokens=4096)


def tensor_of(values):
    class Source:
        label, encoding = "values", ir.F32

        def read(self, start, stop):
            return values[start:stop].copy()

        def changed(self):
            return False

    return ir.Tensor.of(Source(), values.shape)


def test_predictions_come_nearer(tmp_path, calibration, monkeypatch):
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")[:6000]
    one = phiconv.convert(TINY, tmp_path / "s.gguf", quant="Q4_0", choices=BEST, calibration=calibration)
    again = phiconv.convert(
        TINY, tmp_path / "t.gguf", quant="Q4_0", choices=BEST, calibration=calibration, jobs=1
    )
    assert again.files[0].read_bytes() == one.files[0].read_bytes()
    monkeypatch.setattr(sequential, "pays", lambda _: False)
    other = phiconv.convert(TINY, tmp_path / "p.gguf", quant="Q4_0", choices=BEST, calibration=calibration)
    assert other.size == one.size
    assert [t.encoding for t in other.plan.tensors] == [t.encoding for t in one.plan.tensors]
    found = phiconv.evaluate_all([one.files[0], other.files[0]], text, reference=TINY)
    assert found[0].divergence.mean < 0.9 * found[1].divergence.mean


def test_it_needs_many_tokens_and_matrices_that_are_not_quantized(tmp_path, calibration, model_folder):
    few = phiconv.calibrate(TINY, None, tmp_path / "c", tokens=2048)
    planned = [
        phiconv.plan(TINY, tmp_path / "o.gguf", quant="Q4_0", choices=BEST, calibration=folder)
        for folder in (few, calibration)
    ]
    assert [pays(plan) for plan in planned] == [False, True]
    assert not pays(phiconv.plan(TINY, tmp_path / "o.gguf", quant="Q4_0"))
    assert not pays(phiconv.plan(TINY, tmp_path / "o.gguf", choices=BEST, calibration=calibration))
    experts = model_folder("phimoe")
    ids = np.random.default_rng(0).integers(70, 1000, 4096)
    folder = phiconv.calibrate(experts, ids, tmp_path / "e", context=64, tokens=4096)
    assert not pays(
        phiconv.plan(experts, tmp_path / "o.gguf", quant="Q4_0", choices=BEST, calibration=folder)
    )


def test_targets_are_least_squares():
    """Without shrinkage, no other rows come nearer to what the matrix gives, residual stream included."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((900, 32)).astype(np.float32)
    y = (x + 0.2 * rng.standard_normal(x.shape) @ rng.standard_normal((32, 32)) / 6).astype(np.float32)
    r = rng.standard_normal((900, 8)).astype(np.float32)
    s = (r + 0.1 * y[:, :8]).astype(np.float32)
    w = rng.standard_normal((8, 32)).astype(np.float32)
    target = Target.of(tensor_of(w), Value(x, y, ()), Value(r, s, ()), [(slice(0, 32), 0.0)])
    rows = target.rows(w, slice(0, 8))
    wanted = r + x @ w.T - s
    best = np.linalg.lstsq(y.astype(np.float64), wanted.astype(np.float64), rcond=None)[0].T
    error, least, before = (np.sum((wanted - y @ each.T) ** 2) for each in (rows, best, w))
    assert error < 1.01 * least < 0.95 * before  # a hundredth of the mean diagonal is added in any case
    # In parts each makes up for what it can; rows are taken by their numbers.
    parts = [(slice(0, 16), 0.0), (slice(16, 32), 0.0)]
    halves = Target.of(tensor_of(w), Value(x, y, ()), Value(r, s, ()), parts)
    # BLAS rounds products of few rows otherwise than those of many, on some processors.
    found, among_all = halves.rows(w[[5, 2]], [5, 2]), halves.rows(w, slice(0, 8))[[5, 2]]
    np.testing.assert_allclose(found, among_all, rtol=1e-5, atol=1e-6)


def test_without_drift_rows_stay():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 32)).astype(np.float32)
    w = rng.standard_normal((8, 32)).astype(np.float32)
    value = Value(x, x, ())
    target = Target.of(tensor_of(w), value, None, [(slice(0, 32), 0.5)])
    np.testing.assert_array_equal(target.rows(w, slice(0, 8)), w)


@pytest.mark.parametrize(
    "encoding", [ir.Q4_0, ir.Q4_K, ir.Q6_K, ir.mlx_affine(4, 64, ir.F16), ir.onnx_affine(4, 32, ir.F32)]
)
def test_stored_blocks_are_the_blocks(tmp_path, encoding):
    values = np.random.default_rng(3).standard_normal((7, 512)).astype(np.float32)
    stored = StoredBlocks(tmp_path / "b", tensor_of(values), encoding)
    stored.create(encode(values[:1], encoding))
    for start, stop in ((3, 7), (0, 3)):
        stored.write(start, encode(values[start:stop], encoding))
    whole = encode(values, encoding)
    np.testing.assert_array_equal(decode(stored.read(0, 7), 512), decode(whole, 512))
    np.testing.assert_array_equal(decode(stored.read(2, 5), 512), decode(whole, 512)[2:5])
    assert not stored.changed()


def test_a_full_disk_is_told_before_the_work(tmp_path, calibration, monkeypatch):
    monkeypatch.setattr(sequential, "_space", lambda _: 1 << 60)
    with pytest.raises(DiskFullError):
        phiconv.convert(TINY, tmp_path / "s.gguf", quant="Q4_0", choices=BEST, calibration=calibration)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("to", "quant"), [("mlx", "4bit"), ("onnx", "int4"), ("openvino", "int4-asym"), ("gguf", "Q4_K_M")]
)
def test_every_target_takes_it(tmp_path, calibration, to, quant):
    plan = phiconv.plan(TINY, tmp_path / "o", to=to, quant=quant, choices=BEST, calibration=calibration)
    assert pays(plan)
