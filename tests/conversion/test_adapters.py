"""Adapters are merged into a model on the way: what comes out is what PEFT computes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import phiconv
from adapters import QKV, STORED, low_rank, merged_logits, stored_adapter, write_adapter
from phiconv.errors import ConfigError, UnsupportedModelError, UsageError
from phiconv.ir.model import Role

TARGETS = ["gguf", "mlx", "onnx", "openvino", "safetensors"]


def furthest(model, name):
    """How far logits are from PEFT's."""
    ids, expected = merged_logits(name)
    return np.abs(phiconv.logits(model, ids)[0, ::8] - expected).max()


@pytest.mark.parametrize("name", STORED)
def test_logits_are_those_of_peft(model_folder, name):
    folder = model_folder(STORED[name])
    assert furthest(folder, name) > 1
    assert furthest(phiconv.open_model(folder, lora=[stored_adapter(name)]), name) < 1e-5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STORED)
def test_every_target(model_folder, tmp_path, name, target):
    output = tmp_path / ("out.gguf" if target == "gguf" else "out")
    done = phiconv.convert(
        model_folder(STORED[name]), output, to=target, quant="f32", lora=[stored_adapter(name)]
    )
    assert sum("is merged" in note for note in done.notes) == 1
    assert "merged" in {tensor.action for tensor in done.plan.tensors}
    assert furthest(output, name) < 1e-5


def apart(folder, to):
    """A Phi-3 whose fused matrices are stored apart."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    for name in [*tensors]:
        if "qkv_proj" in name:
            for part, rows in zip("qkv", np.split(tensors.pop(name), 3), strict=True):
                tensors[name.replace("qkv", part)] = np.ascontiguousarray(rows)
        elif "gate_up" in name:
            for part, rows in zip(("gate", "up"), np.split(tensors.pop(name), 2), strict=True):
                tensors[name.replace("gate_up", part)] = np.ascontiguousarray(rows)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_an_adapter_of_fused_matrices_fits_a_base_that_has_them_apart(model_folder, tmp_path):
    folder = apart(model_folder("phi3"), tmp_path / "m")
    assert furthest(phiconv.open_model(folder, lora=[stored_adapter("plain")]), "plain") < 1e-5
    config = folder / "config.json"
    keys = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))
    assert furthest(phiconv.open_model(folder, lora=[stored_adapter("plain")]), "plain") < 1e-5


@pytest.mark.parametrize("name", ["apart", "some"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_adapter_of_matrices_apart_fits_a_fused_base(make_model, model_folder, tmp_path, name, target):
    """The Llama's weights as a Phi-3: one A for each of what is now one matrix."""
    llama = phiconv.open_model(model_folder("llama"))
    hp = llama.hyperparameters
    folder = make_model(
        tmp_path / "m",
        "phi3",
        **{key: getattr(hp, key) for key in ("intermediate_size", "num_key_value_heads", "hidden_size")},
        num_attention_heads=hp.num_attention_heads,
        rms_norm_eps=hp.norm_epsilon,
        rope_theta=hp.rope.theta,
        sliding_window=None,
        torch_dtype="float32",
    )
    tensors = load_file(folder / "model.safetensors")
    for hub, whole in phiconv.open_model(folder).hub.items():
        parts = [phiconv.read(llama.tensors[rows.role]) for rows in whole.rows]
        tensors[hub] = np.concatenate(parts)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    lora = [stored_adapter(name)]
    assert furthest(phiconv.open_model(folder, lora=lora), name) < 1e-5
    output = tmp_path / ("out.gguf" if target == "gguf" else "out")
    phiconv.convert(folder, output, to=target, quant="f32", lora=lora)
    assert furthest(output, name) < 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_a_base_of_any_format(model_folder, tmp_path, target):
    base = tmp_path / ("base.gguf" if target == "gguf" else "base")
    phiconv.convert(model_folder("phi3"), base, to=target, quant="f32")
    assert furthest(phiconv.open_model(base, lora=[stored_adapter("plain")]), "plain") < 1e-5
    phiconv.convert(base, tmp_path / "out.gguf", quant="f32", lora=[stored_adapter("plain")])
    assert furthest(tmp_path / "out.gguf", "plain") < 1e-5


def test_a_quantized_base_is_quantized_again_only_if_that_is_allowed(model_folder, tmp_path):
    phiconv.convert(model_folder("phi3"), tmp_path / "base.gguf", quant="q8")
    lora = [stored_adapter("plain")]
    with pytest.raises(UnsupportedModelError, match=r"is stored as q8_0\+lora: as q8_0 it loses more"):
        phiconv.plan(tmp_path / "base.gguf", tmp_path / "out.gguf", quant="q8", lora=lora)
    again = phiconv.Choices(allow_requantize=True)
    phiconv.convert(tmp_path / "base.gguf", tmp_path / "out.gguf", quant="q8", lora=lora, choices=again)
    assert furthest(tmp_path / "out.gguf", "plain") < 0.3


def test_quantized_is_the_merged_model_quantized(model_folder, tmp_path):
    """Nothing is rounded in between: the same bytes as by way of a folder in float32."""
    lora = [stored_adapter("plain")]
    phiconv.convert(model_folder("phi3"), tmp_path / "f32", to="safetensors", quant="f32", lora=lora)
    phiconv.convert(tmp_path / "f32", tmp_path / "a.gguf", quant="Q4_0")
    phiconv.convert(model_folder("phi3"), tmp_path / "b.gguf", quant="Q4_0", lora=lora)
    files = [phiconv.open_model(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    for name, tensor in files[0].stored.items():
        a, b = tensor.read(0, tensor.rows), files[1].stored[name].read(0, tensor.rows)
        for part in ("codes", "scales") if hasattr(a, "codes") else ("data",):
            assert bytes(getattr(a, part)) == bytes(getattr(b, part))


@pytest.mark.parametrize("jobs", [1, 3])
def test_bytes_do_not_depend_on_threads(model_folder, tmp_path, jobs):
    lora = [stored_adapter("plain")]
    for path, threads in ((tmp_path / "a.gguf", jobs), (tmp_path / "b.gguf", 2)):
        phiconv.convert(model_folder("phi3"), path, quant="q4", lora=lora, jobs=threads)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_precision_is_that_of_the_base(model_folder, tmp_path):
    planned = phiconv.plan(
        model_folder("phi3"), tmp_path / "o", to="safetensors", lora=[stored_adapter("plain")]
    )
    assert planned.recipe == "bf16"
    actions = {tensor.name: tensor.action for tensor in planned.tensors}
    assert actions[f"{QKV}.weight"] == "rounded"
    assert actions["model.embed_tokens.weight"] == "copied"
    with pytest.raises(UnsupportedModelError, match="would be rounded"):
        phiconv.plan(
            model_folder("phi3"),
            tmp_path / "o",
            to="safetensors",
            lora=[stored_adapter("plain")],
            repack_only=True,
        )


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_a_tied_head_stays_what_it_was(model_folder, tmp_path, name):
    """PEFT trains one of the two, and the other one does not follow."""
    model = phiconv.open_model(model_folder("phi4mini"), lora=[stored_adapter(name)])
    assert not model.hyperparameters.tie_word_embeddings
    base = phiconv.open_model(model_folder("phi4mini")).tensors[Role("token_embedding")]
    kept = Role("output" if name == "embedding" else "token_embedding")
    np.testing.assert_array_equal(phiconv.read(model.tensors[kept]), phiconv.read(base))
    done = phiconv.convert(model, tmp_path / "o", to="safetensors")
    assert json.loads((tmp_path / "o" / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("not with this adapter" in note for note in done.notes)


def test_embeddings_that_peft_saves_with_an_adapter(model_folder, tmp_path):
    """Of what is trained, and of the base below it, which is then the file's own."""
    base = load_file(model_folder("phi4mini") / "model.safetensors")["model.embed_tokens.weight"]
    tensors = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in load_file(stored_adapter("embedding") / "adapter_model.safetensors").items()
    }
    tensors["model.embed_tokens.base_layer.weight"] = base
    folder = write_adapter(tmp_path / "a", tensors)
    assert furthest(phiconv.open_model(model_folder("phi4mini"), lora=[folder]), "embedding") < 1e-5


def test_experts(model_folder, tmp_path):
    """Each is a matrix of its own in PEFT, and a part of a stack here."""
    model = phiconv.open_model(model_folder("phimoe"))
    role = Role("experts_up", 1)
    _, rows, columns = model.tensors[role].shape
    tensors = low_rank("model.layers.1.block_sparse_moe.experts.2.w3", rows, columns)
    merged = phiconv.merge(model, [write_adapter(tmp_path / "a", tensors)])
    before, after = phiconv.read(model.tensors[role]), phiconv.read(merged.tensors[role])
    a, b = tensors.values()
    np.testing.assert_allclose(after[2], before[2] + 2 * b @ a, atol=1e-6)
    np.testing.assert_array_equal(after[[0, 1, 3]], before[[0, 1, 3]])
    phiconv.convert(merged, tmp_path / "o", to="safetensors", quant="f32")
    again = phiconv.open_model(tmp_path / "o")
    np.testing.assert_array_equal(phiconv.read(again.tensors[role]), after)


def test_several_adapters_with_weights(model_folder, tmp_path):
    model = phiconv.open_model(model_folder("phi3"))
    rows, columns = 192, 64
    first, second = (
        write_adapter(tmp_path / str(seed), low_rank(QKV, rows, columns, seed=seed)) for seed in (1, 2)
    )
    merged = phiconv.merge(model, [(first, 0.5), second])
    deltas = [b @ a for a, b in (low_rank(QKV, rows, columns, seed=seed).values() for seed in (1, 2))]
    expected = phiconv.read(model.tensors[Role("attn_k", 0)]) + (deltas[0] + 2 * deltas[1])[64:128]
    np.testing.assert_allclose(phiconv.read(merged.tensors[Role("attn_k", 0)]), expected, atol=1e-6)
    assert len(merged.merged) == 2
    assert model.merged == ()


@pytest.mark.parametrize(("name", "says"), [("dora", "DoRA cannot"), ("whole", "modules_to_save cannot")])
def test_weights_that_mean_nothing(model_folder, name, says):
    with pytest.raises(UsageError, match=says):
        phiconv.open_model(model_folder(STORED[name]), lora=[(stored_adapter(name), 0.5)])
    phiconv.open_model(model_folder(STORED[name]), lora=[(stored_adapter(name), 1)])


def test_other_mistakes(model_folder, tmp_path):
    folder, plain, whole = model_folder("phi3"), stored_adapter("plain"), stored_adapter("whole")
    with pytest.raises(UsageError, match="a weight of nan"):
        phiconv.open_model(folder, lora=[(plain, float("nan"))])
    with pytest.raises(UsageError, match=r"two adapters replace model\.layers\.0\.input_layernorm\.weight"):
        phiconv.open_model(folder, lora=[whole, whole])
    with pytest.raises(UsageError, match="--plain contradicts --lora"):
        phiconv.open_model(folder, lora=[plain], plain=True)
    with pytest.raises(UsageError, match="--base is for an adapter, and this is none"):
        phiconv.open_model(folder, base=folder)
    save_file({"x": np.zeros((4, 4), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedModelError, match="these are plain tensors"):
        phiconv.open_model(tmp_path / "x.safetensors", lora=[plain])


def test_an_adapter_of_another_model(model_folder):
    with pytest.raises(
        UnsupportedModelError, match=r"module model\.layers\.0\.mlp\.down_proj: the model has"
    ):
        phiconv.open_model(model_folder("phi2"), lora=[stored_adapter("plain")])
    with pytest.raises(ConfigError, match=r"is for a shape of \[192, 64\], but the model's is \["):
        phiconv.open_model(model_folder("phi4"), lora=[stored_adapter("plain")])


def test_an_adapter_with_more_tokens(model_folder, tmp_path):
    tensors = {"model.embed_tokens.weight": np.zeros((3000, 64), np.float32)}
    with pytest.raises(ConfigError, match="an adapter with more tokens than the model has"):
        phiconv.open_model(model_folder("phi3"), lora=[write_adapter(tmp_path / "a", tensors)])


def test_an_adapter_as_the_source(model_folder, tmp_path):
    done = phiconv.convert(
        stored_adapter("plain"), tmp_path / "o.gguf", quant="f32", base=model_folder("phi3")
    )
    assert furthest(tmp_path / "o.gguf", "plain") < 1e-5
    assert done.plan.model.path == model_folder("phi3")
    with pytest.raises(
        UnsupportedModelError, match="this is an adapter of phi3, and no whole model; give --base"
    ):
        phiconv.plan(stored_adapter("plain"), tmp_path / "x.gguf")


def test_text_is_computed_with_it(model_folder):
    model = phiconv.open_model(model_folder("phi3"), lora=[stored_adapter("plain")])
    found = phiconv.evaluate(model, np.arange(3, 67), reference=model_folder("phi3"), context=32)
    assert found.divergence is not None
    assert list(phiconv.generate(model, [5, 6, 7], 3))
