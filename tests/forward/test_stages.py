"""A decoder in stages computes what it computes in one piece, and names what goes into its matrices."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from phiconv.errors import UnsupportedModelError
from phiconv.forward.interpreter import compute
from phiconv.forward.stages import run_stage, stages_of
from phiconv.ir.model import Role

KINDS = ("phi", "phi3", "phi4mini", "phimoe", "llama-bias", "qwen2", "qwen3")


@pytest.mark.parametrize("kind", KINDS)
def test_stages_give_the_bits_of_the_whole(kind, model_folder):
    model, ids = phiconv.open_model(model_folder(kind)), np.arange(24).reshape(2, 12) + 60
    seen, x = [], None
    for stage in stages_of(model):
        x = run_stage(model, stage, ids, x, lambda role, x, expert: seen.append((role, expert, x.copy())))
    assert x is None
    expected = []
    result = compute(model, ids, watch=lambda role, x, expert: expected.append((role, expert, x.copy())))
    assert [each[:2] for each in seen[:-1]] == [each[:2] for each in expected]
    for (*_, found), (*_, wanted) in zip(seen[:-1], expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    role, expert, hidden = seen[-1]
    assert (role, expert) == (Role("output"), None)
    np.testing.assert_array_equal(hidden, result.hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_has_one_input(kind, model_folder):
    model = phiconv.open_model(model_folder(kind))
    inputs = [each for stage in stages_of(model) for each in stage.inputs]
    roles = [role for each in inputs for role in each.roles]
    assert len(set(roles)) == len(roles)
    matrices = {r for r, t in model.tensors.items() if len(t.shape) > 1 and r != Role("token_embedding")}
    tied = Role("output") not in model.tensors
    assert {*roles} - {Role("token_embedding"), Role("output")} == matrices - {Role("output")}
    assert inputs[-1].roles == ((Role("output"), Role("token_embedding")) if tied else (Role("output"),))


def test_matrices_with_one_input_are_found(model_folder):
    def names(kind):
        stages = stages_of(phiconv.open_model(model_folder(kind)))
        return [[[r.name for r in each.roles] for each in s.inputs] for s in stages if s.layer == 0]

    qkv = ["attn_q", "attn_k", "attn_v"]
    assert names("phi3") == [[qkv, ["attn_output"]], [["ffn_gate", "ffn_up"], ["ffn_down"]]]
    assert names("phi") == [[[*qkv, "ffn_up"], ["attn_output"], ["ffn_down"]]]  # one norm for both
    experts = [["router"], ["experts_gate", "experts_up"], ["experts_down"]]
    assert names("phimoe") == [[qkv, ["attn_output"]], experts]


def test_plain_tensors_have_no_stages(write_safetensors):
    path = write_safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    with pytest.raises(UnsupportedModelError, match="plain tensors"):
        stages_of(phiconv.open_model(path))
