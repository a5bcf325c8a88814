"""transformers loads compressed-tensors folders and computes what their numbers say.

It needs torch, transformers and compressed-tensors: ``COMPRESSED_TENSORS`` in the environment names a Python
that has them. (Beside compressed-tensors 0.20, transformers 5.24 loads no folder with zero points, whoever
made it.)
"""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

import make_golden_server as peers
import phiconv
from paths import ROOT
from vllm_logits import PROMPTS

pytestmark = pytest.mark.runtime

PEER = os.environ.get("COMPRESSED_TENSORS", "")

# In bfloat16 it is off by 1 part in 100; where it quantizes activations, too, by what that costs.
CASES = {
    "w4a16": 0.02,
    "w8a16": 0.02,
    "nvfp4a16": 0.02,
    "mxfp4a16": 0.02,
    "w8a8": 0.06,
    "w4a8": 0.06,
    "fp8-dynamic": 0.15,
    "fp8-block": 0.15,
    "mxfp8": 0.15,
}


@pytest.mark.parametrize("recipe", CASES)
def test_logits_are_those_of_the_numbers(make_model, tmp_path, recipe):
    if not PEER:
        pytest.skip("no compressed-tensors: COMPRESSED_TENSORS does not name a Python that has it")
    kind, settings = peers.MODELS["phi3"]
    source = make_model(tmp_path / "source", kind, seed=16, **settings)
    phiconv.convert(source, tmp_path / "o", to="compressed-tensors", quant=recipe)
    script = ROOT / "tests" / "helpers" / "transformers_logits.py"
    command = [PEER, script, tmp_path / "o", tmp_path / "logits.npy"]
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "logits.npy")
    wanted = np.stack([phiconv.logits(tmp_path / "o", [ids])[0, -1] for ids in PROMPTS])
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < CASES[recipe]
