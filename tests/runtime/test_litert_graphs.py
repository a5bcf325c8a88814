"""LiteRT computes what phiconv writes as transformers does, and XNNPACK takes every operation on floats.

References: reference.npz of the trained models, and fixtures/references/*.npz.
"""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from litert_runtime import Model
from paths import FIXTURES
from phiconv.recipes import override
from references import RANDOM, open_reference, random_model, relative_l2

pytestmark = pytest.mark.runtime

NAMES = [name for name in RANDOM if "moe" not in name]
BOUND = 1e-6
LONG = 2e-6  # at position 540 the last bit of an angle counts
TRAINED = ["tiny-phi3", "tiny-phi4mini"]
CONTEXTS = {"phi4mini": 512}  # one position more, and the long factors count
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
