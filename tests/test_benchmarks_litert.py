"""The benchmark against Google's tools runs without them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "litert.py"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="os.wait4 is not there")
def test_runs_with_any_converter_or_none(model_folder, tmp_path):
    copying = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(b'x' * 2**20)"
    peer = f"{shlex.join([sys.executable, '-c', copying])} {{out}} {{model}}"
    command = [sys.executable, SCRIPT, "--model", model_folder("phi3"), "--rounds", "0", "--json"]
    options = ["--recipes", "f16", "--peer", peer, "--peer-environment", tmp_path]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["step"] for row in found["steps"]] == ["phiconv, f16", "the peer"]
    assert found["steps"][1]["MiB"] == 1
    assert found["outputs"][0]["the peer's environment"] == 0
    assert found["outputs"][0]["this environment"] > 0
