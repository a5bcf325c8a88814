"""What architecture files state is complete, and says nothing that nobody reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from gguf.constants import Keys

import phiconv
from phiconv.architectures import ARCHITECTURES, Architecture
from phiconv.architectures.architecture import ENDS
from phiconv.architectures.weights import role_shape, table
from phiconv.errors import ConfigError, PhiconvError, UnsupportedModelError
from phiconv.forward.ops import Recorder
from phiconv_formats.gguf.metadata import _VALUES
from phiconv_formats.gguf.names import ARCHITECTURE_OF_NAME, parse_name
from phiconv_formats.tokenizers.writer import tokenizer_files

FAMILIES = list(ARCHITECTURES.values())
KINDS = {"qwen2": "qwen2-untied", "qwen3": "qwen3-untied"}  # with all weights that there can be


@pytest.fixture
def model(model_folder):
    return lambda architecture: phiconv.open_model(
        model_folder(KINDS.get(architecture.name, architecture.name))
    )


def inner(architecture: Architecture) -> list[str]:
    return [role for role in architecture.names if role not in ENDS]


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_names_are_the_roles_that_the_decoder_uses(architecture, model):
    recorder = Recorder()
    architecture.forward(recorder, model(architecture).hyperparameters)
    assert {role.name for call in recorder.calls for role in call.roles} == set(architecture.names)
    assert [role for role in architecture.names if role in ENDS] == list(ENDS)


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_runtimes_know_every_role(architecture, model):
    assert sorted(architecture.mlx.order) == sorted(inner(architecture))
    stated = {*architecture.mlx.names, *architecture.openvino, *architecture.mlx.biases, *architecture.biases}
    stated |= architecture.optional_biases | {r for layout in architecture.layouts for r in layout.names}
    assert stated <= set(architecture.names)
    assert all(role_shape(role, model(architecture).hyperparameters) for role in architecture.names)
    assert len(ARCHITECTURE_OF_NAME) == len(ARCHITECTURES)


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_keys_are_those_of_the_gguf_package(architecture):
    known = {
        value
        for group in vars(Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str)
    }
    keys = [key.removesuffix("?") for key in architecture.gguf.keys]
    assert {f"{{arch}}.{key}" for key in keys} <= known
    assert {f"tokenizer.ggml.{key}" for key in architecture.gguf.tokenizer_keys} <= known
    assert set(keys) <= set(_VALUES)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_roles_have_one_name_that_stands_alone(architecture):
    names = [architecture.apart(role) for role in inner(architecture)]
    assert len(set(names)) == len(names)
    assert not any("{e}" in name for name in names)


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_llama_cpps_names_are_read_back(architecture, model, tmp_path):
    written = phiconv.convert(model(architecture), tmp_path / "o.gguf", quant="F32").files[0]
    found = [parse_name(name, architecture) for name in phiconv.open_model(written).stored]
    assert {role for stored in found if stored for role in stored.roles} == set(architecture.names)


def test_names_of_other_families_mean_nothing():
    llama = ARCHITECTURES["llama"]
    for name in (
        "blk.0.ffn_gate_exps.weight",
        "output.scale",
        "blk.0.output.weight",
        "attn_q.weight",
        "x",
        "",
    ):
        assert parse_name(name, llama) is None
    assert parse_name("blk.7.attn_qkv.bias", llama) == (7, ("attn_q", "attn_k", "attn_v"), "bias")
    assert parse_name("blk.7.ffn_up.weight", llama) == (7, ("ffn_up",), "weight")
    assert parse_name("blk.7.ffn_up.weight", ARCHITECTURES["phi3"]) == (7, ("ffn_gate", "ffn_up"), "weight")


def test_a_table_of_very_many_layers_is_made_step_by_step(model):
    llama = model(ARCHITECTURES["llama"])
    endless = replace(llama.hyperparameters, num_hidden_layers=1 << 30)
    weights = table(ARCHITECTURES["llama"], endless, ())
    assert [str(next(weights).role) for _ in range(2)] == [
        "token_embedding.weight",
        "layers.0.attn_norm.weight",
    ]


# -------------------------------------------------------------------------------------------------- refusals


def opened(make_model, folder, kind, **changes):
    return phiconv.open_model(make_model(folder / "m", kind, **changes))


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor: missing"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: missing"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ("llama", {"hidden_act": "gelu"}, "'gelu' is not supported"),
        ("qwen2", {"use_sliding_window": True}, "a sliding window in some of the layers is not supported"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "key layer_types"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear' is not supported"),
    ],
)
def test_what_no_runtime_gets(make_model, tmp_path, kind, changes, says):
    with pytest.raises((ConfigError, UnsupportedModelError)) as caught:
        opened(make_model, tmp_path, kind, **changes)
    assert says in str(caught.value)


def test_limits_of_llama3_must_be_in_order(make_model, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 4.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with pytest.raises(ConfigError, match=r"high_freq_factor: must be more than low_freq_factor \(4\.0\)"):
        opened(make_model, tmp_path, "llama", rope_scaling=scaling)


@pytest.mark.parametrize(
    ("kind", "changes", "refused"),
    [
        ("qwen2", {"head_dim": 32}, {"gguf", "mlx"}),
        ("qwen3", {"attention_bias": True}, {"gguf", "mlx"}),
        ("llama", {"head_dim": 32}, set()),
        ("qwen3", {}, set()),
    ],
)
def test_what_a_runtime_lacks_is_refused_by_name(make_model, tmp_path, kind, changes, refused):
    model = opened(make_model, tmp_path, kind, **changes)
    for target in ("gguf", "mlx", "onnx", "openvino", "safetensors"):
        destination = tmp_path / ("o.gguf" if target == "gguf" else "o")
        if target not in refused:
            assert phiconv.plan(model, destination, to=target).size > 0
            continue
        with pytest.raises(PhiconvError) as caught:
            phiconv.plan(model, destination, to=target)
        assert kind in str(caught.value)
        assert "choose another format" in str(caught.value)


@pytest.mark.parametrize("to", ["mlx", "onnx", "openvino", "safetensors"])
def test_config_says_which_biases_there_are(make_model, tmp_path, to):
    # Published files are known to have these keys wrong.
    folder = make_model(tmp_path / "m", "llama-bias")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": False, "mlp_bias": False}))
    phiconv.convert(folder, tmp_path / "o", to=to, quant="f32")
    written = json.loads((tmp_path / "o" / "config.json").read_text())
    assert written["attention_bias"] is True
    assert written["mlp_bias"] is True


def test_tokenizers_of_other_families_name_a_class_that_reads_the_file(model):
    for architecture in FAMILIES:
        tokenizer = model(architecture).tokenizer
        settings = json.loads(tokenizer_files(tokenizer, architecture.byte_level)["tokenizer_config.json"])
        phi = "GPT2Tokenizer" if tokenizer.kind == "byte-bpe" else "LlamaTokenizer"
        expected = phi if architecture.name.startswith("phi") else "PreTrainedTokenizerFast"
        assert settings["tokenizer_class"] == expected
