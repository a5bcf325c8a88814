"""The benchmark against optimum-cli runs, and sees where weights differ."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

import phiconv
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "openvino.py"

TRACED = {
    "model.embed_tokens.weight": "self.model.embed_tokens._openvino_orig_weight",
    "model.layers.0.mlp.experts.gate_proj.weight": (
        "__module.model.layers.0.mlp.experts/prim::ListUnpack/VariadicSplit.0"
    ),
    "model.layers.0.mlp.experts.down_proj.weight": "self.model.layers.0.mlp.experts.down_proj",
    "model.layers.0.input_layernorm.weight": "Constant_14668_compressed",
}
"""Names of this project, and those of optimum-intel 2.2."""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Makes the folder a package that can be imported."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def pair(model_folder, tmp_path):
    """The same model twice, the second one under the names that tracing gives."""
    ours, theirs = tmp_path / "ours.xml", tmp_path / "theirs.xml"
    phiconv.convert(model_folder("phimoe"), ours, quant="int4-asym-g32")
    text = ours.read_text()
    for name, traced in TRACED.items():
        assert f'name="{name}' in text
        text = text.replace(f'name="{name}', f'name="{traced}')
    theirs.write_text(text)
    shutil.copy(ours.with_suffix(".bin"), theirs.with_suffix(".bin"))
    return ours, theirs


def change(path, name):
    """Changes the first byte of a constant."""
    layers = ET.parse(path).iterfind(f"layers/layer[@name='{name}']/data")  # noqa: S314 - our own
    (offset,) = (int(data.get("offset")) for data in layers)
    content = bytearray(path.with_suffix(".bin").read_bytes())
    content[offset] ^= 1
    path.with_suffix(".bin").write_bytes(content)


def test_equal_weights_under_other_names(pair):
    from benchmarks.openvino_constants import compare

    found = compare(*pair)
    assert "equal byte for byte" in found
    assert found.endswith("19 norms and biases, equal")


@pytest.mark.parametrize("part", ["", "/scale", "/zero_point"])
def test_one_different_byte_is_seen(pair, part):
    from benchmarks.openvino_constants import compare

    name = f"model.layers.1.mlp.experts.up_proj.weight{part}"
    change(pair[0], name)
    assert compare(*pair).startswith("DIFFER: 1 of ")
    assert f"{name} (1 bytes of " in compare(*pair)


def test_a_different_norm_is_seen(pair):
    from benchmarks.openvino_constants import compare

    change(pair[0], "model.norm.weight")
    assert compare(*pair).endswith("norms or biases DIFFER")


def test_other_types_and_other_names_are_seen(pair, model_folder):
    from benchmarks.openvino_constants import compare

    other = pair[0].with_name("other.xml")
    phiconv.convert(model_folder("phimoe"), other, quant="int8-sym")
    assert "names" in compare(pair[0], other)
    phiconv.convert(model_folder("phimoe"), other, quant="int4-asym-channel", force=True)
    assert "u4 (" in compare(pair[0], other)


def test_options_of_the_peer():
    from benchmarks.openvino import peer_options

    assert peer_options("int4-sym") == ["--weight-format", "int4", "--group-size", "128", "--sym"]
    assert peer_options("int4-asym-g64") == ["--weight-format", "int4", "--group-size", "64"]
    assert peer_options("int4-asym-channel") == ["--weight-format", "int4", "--group-size", "-1"]
    assert peer_options("nf4") == ["--weight-format", "nf4", "--group-size", "128"]
    assert peer_options("int8-sym") == ["--weight-format", "int8", "--sym"]
    assert peer_options("f16") == ["--weight-format", "fp16"]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="os.wait4 is not there")
def test_runs_without_the_peer(model_folder):
    command = [sys.executable, SCRIPT, "--model", model_folder("phi3"), "--rounds", "0", "--json"]
    environment = {**os.environ, "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "optimum-cli" in found["skipped"]
    assert [row["step"] for row in found["steps"]] == ["phiconv, int4-asym"]
