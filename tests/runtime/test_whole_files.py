"""A quantized file is, byte for byte, the one that llama-quantize --pure makes of the unquantized file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiconv

pytestmark = pytest.mark.runtime

ROOT = Path(__file__).resolve().parents[2]
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
KINDS = [
    "phi",
    "phi-fp16",
    "phi2",
    "phi3",
    "phi3-gqa",
    "phi3-su",
    "phi3-sharded",
    "phi4",
    "phi4mini",
    "phi4mini-transformers5",
    "phimoe",
    "phimoe-transformers5",
    "phimoe-stacked",
    "phimoe-tiny",
    "tiny-phi3",
    "tiny-phi4mini",
]


@pytest.fixture(scope="session")
def llama_libraries():
    """The folder of the released libraries, fetched on the first run."""
    script = ROOT / "fixtures" / "fetch_llama.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no released llama.cpp: run fixtures/fetch_llama.py ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def quantize_with_llama(llama_libraries, tmp_path):
    """Quantizes one file to all `TYPES`; the folder that holds TYPE.gguf."""

    def quantize(source):
        folder = tmp_path / "llama"
        folder.mkdir()
        command = [sys.executable, ROOT / "tests/runtime/llama_release.py", llama_libraries, source, folder]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        done = subprocess.run(
            [*command, *TYPES], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return folder

    return quantize


def differing_bytes(path, other):
    data, expected = (np.fromfile(p, np.uint8) for p in (path, other))
    if data.size != expected.size:
        return f"{data.size} bytes instead of {expected.size}"
    return int(np.count_nonzero(data != expected))


def check(folder, quantize_with_llama, tmp_path):
    model = phiconv.open_model(folder)
    source = phiconv.convert(model, tmp_path / "source.gguf").files[0]
    theirs = quantize_with_llama(source)
    for name in TYPES:
        phiconv.convert(model, tmp_path / f"{name}.gguf", quant=name)
    differences = {t: differing_bytes(tmp_path / f"{t}.gguf", theirs / f"{t}.gguf") for t in TYPES}
    assert differences == dict.fromkeys(TYPES, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_file_is_the_one_of_llama_quantize(kind, model_folder, quantize_with_llama, tmp_path):
    check(model_folder(kind), quantize_with_llama, tmp_path)


def test_rows_that_are_not_whole_blocks(make_model, quantize_with_llama, tmp_path):
    # hidden_size 80 and intermediate_size 112 are no multiples of 32: those matrices become F16.
    folder = make_model(tmp_path / "odd", "phi3", hidden_size=80, intermediate_size=112)
    check(folder, quantize_with_llama, tmp_path)


def test_every_kind_is_tried(make_models):
    assert set(KINDS) == {*make_models.KINDS, "tiny-phi3", "tiny-phi4mini"}
