"""LiteRT computes what phiconv writes as transformers does, and XNNPACK takes every operation on floats.

References: reference.npz of the trained models, and fixtures/references/*.npz.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import phiconv
from litert_runtime import Model
from paths import FIXTURES
from phiconv.recipes import override
from phiconv.tokenization.encoder import encode
from references import RANDOM, open_reference, random_model, relative_l2

pytestmark = pytest.mark.runtime

NAMES = [name for name in RANDOM if "moe" not in name]
BOUND = 1e-6
# At position 540, from a float64 model: transformers itself 8.8e-7, NumPy 9.8e-7, LiteRT 1.06e-6.
LONG = 1.3e-6
TRAINED = ["tiny-phi3", "tiny-phi4mini"]
CONTEXTS = {"phi3-su": 512, "phi4mini": 512}  # one position more, and the long factors count
FLOATS = (override("embed=f32"),)  # a GPU's embedding is int8 otherwise


@pytest.fixture(scope="module")
def written(make_model, make_models, tmp_path_factory):
    """A graph of a reference's model, or of a trained one."""
    root, folders = tmp_path_factory.mktemp("models"), {}

    def write(name, quant="f32", **options):
        if name not in folders:
            trained = FIXTURES / name
            folders[name] = (
                trained if trained.exists() else random_model(make_model, make_models, root / name, name)
            )
        path = root / f"{name}-{quant}-{len(list(root.iterdir()))}.tflite"
        phiconv.convert(folders[name], path, quant=quant, choices=phiconv.Choices(**options))
        return path

    return write


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("name", TRAINED)
def test_reference_logits(litert, written, name, target):
    """Token by token, and behind three prefills; short factors of LongRoPE for a short context."""
    with np.load(FIXTURES / name / "reference.npz") as stored:
        ids, expected = stored["input_ids"][0], stored["logits_f32"][0]
    path = written(name, context=512, target=target, tensor_types=FLOATS)
    for chunks in ((), (40, 30, 26)):
        logits = Model(litert, path, len(ids)).logits(ids, chunks)
        assert relative_l2(logits, expected[sum(chunks) :]) < BOUND
        assert (logits.argmax(axis=-1) == expected[sum(chunks) :].argmax(axis=-1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model(litert, written, name):
    """Windows, LongRoPE on both sides, partial rotary, tied heads, biases, norms of heads, GQA."""
    kept = open_reference(f"references/{name}.npz")
    ids, positions = kept["input_ids"], kept["positions"]
    first = int(positions[0])
    chunks = (first // 2, first - first // 2 - 1) if first > 4 else ()
    path = written(name, context=CONTEXTS.get(name))
    logits = Model(litert, path, len(ids)).logits(ids, chunks)
    assert relative_l2(logits[positions - sum(chunks)], kept["logits"]) < (LONG if len(ids) > 512 else BOUND)


def test_halves_are_the_floats_that_they_stand_for(litert, written, make_model, tmp_path):
    """Bit by bit as the float32 graph of the same rounded weights; so are those of a tied head."""
    for kind in ("phi3", "phi4mini"):
        source = make_model(tmp_path / kind, kind, seed=7, torch_dtype="float16")
        twins = []
        for quant in ("f16", "f32"):
            path = tmp_path / f"{kind}-{quant}.tflite"
            phiconv.convert(source, path, quant=quant)
            twins.append(Model(litert, path).logits(range(5, 25), (7,)))
        assert np.array_equal(*twins)


@pytest.mark.parametrize("quant", ["wi8", "wi4", "wi4b32", "wi4b64"])
@pytest.mark.parametrize("name", TRAINED)
def test_integers(litert, written, name, quant):
    """The runtime rounds activations to 8 bits: so nearly as NumPy computes with the stored weights."""
    with np.load(FIXTURES / name / "reference.npz") as stored:
        ids, expected = stored["input_ids"][0], stored["logits_f32"][0]
    logits = Model(litert, written(name, quant, context=512), len(ids)).logits(ids, (100,))
    bounds = {"wi8": 0.012, "wi4": 0.08, "wi4b32": 0.06, "wi4b64": 0.07}
    assert relative_l2(logits, expected[100:]) < bounds[quant]


@pytest.mark.parametrize(("quant", "bound"), [("wi4b32", 0.5), ("wi4", 0.6)])
def test_best_effort_predicts_better(litert, tmp_path, quant, bound):
    """At the same size, on a text that it was not measured on."""
    folder, context = FIXTURES / "tiny-phi3", 128
    calibration = phiconv.calibrate(folder, None, tmp_path / "c", tokens=4096)
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")
    ids = encode(phiconv.open_model(folder).tokenizer, text[20_000:22_000])[:context]
    expected = log_softmax(phiconv.logits(folder, np.array([ids]))[0].astype(np.float64))
    found, sizes = [], []
    for effort in ("exact", "best"):
        path = tmp_path / f"{effort}.tflite"
        result = phiconv.convert(
            folder,
            path,
            quant=quant,
            choices=phiconv.Choices(effort=effort, all_layers=True),
            calibration=calibration if effort == "best" else None,
        )
        sizes.append(result.size)
        logits = log_softmax(Model(litert, path, context).logits(ids).astype(np.float64))
        found.append((np.exp(expected) * (expected - logits)).sum(-1).mean())
    assert sizes[0] == sizes[1]
    assert found[1] < bound * found[0]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def not_delegated(details):
    """The operations that lie between no inputs and outputs of a delegate."""
    own = [op for op in details if op["op_name"] != "DELEGATE"]
    makers = {int(i): op for op in own for i in op["outputs"]}
    inside = set()
    for delegate in (op for op in details if op["op_name"] == "DELEGATE"):
        ends, waiting = {int(i) for i in delegate["inputs"]}, [int(i) for i in delegate["outputs"]]
        while waiting:
            number = waiting.pop()
            op = makers.get(number)
            if number not in ends and op is not None and op["index"] not in inside:
                inside.add(op["index"])
                waiting += map(int, op["inputs"])
    return [op for op in own if op["index"] not in inside]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["phi3-window", "tiny-phi4mini", "phi2"])
def test_xnnpack_takes_all_operations_on_floats(litert, written, name, target):
    """What is left: looking rows up, where in a cache a text goes on, and two updates of each cache."""
    model = Model(litert, written(name, context=None if "window" in name else 512, target=target,
                          tensor_types=FLOATS))  # fmt: skip
    model.logits(range(4))
    details = model.interpreter._get_ops_details()  # those of "decode"
    left = Counter(op["op_name"] for op in not_delegated(details))
    layers = left["DYNAMIC_UPDATE_SLICE"] // 2
    delegates = [op for op in details if op["op_name"] == "DELEGATE"]
    assert len(delegates) == layers + 1
    kept = {"EMBEDDING_LOOKUP": 1, "GATHER": 2, "SLICE": 1, "RESHAPE": 1, "CONCATENATION": 2}
    windowed = {"CAST": 1} | ({"CUMSUM": 1} if model.dynamic else {})
    assert left == kept | {"DYNAMIC_UPDATE_SLICE": 2 * layers} | (windowed if "window" in name else {})


def test_a_graph_of_litert_torch_is_the_model_that_is_read(litert, tmp_path):
    """LiteRT computes with Google's file what NumPy computes with the model that phiconv reads out of it."""
    path = tmp_path / "m.tflite"
    with np.load(FIXTURES / "litert" / "phi.npz") as content:
        path.write_bytes(content["floats"].tobytes())
    ids = np.arange(5, 30)
    logits = Model(litert, path, 32).logits(ids, (8, 5))
    assert relative_l2(logits, phiconv.logits(path, ids[None])[0, 13:]) < BOUND
