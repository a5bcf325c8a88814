"""What rounding one matrix does: each figure against the model computed with that matrix rounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import phiconv
from phiconv.ir import F32, Tensor
from phiconv.ir.model import Role
from phiconv.quality.sensitivity import measure_sensitivities, probed_layers
from phiconv.quantizers.coarse import coarse
from phiconv_formats.calibration.reader import open_calibration

IDS = np.random.default_rng(5).integers(70, 1000, (3, 20))


def divergence(own, other):
    """Of two models' logits, plainly."""
    p, q = (
        values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
        for values in (own.astype(np.float64), other.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("kind", ["phi", "phi4mini", "phimoe"])
def test_each_is_the_divergence_of_a_model_with_that_matrix_rounded(kind, model_folder, tmp_path):
    source = model_folder(kind)
    model = phiconv.open_model(source)
    found = {each.role: each.divergence for each in measure_sensitivities(model, IDS, tmp_path)}
    assert not [*tmp_path.iterdir()]
    own = phiconv.logits(model, IDS)
    matrices = {role for role, tensor in model.tensors.items() if len(tensor.shape) > 1}
    assert set(found) == matrices
    for role, value in found.items():
        tensor = model.tensors[role]
        rounded = coarse(phiconv.read(tensor).reshape(-1, tensor.columns)).reshape(tensor.shape)
        changed = phiconv.logits(_with(model, role, rounded), IDS)
        assert value == pytest.approx(divergence(own, changed), rel=1e-2, abs=1e-9)
        assert value > 0


def _with(model, role, values):
    class Source:
        label, encoding = "rounded", F32

        def read(self, start, stop):
            return values.reshape(-1, values.shape[-1])[start:stop].copy()

        def changed(self):
            return False

    tensor = Tensor.of(Source(), values.shape)
    return replace(model, tensors={**model.tensors, role: tensor})


def test_layers_that_are_probed():
    assert probed_layers(1) == [0]
    assert probed_layers(6) == [0, 1, 2, 3, 4, 5]
    assert probed_layers(32) == [0, 4, 9, 13, 18, 22, 27, 31]


def test_coarse_rounding():
    values = np.array([[7.0, -3.4, 3.6, 0.2, *[0.0] * 28, 0.0, 1.4, -1.0]], np.float32)
    expected = [[7, -3, 4, 0, *[0] * 28, 0, 1.4, -1.0]]
    np.testing.assert_allclose(coarse(values), expected, atol=1e-6)
    assert not coarse(np.zeros((2, 40), np.float32)).any()


def test_calibration_folders_have_them(model_folder, tmp_path):
    source = model_folder("phi4mini")
    ids = np.random.default_rng(5).integers(70, 1000, 640)
    plain = phiconv.calibrate(source, ids, tmp_path / "plain", context=64)
    folder = phiconv.calibrate(source, ids, tmp_path / "c", context=64, sensitivity=True)
    assert open_calibration(plain).divergence(Role("attn_q", 0)) is None
    calibration = open_calibration(folder)
    ends = [calibration.divergence(Role("ffn_down", layer)) for layer in (0, 1)]
    assert all(ends)
    assert calibration.divergence(Role("token_embedding")) > 0
    # A finished folder is used again only if it has them.
    before = (plain / "calibration.json").read_bytes()
    phiconv.calibrate(source, ids, plain, context=64, reuse=True)
    assert (plain / "calibration.json").read_bytes() == before
    phiconv.calibrate(source, ids, plain, context=64, reuse=True, sensitivity=True, force=True)
    assert (plain / "calibration.json").read_bytes() == (folder / "calibration.json").read_bytes()
