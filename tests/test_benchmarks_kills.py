"""The drill with kills, a short one: of one file, and of several."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_kill_leaves_the_older_output_or_the_new_one_or_what_is_recognised():
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--kills", "2", "--json"]
    done = subprocess.run(
        [*command, "--targets", "gguf,openvino file"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {row.pop("target"): row for row in json.loads(done.stdout)["kills"]}
    assert rows.keys() == {"gguf", "openvino file"}
    for name, row in rows.items():
        assert row["else"] == 0
        assert row["older"] + row["new"] + row["recognised"] == row["at names"] + row["at random"]
        assert row["at random"] == 2
        assert (row["recognised"] > 0) == (name != "gguf")  # which is one renaming
        assert row["older"] > 0
        assert row["new"] > 0
