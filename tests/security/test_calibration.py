"""Calibration folders that lie, end early, or hold what no calibration holds."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import count

import numpy as np
import pytest

import phiconv
from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError
from phiconv.ir.model import Role
from phiconv_formats.calibration.reader import open_calibration

IDS = np.arange(60) + 60


@pytest.fixture(scope="module")
def good(model_folder, tmp_path_factory):
    return phiconv.calibrate(model_folder("phimoe"), IDS, tmp_path_factory.mktemp("c") / "c", context=10)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "c")


def use(folder):
    calibration = open_calibration(folder)
    for entry in calibration.manifest.inputs:
        for expert in range(4) if entry.stacked else (None,):
            calibration.of(Role(entry.roles[0], entry.layer), expert)


def edit(folder, change):
    path = folder / "calibration.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_good_one_passes(folder):
    use(folder)
    for path in folder.glob("*.npy"):
        assert np.load(path).size  # anybody can read them


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(format="x"), "no calibration of phiconv"),
        (lambda v: v.update(inputs={}), "an array is expected"),
        (lambda v: v.update(inputs=[1]), "an object is expected"),
        (lambda v: v.update(inputs=v["inputs"] * 2), "there twice"),
        (lambda v: v.update(model=None), "an object is expected"),
        (lambda v: v.update(context=True), "within reason"),
        (lambda v: v.update(bos=-1), "within reason"),
        (lambda v: v.update(imatrix="x"), "a SHA-256 is expected"),
        (lambda v: v["model"].pop("norms"), "a text is expected"),
        (lambda v: v["inputs"][0].update(roles=["../../x"]), "names of matrices"),
        (lambda v: v["inputs"][0].update(roles=[]), "names of matrices"),
        (lambda v: v["inputs"][0].update(layer="0"), "within reason"),
        (lambda v: v["inputs"][0].update(columns=1 << 40), "within reason"),
        (lambda v: v["inputs"][0].update(columns=1 << 30), "bytes, and"),
        (lambda v: v["inputs"][0].update(stacked=1), "true or false"),
        (lambda v: v["inputs"][0]["parts"]["fit"].update(tokens=[]), "one number for each"),
        (lambda v: v["inputs"][0]["parts"]["fit"].update(tokens=[-5]), "within reason"),
        (lambda v: v["inputs"][0]["parts"]["fit"].update(tokens=[1, 2]), "one number for each"),
        (lambda v: v["inputs"][0]["parts"].pop("check"), "an object is expected"),
        (lambda v: v["inputs"][3]["parts"]["fit"]["tokens"].append(0), "different numbers of experts"),
        (lambda v: v["inputs"][0]["parts"]["fit"].update(sha256={}), "unknown arrays"),
        (lambda v: v["inputs"][0]["parts"]["fit"]["tokens"].__setitem__(0, 7), "other tokens than"),
        (lambda v: v.update(sensitivities=None), "an array is expected"),
        (lambda v: v["sensitivities"].append(7), "an object is expected"),
        (lambda v: v["sensitivities"].append({"layer": None, "role": 3}), "a text is expected"),
        (lambda v: v["sensitivities"].append({"role": "output", "divergence": -1}), "within reason"),
        (lambda v: v["sensitivities"].append({"role": "output", "divergence": float("nan")}), "calibration"),
    ],
    ids=count(),
)
def test_manifests(folder, change, says, refused):
    edit(folder, change)
    refused(use, folder, says=says, kind=MalformedFileError)


def test_other_versions_and_no_folder(folder, tmp_path):
    edit(folder, lambda v: v.update(version=2))
    with pytest.raises(UnsupportedModelError, match="another version"):
        open_calibration(folder)
    with pytest.raises(MissingFileError):
        open_calibration(tmp_path / "none")


def test_expert_counts_that_lie(folder, refused):
    def swap(values):
        for entry in values["inputs"]:
            if entry["stacked"]:
                tokens = entry["parts"]["fit"]["tokens"]
                tokens[0], tokens[1] = tokens[0] + 1, tokens[1] - 1

    edit(folder, swap)
    refused(use, folder, says="rows of expert 0", kind=MalformedFileError)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d[:-1], "bytes, and"),
        (lambda d: d + b"x", "bytes, and"),
        (lambda d: d[:0], "bytes, and"),
        (lambda d: d[:-2] + bytes([d[-2] ^ 1]) + d[-1:], "its SHA-256 is another one"),
        (lambda d: d.replace(b"<f2", b"<i2"), "is no array of float16"),
        (lambda d: d.replace(b"False", b"True "), "is no array of float16"),
    ],
    ids=count(),
)
def test_arrays(folder, damage, says, refused):
    path = folder / "000.attn_q.fit.inputs.npy"
    path.write_bytes(damage(path.read_bytes()))
    error = refused(use, folder, says=says, kind=MalformedFileError)
    assert error.path == path


def test_missing_array_and_pipe(folder, refused):
    path = folder / "000.attn_q.fit.inputs.npy"
    path.unlink()
    refused(use, folder, says="there is no such file", kind=MissingFileError)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN or infinite"), (-1.0, "negative")])
def test_numbers_that_cannot_be(folder, value, says, refused):
    path = folder / "output.squares.npy"
    data = path.read_bytes()[:-8] + np.array(value, "<f8").tobytes()
    path.write_bytes(data)
    edit(folder, lambda v: v["inputs"][-1].update(squares=hashlib.sha256(data).hexdigest()))
    refused(use, folder, says=says, kind=MalformedFileError)
