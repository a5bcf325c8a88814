"""OpenVINO folders that optimum-intel wrote, and what OpenVINO computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import phiconv
from phiconv.model import Rope

EXPORTS = sorted((Path(__file__).resolve().parents[3] / "fixtures" / "openvino").glob("*.npz"))


@pytest.fixture
def unpacked(tmp_path):
    """The folder of an export, and OpenVINO's logits of some ids."""

    def unpack(path):
        with np.load(path) as content:
            for name in ("openvino_model.xml", "openvino_model.bin", "config.json"):
                (tmp_path / name).write_bytes(content[name].tobytes())
            return tmp_path, content["input_ids"].astype(int), content["logits"]

    return unpack


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_logits_of_an_export(unpacked, monkeypatch, path):
    if path.stem.endswith("-f16"):  # optimum stores the frequencies in float16, too
        exact = Rope.inverse_frequencies
        rounded = lambda rope, *, long: tuple(map(float, np.float16(exact(rope, long=long))))  # noqa: E731
        monkeypatch.setattr(Rope, "inverse_frequencies", rounded)
    folder, ids, logits = unpacked(path)
    model = phiconv.open_model(folder)
    assert model.format == "openvino"
    encodings = {t.encoding.name.split("_g")[0] for t in model.tensors.values()}
    assert encodings <= set(ENCODINGS[path.stem]) | {"f16", "f32", "bf16"}
    assert encodings >= set(ENCODINGS[path.stem])
    assert np.abs(phiconv.logits(folder, ids) - logits).max() / logits.std() < 1e-5


ENCODINGS = {
    "phi-int4": ["openvino_int4_asym", "openvino_int8_asym"],
    "phi3-f32": [],
    "phi3-int4-sym-mixed": ["openvino_int4_sym", "openvino_int8_asym"],
    "phi3-nf4": ["openvino_nf4", "openvino_int8_asym"],
    "phi3-mxfp4": ["openvino_mxfp4", "openvino_mxfp8"],
    "phi4mini-int8": ["openvino_int8_asym"],
    "phimoe-f16": [],
    "phimoe-f32": [],
    "phimoe-int4-all": ["openvino_int4_asym"],
}


def test_there_is_an_export_of_each():
    assert {path.stem for path in EXPORTS} == ENCODINGS.keys()
