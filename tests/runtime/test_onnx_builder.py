"""Weights of ONNX models are those that the model builder of ONNX Runtime GenAI writes.

The builder needs torch and transformers: ``MODEL_BUILDER`` in the environment names a Python that has them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import phiconv
from paths import ROOT

pytestmark = pytest.mark.runtime

PEER = os.environ.get("MODEL_BUILDER", sys.executable)
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
CASES = [
    ("phi3-gqa", "int4", "cpu"),
    ("phi3-gqa", "int4-k_quant-g16", "cpu"),
    ("phi3-gqa", "int8-asym", "cuda"),
    ("phi3-gqa", "f16", "dml"),
    ("phi", "int4-k_quant_mixed", "cpu"),
    ("phi4mini", "int4-rtn", "cpu"),
    ("llama-bias", "int4", "cpu"),
    ("qwen3-untied", "int4-rtn", "cuda"),
]


@pytest.fixture(scope="module")
def builder():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks import onnx, onnx_builder

        if reason := onnx.why_not(PEER):
            pytest.skip(f"no model builder: {reason}")
        yield onnx_builder


@pytest.mark.parametrize(("kind", "recipe", "target"), CASES, ids=["-".join(case) for case in CASES])
def test_weights_are_the_builders(builder, model_folder, tmp_path, kind, recipe, target):
    choices = phiconv.Choices(match_runtime=True, target=target)
    phiconv.convert(model_folder(kind), tmp_path / "ours", to="onnx", quant=recipe, choices=choices)
    command = builder.builder_command(PEER, model_folder(kind), tmp_path / "theirs", recipe, target)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=OFFLINE)
    assert done.returncode == 0, done.stderr
    found = builder.compare(tmp_path / "ours", tmp_path / "theirs")
    assert (found.different, found.missing, found.added) == ({}, [], [])
    assert found.equal > 10
