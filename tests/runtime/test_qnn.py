"""Folders for Qualcomm's processors: right on the CPU, in GenAI's pipeline, and on Qualcomm's simulator.

The simulator comes with onnxruntime-qnn, which is large: ``QNN_PYTHON`` in the environment names a Python
that has it, onnxruntime-genai, and what phiconv needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import phiconv
import qnn_pipeline
from paths import FIXTURES, ROOT
from qnn_pipeline import Pipeline
from references import RANDOM, open_reference, random_model, relative_l2

pytestmark = pytest.mark.runtime

SOURCES = os.pathsep.join(str(ROOT / name) for name in ("converter", "formats"))
PEER = os.environ.get("QNN_PYTHON", sys.executable)
DENSE = [name for name in RANDOM if not name.startswith("phimoe")]


def convert(source, folder, quant="f32", **choices):
    choices = phiconv.Choices(target="qnn", **choices)
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=choices)


# ------------------------------------------------------------------------------------------------- on the CPU


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_trained_models(ort, tmp_path, name, attention):
    """In chunks of 64 tokens, and token by token."""
    kept = open_reference(f"{name}/reference.npz")
    convert(FIXTURES / name, tmp_path / "m", attention=attention, context=256)
    logits = Pipeline(ort, tmp_path / "m").run(kept["input_ids"][0], 20)
    assert relative_l2(logits, kept["logits_f32"][0]) < 1e-6


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_long_factors(ort, tmp_path, attention):
    kept = open_reference("tiny-phi4mini/reference.npz")
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", attention=attention, context=1024)
    logits = Pipeline(ort, tmp_path / "m").run(kept["long_input_ids"][0], 8)
    assert relative_l2(logits[-32:], kept["long_logits_last32_f32"][0]) < 1e-6


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("name", DENSE)
def test_logits_are_those_of_transformers(ort, make_model, make_models, tmp_path, name, attention):
    kept = open_reference(f"references/{name}.npz")
    source = random_model(make_model, make_models, tmp_path / "s", name)
    context = 640 if len(kept["input_ids"]) > 512 else 64
    convert(source, tmp_path / "m", attention=attention, context=context)
    logits = Pipeline(ort, tmp_path / "m").run(kept["input_ids"], 3)
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 2e-6
    assert (logits.argmax(axis=-1) == kept["argmax"]).all()


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_windows_across_chunks(ort, make_model, tmp_path, attention):
    source, ids = make_model(tmp_path / "s", "phi3", seed=7, sliding_window=40), np.arange(150) * 37 % 500
    convert(source, tmp_path / "m", attention=attention, context=192)
    expected = phiconv.logits(source, ids[None])[0]
    assert relative_l2(Pipeline(ort, tmp_path / "m").run(ids, 10), expected) < 2e-6


def test_cut_layers_compute_the_same(ort, tmp_path, monkeypatch):
    from phiconv_formats.onnx import pipeline

    kept = open_reference("tiny-phi3/reference.npz")
    monkeypatch.setattr(pipeline, "_MOST_BYTES", 4_000_000)
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", context=128)
    session = Pipeline(ort, tmp_path / "m")
    assert len(session.stages) > 6
    assert relative_l2(session.run(kept["input_ids"][0], 2), kept["logits_f32"][0]) < 1e-6


# --------------------------------------------------------------------------------------------------- in GenAI


def generate(genai, folder, ids, count):
    """The likeliest tokens, with every graph on the CPU."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    for stage in config["model"]["decoder"]["pipeline"][0].values():
        stage.pop("session_options", None)
    path.write_text(json.dumps(config))
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    padded = -(-len(ids) // 64) * 64
    options.set_search_options(max_length=padded + count, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    tokens = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_genai_generates_what_numpy_does(tmp_path, name, attention):
    """Prompts that end within a chunk, at its end, and right behind."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    convert(FIXTURES / name, tmp_path / "m", attention=attention, context=512)
    kept = open_reference(f"{name}/reference.npz")
    prompts = [kept["input_ids"][i, :n] for i, n in enumerate((6, 64, 65))]
    for prompt in (*prompts, kept["long_input_ids"][0, :300]):
        ids = prompt.tolist()
        assert generate(genai, tmp_path / "m", ids, 32) == list(phiconv.generate(FIXTURES / name, ids, 32))


@pytest.fixture(scope="session")
def ranges(tmp_path_factory):
    """Of tiny-phi4mini, on the end of the text that other tests use from its beginning."""
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")[-60_000:]
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    return phiconv.calibrate(FIXTURES / "tiny-phi4mini", text, path, context=256, tokens=4096)


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_products_of_integers_are_near_floats(ort, ranges, tmp_path, attention):
    options = phiconv.Choices(target="qnn", context=128, attention=attention)
    phiconv.convert(
        FIXTURES / "tiny-phi4mini", tmp_path / "m", to="onnx", quant="w8a16", ranges=ranges, choices=options
    )
    kept = open_reference("tiny-phi4mini/reference.npz")
    logits = Pipeline(ort, tmp_path / "m").run(kept["input_ids"][0], 4)
    assert relative_l2(logits, kept["logits_f32"][0]) < 0.01


# ------------------------------------------------------------------------------------------- on the simulator


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Logits of the simulator; no node of the layers may run anywhere else."""
    probe = "import onnxruntime, onnxruntime_qnn"
    if subprocess.run([PEER, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("onnxruntime-qnn is not installed: QNN_PYTHON names a Python that has it")

    def run(folder, ids, steps=2):
        work = tmp_path_factory.mktemp("simulated")
        np.save(work / "ids.npy", ids)
        command = [PEER, qnn_pipeline.__file__, folder, work / "ids.npy", work / "logits.npy", "--simulator"]
        command = [*map(str, command), "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return np.load(work / "logits.npy")

    return run


@pytest.mark.parametrize("case", ["tiny-phi3 q4 gqa", "tiny-phi4mini q4 standard", "tiny-phi4mini q8 gqa"])
def test_the_simulator_computes_all_layers(ort, simulated, tmp_path, case):
    name, quant, attention = case.split()
    convert(FIXTURES / name, tmp_path / "m", quant, attention=attention, context=256, accuracy_level=0)
    ids = open_reference(f"{name}/reference.npz")["input_ids"][0, :66]
    expected = Pipeline(ort, tmp_path / "m").run(ids, 2)
    logits = simulated(tmp_path / "m", ids, 2)
    assert relative_l2(logits, expected) < 2e-3
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.98


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_biases_and_partly_rotated_heads_on_the_simulator(ort, simulated, model_folder, tmp_path, attention):
    convert(model_folder("phi"), tmp_path / "m", "q4", attention=attention, context=128, accuracy_level=0)
    ids = np.arange(66) * 37 % 500
    expected = Pipeline(ort, tmp_path / "m").run(ids, 2)
    assert relative_l2(simulated(tmp_path / "m", ids, 2), expected) < 5e-3


def compiled(source, folder, *options):
    """Compiles as the command does, where the compiler is."""
    command = [PEER, "-m", "phiconv", "compile", source, folder, *options]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("soc", ["SC8380XP", "SM8850"])
def test_the_compiler_takes_every_graph(simulated, tmp_path, soc, attention):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "q4", attention=attention, context=256)
    folder = compiled(tmp_path / "m", tmp_path / "c", "--soc", soc)
    (binary,) = folder.glob("*.bin")
    assert f"soc_type={soc}".encode() in binary.read_bytes()


def test_the_simulator_computes_what_was_compiled(simulated, tmp_path):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "q4", attention="standard", context=256)
    ids = open_reference("tiny-phi4mini/reference.npz")["input_ids"][0, :66]
    folder = compiled(tmp_path / "m", tmp_path / "c", "--soc", "60", "--no-share")
    assert (simulated(folder, ids) == simulated(tmp_path / "m", ids)).all()


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_the_simulator_multiplies_integers(ort, simulated, ranges, tmp_path, quant):
    options = phiconv.Choices(target="qnn", context=128, attention="standard", accuracy_level=0)
    phiconv.convert(
        FIXTURES / "tiny-phi4mini", tmp_path / "m", to="onnx", quant=quant, ranges=ranges, choices=options
    )
    ids = open_reference("tiny-phi4mini/reference.npz")["input_ids"][0, :66]
    expected = Pipeline(ort, tmp_path / "m").run(ids, 2)
    logits = simulated(tmp_path / "m", ids)
    assert relative_l2(logits, expected) < (1e-3 if quant == "w8a16" else 3e-3)
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.98


GENERATE = """
import json, sys
import onnxruntime_genai as genai, onnxruntime_qnn
genai.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
model = genai.Model(sys.argv[1])
options = genai.GeneratorParams(model)
options.set_search_options(max_length=68, do_sample=False)
generator = genai.Generator(model, options)
generator.append_tokens(json.loads(sys.argv[2]))
tokens = []
while len(tokens) < 3 and not generator.is_done():
    generator.generate_next_token()
    tokens.append(int(generator.get_next_tokens()[0]))
print(json.dumps(tokens))
"""


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_genai_generates_the_same_on_the_simulator(simulated, tmp_path, attention):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "q4", attention=attention, context=128)
    ids = [374, 457, 999, 12, 55]
    command = [PEER, "-c", GENERATE, str(tmp_path / "m"), json.dumps(ids)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == generate(genai, tmp_path / "m", ids, 3)
