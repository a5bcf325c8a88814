"""A size to aim at: outputs fit it, use it, and predict better than recipes of that size."""

from __future__ import annotations

import re

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import Choices, ir
from phiconv.errors import UsageError
from phiconv.recipes import override

TINY = FIXTURES / "tiny-phi4mini"
TARGETS = {
    "gguf": "o.gguf",
    "litert": "l.litertlm",
    "mlx": "m",
    "onnx": "n",
    "openvino": "v",
    "compressed-tensors": "c",
}
WIDE = {"num_attention_heads": 16, "num_key_value_heads": 8}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return phiconv.calibrate(TINY, None, tmp_path_factory.mktemp("c") / "c", tokens=4096, sensitivity=True)


@pytest.fixture(scope="module")
def text():
    return (FIXTURES / "test.txt").read_text(encoding="utf-8")[:5000]


def test_ever_larger_files_are_ever_better_and_better_than_recipes(tmp_path, calibration, text):
    recipes = {}
    for recipe in ("Q3_K_S", "Q6_K"):
        made = phiconv.convert(
            TINY,
            tmp_path / f"{recipe}.gguf",
            quant=recipe,
            choices=Choices(effort="best"),
            calibration=calibration,
        )
        recipes[made.files[0]] = made.size
    smallest, largest = min(recipes.values()), max(recipes.values())
    mixed = {}
    for size in np.linspace(smallest, largest, 3)[:2].astype(int).tolist():
        made = phiconv.convert(
            TINY,
            tmp_path / f"{size}.gguf",
            choices=Choices(effort="best", target_size=size),
            calibration=calibration,
        )
        assert 0.99 * size <= made.size == made.files[0].stat().st_size <= size
        mixed[made.files[0]] = made.size
    found = phiconv.evaluate_all([*recipes, *mixed], text, reference=TINY)
    divergences = [each.divergence.mean for each in found]
    of_recipes, of_mixed = divergences[: len(recipes)], divergences[len(recipes) :]
    assert of_mixed == sorted(of_mixed, reverse=True)
    # The straight line between recipes in the logarithm, which is below that between the figures.
    line = np.exp(np.interp([*mixed.values()], [*recipes.values()], np.log(of_recipes)))
    assert (np.array(of_mixed) < 0.95 * line).all()


@pytest.mark.parametrize("target", TARGETS)
def test_the_options_give_the_same_again(tmp_path, target):
    out = tmp_path / TARGETS[target]
    size = phiconv.plan(TINY, out, to=target, quant="q4").size * 102 // 100
    plan = phiconv.plan(TINY, out, to=target, choices=Choices(target_size=size))
    assert 0.99 * size <= plan.size <= size
    types = tuple(override(f"{pattern}={name}") for pattern, name in plan.mixture)
    again = phiconv.plan(TINY, out, to=target, quant=plan.recipe, choices=Choices(tensor_types=types))
    assert [t.encoding for t in again.tensors] == [t.encoding for t in plan.tensors]
    assert again.size == plan.size
    assert len({t.encoding for t in plan.tensors if len(t.shape) > 1}) > 1


@pytest.mark.parametrize("bits", [3.5, 4.25, 6.0])
def test_bits_per_weight(tmp_path, bits):
    plan = phiconv.plan(TINY, tmp_path / "o.gguf", choices=Choices(bits_per_weight=bits))
    assert 0.99 * bits <= plan.bits_per_weight <= bits


def test_what_the_user_wants_stands(tmp_path):
    wanted = Choices(tensor_types=(override("ffn_down=Q8_0"),), target_size=2_000_000)
    plan = phiconv.plan(TINY, tmp_path / "o.gguf", choices=wanted)
    assert {t.encoding.name for t in plan.tensors if "ffn_down" in t.name} == {"q8_0"}
    assert plan.size <= 2_000_000


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx", "openvino"])
def test_experts(tmp_path, model_folder, target):
    """Stacks of matrices, and a router that stays what it is."""
    source, out = model_folder("phimoe"), tmp_path / TARGETS[target]
    size = phiconv.plan(source, out, to=target, quant="q4").size * 105 // 100
    made = phiconv.convert(source, out, to=target, choices=Choices(target_size=size))
    assert made.size <= size
    assert phiconv.open_model(made.files[0] if target == "gguf" else out).architecture == "phimoe"


@pytest.mark.parametrize(("kind", "heads"), [("llama", {"head_dim": 64}), ("phimoe", WIDE)])
def test_what_servers_multiply_as_one_has_one_type(tmp_path, make_model, kind, heads):
    """VLLM joins queries, keys and values, gate and up, and all experts of a layer."""
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 4}
    source, out, to = make_model(tmp_path / "s", kind, **sizes, **heads), tmp_path / "c", "compressed-tensors"
    around = [phiconv.plan(source, out, to=to, quant=quant).size for quant in ("w4a16", "w8a16")]
    plan = phiconv.plan(source, out, to=to, choices=Choices(target_size=sum(around) // 2))
    types = {}
    for tensor in plan.tensors:
        if isinstance(tensor.encoding, ir.BlockEncoding):
            joined = re.sub("[kv]_proj", "q_proj", tensor.name).replace("up_proj", "gate_proj")
            joined = re.sub(r"experts\..*", "experts", joined)
            types.setdefault(joined, set()).add(tensor.encoding)
    assert {len(found) for found in types.values()} == {1}
    assert len(set.union(*types.values())) > 1


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="the smallest that gguf can be is about"):
        phiconv.plan(TINY, tmp_path / "o.gguf", choices=Choices(target_size=100_000))
    with pytest.raises(UsageError, match="--target-size means nothing for safetensors"):
        phiconv.plan(TINY, tmp_path / "o", to="safetensors", choices=Choices(target_size=10**6))
    with pytest.raises(UsageError, match="--bpw means nothing"):
        phiconv.plan(TINY, tmp_path / "o", to="safetensors", choices=Choices(bits_per_weight=4.0))
    with pytest.raises(UsageError, match="give one of them"):
        Choices(bits_per_weight=4.0, target_size=10**6)


def test_a_conversion_measures_for_itself(tmp_path):
    """Without a calibration the model is measured beside the output, sensitivities included."""
    choices = Choices(effort="best", target_size=1_900_000)
    made = phiconv.convert(TINY, tmp_path / "o.gguf", choices=choices, calibration_tokens=1024)
    folder = phiconv.calibrate(TINY, None, tmp_path / "c", tokens=1024, sensitivity=True)
    other = phiconv.convert(TINY, tmp_path / "p.gguf", choices=choices, calibration=folder)
    assert made.plan.mixture == other.plan.mixture
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert [*tmp_path.glob("*.calibration*")] == []
