"""Folders of the transformers.js layout: the real library loads them under Node, with its own ids and logits.

``TRANSFORMERS_JS`` in the environment names a folder with ``node_modules/@huggingface/transformers``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import phiconv
from phiconv.tokenization.encoder import encode
from references import relative_l2

pytestmark = pytest.mark.runtime

PEER = os.environ.get("TRANSFORMERS_JS", "")
SCRIPT = Path(__file__).parents[1] / "helpers" / "transformers_js.mjs"
TEXTS = [
    "Once upon a time there was a little cat.",
    "  two spaces  and\n\n    an indented line\tand a tab",
    " one in front, and one behind ",
    "1234567 3.14 e=mc² naïve — 日本語 🙂 <|end|> x<|endoftext|>y",
    "def f(x):\n    return x  # don't",
]
# Kind, recipe, target, and what transformers.js calls it.
CASES = [
    ("tiny-phi3", "int4", "cpu", "q4"),
    ("tiny-phi3", "f32", "cpu", "fp32"),
    ("tiny-phi3", "int8", "cpu", "q8"),
    ("tiny-phi3", "f16", "cpu", "fp16"),
    ("tiny-phi3", "int4-qdq", "cpu", "q4"),
    ("tiny-phi3", "int4", "webgpu", "q4f16"),
    ("tiny-phi3", "f16", "webgpu", "fp16"),
    ("tiny-phi3", "int4", "dml", "q4f16"),
    ("phi4mini", "int4", "cpu", "q4"),
    ("phi2", "int4-k_quant_mixed", "cpu", "q4"),
    ("phi", "f32", "cpu", "fp32"),
    ("llama3", "int4", "cpu", "q4"),
    ("qwen2", "int8-asym-g64", "cpu", "q8"),
    ("qwen3", "int4", "cpu", "q4"),
]


@pytest.fixture(scope="module")
def js():
    """``js(folder, ids, **more)`` is what the library makes of a folder."""
    if not PEER:
        pytest.skip("no transformers.js: TRANSFORMERS_JS names no folder")
    node = shutil.which("node")
    if node is None:
        pytest.skip("no transformers.js: there is no node")
    assert (Path(PEER) / "node_modules" / "@huggingface" / "transformers").is_dir()

    def run(folder, ids, **more):
        wanted = {"texts": TEXTS, "ids": ids, "count": 6, "options": {}, **more}
        command = [node, str(SCRIPT), PEER, str(folder)]
        done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        answer["logits"] = np.array(answer["logits"]).reshape(answer["shape"])
        return answer

    return run


def written(source, folder, recipe, *, split=None, **choices):
    made = phiconv.Choices(layout="transformers.js", **choices)
    return phiconv.convert(source, folder, to="onnx", quant=recipe, choices=made, split_max_size=split)


def onnx_session(ort, graph):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def step(session, ids, past):
    """Logits and cache of ONNX Runtime in Python; ``past`` is the cache of the tokens before, or None."""
    (batch, length), inputs = np.shape(ids), {i.name: i for i in session.get_inputs()}
    before = 0 if past is None else past[0].shape[2]
    mask = np.ones((batch, before + length), np.int64)
    feeds = {"input_ids": np.array(ids, np.int64), "attention_mask": mask}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.tile(np.arange(before, before + length), (batch, 1))
    for i, name in enumerate(name for name in inputs if name.startswith("past")):
        _, heads, _, width = inputs[name].shape
        dtype = np.float32 if inputs[name].type == "tensor(float)" else np.float16
        feeds[name] = np.zeros((batch, heads, 0, width), dtype) if past is None else past[i]
    logits, *cache = session.run(None, feeds)
    return logits.astype(np.float64), cache


def continuation(session, ids, count):
    made, new, past = [*ids], [*ids], None
    for _ in range(count):
        logits, past = step(session, [new], past)
        new = [int(logits[0, -1].argmax())]
        made += new
    return made


@pytest.mark.parametrize(("kind", "recipe", "target", "dtype"), CASES, ids=["-".join(c) for c in CASES])
def test_it_computes_what_onnx_runtime_does(js, ort, model_folder, tmp_path, kind, recipe, target, dtype):
    tokenizer = written(model_folder(kind), tmp_path / "m", recipe, target=target).plan.model.tokenizer
    ids = encode(tokenizer, TEXTS[0])[:12]
    answer = js(tmp_path / "m", [ids], options={"dtype": dtype})
    assert answer["ids"] == [encode(tokenizer, text, special=True) for text in TEXTS]
    (graph,) = (tmp_path / "m" / "onnx").glob("*.onnx")
    session = onnx_session(ort, graph)
    # Another release of the same runtime; a small change of a sum may round an activation otherwise.
    assert relative_l2(answer["logits"], step(session, [ids], None)[0]) < (3e-2 if "q" in dtype else 5e-3)
    if kind == "tiny-phi3":  # it is trained: the likeliest token is so by far
        assert answer["made"] == [continuation(session, ids, 6)]


def test_config_json_says_which_graph_and_how_many_files(js, model_folder, tmp_path):
    written(model_folder("tiny-phi3"), tmp_path / "m", "int8", split=2_000_000)
    written(model_folder("tiny-phi3"), tmp_path / "whole", "int8")
    several, whole = (js(tmp_path / name, [[1, 5, 6, 7]]) for name in ("m", "whole"))
    assert len(list((tmp_path / "m" / "onnx").iterdir())) > 3
    assert (several["logits"] == whole["logits"]).all()


def test_a_made_tokenizer_gives_the_same_ids(js, model_folder, tmp_path):
    phiconv.convert(model_folder("tiny-phi3"), tmp_path / "a.gguf", quant="f16")
    written(tmp_path / "a.gguf", tmp_path / "m", "int4")
    tokenizer = phiconv.open_model(model_folder("tiny-phi3")).tokenizer
    assert js(tmp_path / "m", [[1, 5]])["ids"] == [encode(tokenizer, text, special=True) for text in TEXTS]
