"""phiconv reads from an OpenVINO folder what OpenVINO computes with."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv

pytestmark = pytest.mark.runtime

STRICT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}


@pytest.fixture(scope="module")
def openvino():
    """The real OpenVINO."""
    return pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)


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
    request = (
        openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", STRICT).create_infer_request()
    )
    request.infer(
        {
            "input_ids": ids.astype(np.int64),
            "attention_mask": np.ones(ids.shape, np.int64),
            "position_ids": np.tile(np.arange(24), (2, 1)),
            "beam_idx": np.arange(2, dtype=np.int32),
        }
    )
    logits = request.get_tensor("logits").data
    bound = 5e-5 if kind == "phimoe-tiny" else 1e-5
    assert np.abs(logits - phiconv.logits(folder, ids)).max() / logits.std() < bound
