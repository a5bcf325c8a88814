"""phiconv reads from an OpenVINO folder what OpenVINO computes with."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from openvino_runtime import STRICT, infer

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("kind", "quant"),
    [
        ("phi2", "int4-asym-g32"),
        ("phi3-gqa", "int4-sym-g32"),
        ("tiny-phi3", "int4-asym"),
        ("tiny-phi4mini", "nf4-g32"),
        ("tiny-phi4mini", "int8-asym"),
        ("phimoe-tiny", "int4-sym-channel"),
    ],
)
def test_logits_of_a_folder(openvino, tmp_path, model_folder, kind, quant):
    folder = tmp_path / "m"
    phiconv.convert(model_folder(kind), folder, to="openvino", quant=quant)
    vocabulary = phiconv.open_model(folder).hyperparameters.vocab_size
    ids = np.random.default_rng(3).integers(0, vocabulary, (2, 24))
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", STRICT)
    logits = infer(compiled, ids)
    bound = 5e-5 if kind == "phimoe-tiny" else 1e-5
    assert np.abs(logits - phiconv.logits(folder, ids)).max() / logits.std() < bound
