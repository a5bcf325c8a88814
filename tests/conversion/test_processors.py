"""The same bytes on processors with other instructions, which choose NumPy's loops, and with other NumPys."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from numpy._core import _multiarray_umath as numpy_core

from output_hashes import RECIPES, hashes
from paths import ROOT

FEATURES = " ".join(getattr(numpy_core, "__cpu_dispatch__", []))
"""The instructions that this NumPy uses where the processor has them."""

OTHERS = {
    "processor": pytest.param(
        sys.executable,
        {"NPY_DISABLE_CPU_FEATURES": FEATURES},
        marks=pytest.mark.skipif(not FEATURES, reason="this NumPy has the same loops for all processors"),
    ),
    "numpy": pytest.param(
        os.environ.get("NUMPY_2_0"),
        {},
        marks=pytest.mark.skipif("NUMPY_2_0" not in os.environ, reason="NUMPY_2_0 names no Python"),
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_model):
    """A model of LongRoPE, so wide that all recipes have blocks in it."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    return make_model(tmp_path_factory.mktemp("model") / "m", "phi4mini", **sizes, **heads)


@pytest.fixture(scope="module")
def here(source):
    return hashes(source, RECIPES)


@pytest.mark.parametrize(("python", "variables"), OTHERS.values(), ids=OTHERS)
def test_outputs_are_the_same_elsewhere(source, here, python, variables):
    assert all(len(digest) == 64 for digest in here.values())
    script = str(ROOT / "tests" / "helpers" / "output_hashes.py")
    path = os.pathsep.join(str(ROOT / root) for root in ("converter", "formats"))
    done = subprocess.run(
        [python, "-W", "ignore", script, str(source)],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == here
