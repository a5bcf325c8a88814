"""Ranges of activations: measured by NumPy, stored in a small file, and what makes a file none."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.errors import InputError, MalformedFileError, UnsupportedModelError, UsageError, WeightError
from phiconv.forward.interpreter import compute
from phiconv.ir.model import Role
from phiconv.ir.ranges import Range
from phiconv.quality.ranges import measure_ranges
from phiconv_formats.calibration.ranges import read_ranges
from phiconv_formats.onnx.activations import WIDENED, parameters

IDS = np.arange(300) * 37 % 2000


def test_inputs_are_those_of_the_products():
    model = phiconv.open_model(FIXTURES / "tiny-phi4mini")
    found = measure_ranges(model, IDS, context=128).matrices
    seen = {}

    def watch(role, x, expert):
        low, high = seen.get(role, (math.inf, -math.inf))
        seen[role] = min(low, float(x.min())), max(high, float(x.max()))

    compute(model, IDS[:256].reshape(2, 128), watch=watch)
    assert {role: tuple(pair.inputs) for role, pair in found.items()} == seen
    assert len(found) == 7 * 4


def test_outputs_are_before_the_bias(model_folder):
    model = phiconv.open_model(model_folder("phi"))
    role = Role("ffn_up", 0)
    found = measure_ranges(model, IDS[:64], context=64).matrices[role]
    inputs = []
    compute(model, IDS[None, :64], watch=lambda r, x, _: inputs.append(x.copy()) if r == role else None)
    outputs = inputs[0] @ phiconv.read(model.tensors[role]).T
    assert found.outputs == pytest.approx((outputs.min(), outputs.max()), abs=1e-5)


def test_file(tmp_path):
    path = tmp_path / "ranges.json"
    assert phiconv.calibrate(FIXTURES / "tiny-phi4mini", IDS, path, context=128, tokens=256) == path
    value = json.loads(path.read_text())
    assert value["tokens"] == 256
    found = read_ranges(path)
    model = phiconv.open_model(FIXTURES / "tiny-phi4mini")
    assert found.model.architecture == "phi3"
    assert set(found.ranges.matrices) <= set(model.tensors)
    first = path.read_bytes()
    phiconv.calibrate(model, IDS, path, context=128, tokens=256, force=True)
    assert path.read_bytes() == first


def test_refusals_of_models(model_folder, make_model, tmp_path):
    with pytest.raises(UnsupportedModelError, match="mixture"):
        phiconv.calibrate(model_folder("phimoe"), IDS, tmp_path / "r.json", context=64)
    with pytest.raises(UsageError):
        phiconv.calibrate(FIXTURES / "tiny-phi4mini", IDS[:10], tmp_path / "r.json", context=64)
    assert not [*tmp_path.iterdir()]


def test_infinite_activations_are_refused(model_folder):

    model = phiconv.open_model(model_folder("phi3"))
    role = Role("attn_norm", 1)
    width = model.tensors[role].shape
    bad = ir.constant(np.full(width, np.inf, np.float32), "bad")
    broken = replace(model, tensors={**model.tensors, role: bad})
    with pytest.raises(WeightError, match="NaN or infinite"):
        measure_ranges(broken, IDS[:64], context=64)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"model": {}},
        {"model": []},
        {"ranges": []},
        {"ranges": {"layers.0.attn_q.bias": [[0, 1], [0, 1]]}},
        {"ranges": {"layers.0.attn_q.weight": [[0, 1]]}},
        {"ranges": {"layers.0.attn_q.weight": [[1, 0], [0, 1]]}},
        {"ranges": {"layers.0.attn_q.weight": [[True, 1], [0, 1]]}},
        {"ranges": {"layers.0.attn_q.weight": [0, 1]}},
        {"ranges": {"layers.0.attn_q.weight": [[0, 1e999], [0, 1]]}},
    ],
    ids=str,
)
def test_files_that_are_none(tmp_path, change):
    path = tmp_path / "ranges.json"
    phiconv.calibrate(FIXTURES / "tiny-phi4mini", IDS, path, context=128, tokens=256)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError):
        read_ranges(path)
    path.write_text("[]")
    with pytest.raises(MalformedFileError):
        read_ranges(path)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)])
def test_codes_hold_the_widened_range_and_zero(low, high):
    scale, zero = parameters(Range(low, high))
    assert scale.shape == zero.shape == ()
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint16)
    for number in (low * WIDENED, high * WIDENED):
        code = np.rint(np.float32(number) / scale) + zero
        assert -1 <= code <= 65536
    assert 0 <= zero <= 65535


@pytest.mark.parametrize("number", [3, 5])
def test_more_layers_of_a_union(number):
    found = [Range(-n, n * n) for n in range(number)]
    assert Range.union(found) == Range(-(number - 1), (number - 1) ** 2)
