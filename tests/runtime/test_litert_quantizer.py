"""litert-quantizer makes the same bytes of a float32 file of phiconv's as phiconv makes of the source."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import phiconv
from paths import FIXTURES

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def peer():
    """``peer(path, recipe, out)`` quantizes a file."""
    quantizer = pytest.importorskip(
        "litert_quantizer.quantizer", reason="litert-quantizer is not installed", exc_type=ImportError
    )
    recipes = pytest.importorskip("litert_quantizer.recipe", exc_type=ImportError)

    def quantize(path, recipe, out):
        known = "wi4b64" if recipe == "wi4b128" else recipe
        rules = copy.deepcopy(getattr(recipes, f"dynamic_{known}_afp32")())
        if recipe == "wi4b128":  # the library knows these blocks, and has no recipe of them
            for rule in rules:
                rule["op_config"]["weight_tensor_config"]["granularity"] = "BLOCKWISE_128"
        engine = quantizer.Quantizer(str(path))
        engine.load_quantization_recipe(rules)
        with np.errstate(
            all="ignore"
        ):  # a block of zeros is 0 / 0 there: the matrix that swaps halves has some
            engine.quantize().export_model(str(out), overwrite=True)
        return out

    return quantize


def constants(path):
    """Codes and scales of every quantized weight, by name, as LiteRT's own schema reads them."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", exc_type=ImportError)
    data = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(data)

    def stored(tensor):
        buffer = model.buffers[tensor.buffer]
        return data[buffer.offset : buffer.offset + buffer.size] if buffer.offset else bytes(buffer.data)

    found = {}
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        quantization = tensor.quantization
        name = tensor.name.decode().partition("/")[2]
        if not name.endswith("weight") or quantization is None:
            continue
        if quantization.details is not None:
            scales = stored(graph.tensors[quantization.details.scales])
            # The one thing that phiconv does otherwise: XNNPACK loads no block with a scale of 0.
            least = np.maximum(np.frombuffer(scales, np.float16), np.float16(2.0**-14))
            found[name] = stored(tensor), least.tobytes(), quantization.details.blockSize
        elif quantization.scale is not None:
            assert np.count_nonzero(quantization.zeroPoint) == 0
            found[name] = stored(tensor), quantization.scale.astype("<f4").tobytes(), 0
    return found


def same(source, recipe, peer, folder, *, count):
    floats = folder / "f32.tflite"
    if not floats.exists():
        phiconv.convert(source, floats, quant="f32")
    own, theirs = folder / f"{recipe}.tflite", folder / f"peer-{recipe}.tflite"
    phiconv.convert(source, own, quant=recipe, choices=phiconv.Choices(match_runtime=True))
    own, theirs = constants(own), constants(peer(floats, recipe, theirs))
    assert own.keys() == theirs.keys()
    assert len(own) == count
    assert all(own[name] == theirs[name] for name in own)


@pytest.mark.parametrize("recipe", ["wi8", "wi4", "wi4b32"])
@pytest.mark.parametrize(("name", "count"), [("tiny-phi3", 44), ("tiny-phi4mini", 29)])
def test_trained_models(peer, tmp_path, name, count, recipe):
    same(FIXTURES / name, recipe, peer, tmp_path, count=count)


def test_random_models(peer, tmp_path, make_model):
    """Of heads as wide as the largest blocks; float16 and bfloat16 weights."""
    for dtype in ("float16", "bfloat16"):
        folder = tmp_path / dtype
        folder.mkdir()
        source = make_model(folder / "s", "phi3", seed=5, hidden_size=256, intermediate_size=384,
                            num_attention_heads=2, num_key_value_heads=2, torch_dtype=dtype)  # fmt: skip
        for recipe in ("wi8", "wi4", "wi4b32", "wi4b64", "wi4b128"):
            same(source, recipe, peer, folder, count=16)


@pytest.mark.parametrize("recipe", ["wi8", "wi4b32"])
def test_what_it_writes_is_read(peer, tmp_path, recipe):
    """Its buffers lie inside of the FlatBuffer; config.json is still there."""
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "f32.tflite", quant="f32")
    theirs = peer(tmp_path / "f32.tflite", recipe, tmp_path / "theirs.tflite")
    own = tmp_path / "own.tflite"
    phiconv.convert(FIXTURES / "tiny-phi3", own, quant=recipe, choices=phiconv.Choices(match_runtime=True))
    a, b = (phiconv.open_model(path) for path in (own, theirs))
    assert a.hyperparameters == b.hyperparameters
    assert a.tensors.keys() == b.tensors.keys()
    assert all(t.encoding == b.tensors[role].encoding for role, t in a.tensors.items())
    assert all(
        np.array_equal(phiconv.read(t), phiconv.read(b.tensors[role])) for role, t in a.tensors.items()
    )
