"""What config.json of each model of the family means, in both styles, and what is refused."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

import phiconv
from phiconv.architectures import find
from phiconv.architectures.config import Config
from phiconv.errors import ConfigError, MalformedFileError, UnsupportedModelError
from phiconv.ir.model import Experts

PATH = Path("model/config.json")


def spread(count, largest):
    """Divisors of LongRoPE; the published lists have the same lengths and other numbers."""
    return [1, *(round(1 + (largest - 1) * i / (count - 1), 4) for i in range(1, count))]


def scaling(count, kind="longrope", **more):
    return {"type": kind, "long_factor": spread(count, 64.0), "short_factor": spread(count, 2.8), **more}


# Facts of the published files: sizes, then whatever else a file says.
def phi(hidden, inter, layers, kv_heads, rotary, **more):
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": rotary,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-05,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        **more,
    }


def phi3(hidden, inter, layers, heads, kv_heads, vocabulary, context, window, **more):
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": window,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        **more,
    }


def mini(context, window, rope_scaling=None):
    return phi3(3072, 8192, 32, 32, 32, 32064, context, window, rope_scaling=rope_scaling)


def medium(context, window, rope_scaling=None):
    return phi3(5120, 17920, 40, 40, 10, 32064, context, window, rope_scaling=rope_scaling)


def phi4(context, theta):
    more = {"original_max_position_embeddings": context, "rope_theta": theta}
    return phi3(5120, 17920, 40, 40, 10, 100352, context, None, **more)


def moe(inter, heads, kv_heads, context, window, **more):
    config = phi3(4096, inter, 32, heads, kv_heads, 32064, context, window, **more)
    del config["original_max_position_embeddings"]  # nowhere, or inside rope_scaling
    config["architectures"], config["model_type"] = ["PhiMoEForCausalLM"], "phimoe"
    return config | {"num_local_experts": 16, "num_experts_per_tok": 2, "attention_bias": True}


MSCALE = 1.243163121016122
MOE_SCALING = scaling(64, short_mscale=MSCALE, long_mscale=MSCALE, original_max_position_embeddings=4096)
PHI4MINI = phi3(3072, 8192, 32, 24, 8, 200064, 131072, 262144) | {
    "partial_rotary_factor": 0.75,
    "rope_scaling": scaling(48),
    "tie_word_embeddings": True,
}

# Model: config.json; head_dim, kv heads, rotated dimensions, theta, original context, factors, mscale, window
MODELS = {
    "phi-1": (phi(2048, 8192, 24, None, 0.5), (64, 32, 32, 1e4, 2048, 0, 1.0, None)),
    "phi-1.5": (phi(2048, 8192, 24, 32, 0.5), (64, 32, 32, 1e4, 2048, 0, 1.0, None)),
    "phi-2": (phi(2560, 10240, 32, 32, 0.4), (80, 32, 32, 1e4, 2048, 0, 1.0, None)),
    "Phi-3-mini-4k": (mini(4096, 2047), (96, 32, 96, 1e4, 4096, 0, 1.0, 2047)),
    "Phi-3-mini-128k, April": (
        mini(131072, 262144, scaling(48, "su")),
        (96, 32, 96, 1e4, 4096, 48, 1.1902380714, 262144),
    ),
    "Phi-3-mini-128k, June": (
        mini(131072, 262144, scaling(48)),
        (96, 32, 96, 1e4, 4096, 48, 1.1902380714, 262144),
    ),
    "Phi-3-medium-4k": (medium(4096, 2047), (128, 10, 128, 1e4, 4096, 0, 1.0, 2047)),
    "Phi-3-medium-128k": (
        medium(131072, 131072, scaling(64, "su")),
        (128, 10, 128, 1e4, 4096, 64, 1.1902380714, 131072),
    ),
    "Phi-3.5-mini": (
        mini(131072, 262144, scaling(48)),
        (96, 32, 96, 1e4, 4096, 48, 1.1902380714, 262144),
    ),
    "Phi-4": (phi4(16384, 250000), (128, 10, 128, 250000.0, 16384, 0, 1.0, None)),
    "Phi-4-reasoning": (phi4(32768, 500000), (128, 10, 128, 500000.0, 32768, 0, 1.0, None)),
    "Phi-4-mini": (PHI4MINI, (128, 8, 96, 1e4, 4096, 48, 1.1902380714, 262144)),
    "Phi-3.5-MoE": (
        moe(6400, 32, 8, 131072, 131072, rope_scaling=MOE_SCALING, lm_head_bias=True),
        (128, 8, 128, 1e4, 4096, 64, MSCALE, 131072),
    ),
    "Phi-mini-MoE": (moe(960, 32, 8, 4096, 2047, head_dim=128), (128, 8, 128, 1e4, 4096, 0, 1.0, 2047)),
    "Phi-tiny-MoE": (moe(448, 16, 4, 4096, 2047, head_dim=128), (128, 4, 128, 1e4, 4096, 0, 1.0, 2047)),
}


def parse(config):
    config = Config(config, PATH)
    return find(config).parse(config)


@pytest.mark.parametrize("model", MODELS)
def test_hyperparameters(model):
    config, expected = MODELS[model]
    hp = parse(config)
    head_dim, kv_heads, rotated, theta, original, count, mscale, window = expected
    assert find(Config(config)).name == config["model_type"]
    assert (hp.head_dim, hp.num_key_value_heads, hp.sliding_window) == (head_dim, kv_heads, window)
    assert (hp.rope.dimensions, hp.rope.theta, hp.rope.original_context) == (rotated, theta, original)
    assert (len(hp.rope.long_factor), len(hp.rope.short_factor)) == (count, count)
    assert hp.rope.short_mscale == hp.rope.long_mscale == pytest.approx(mscale, abs=1e-10)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    assert {s: getattr(hp, s) for s in sizes} == {s: config[s] for s in sizes}
    assert hp.max_position_embeddings == config["max_position_embeddings"]
    assert hp.norm_epsilon == 1e-5
    assert hp.tie_word_embeddings is config["tie_word_embeddings"]
    assert hp.experts == (Experts(16, 2) if config["model_type"] == "phimoe" else None)
    assert all(type(f) is float for f in (hp.rope.theta, *hp.rope.long_factor))


@pytest.mark.parametrize("model", MODELS)
def test_both_styles_mean_the_same(model, make_models):
    config = MODELS[model][0]
    newer = make_models.transformers5(config)
    assert "rope_scaling" not in newer
    assert "rope_theta" not in newer
    assert parse(newer) == parse(config)


def test_su_is_longrope():
    assert parse(MODELS["Phi-3-mini-128k, April"][0]) == parse(MODELS["Phi-3-mini-128k, June"][0])
    assert parse(mini(4096, 2047, {"rope_type": "default"})) == parse(mini(4096, 2047))


def test_defaults_are_those_of_transformers():
    config = mini(131072, None, scaling(48))
    for key in ("original_max_position_embeddings", "rope_theta", "rms_norm_eps", "tie_word_embeddings"):
        del config[key]
    assert parse(config) == parse(mini(131072, None, scaling(48)))
    older = phi(2048, 8192, 24, None, 0.5)
    for key in ("partial_rotary_factor", "rope_theta", "layer_norm_eps", "num_key_value_heads"):
        del older[key]
    assert parse(older) == parse(phi(2048, 8192, 24, 32, 0.5))


def test_attention_factor():
    assert parse(mini(8192, None, scaling(48))).rope.long_mscale == pytest.approx(math.sqrt(1 + 1 / 12))
    assert parse(mini(2048, None, scaling(48))).rope.long_mscale == 1.0
    assert parse(mini(8192, None, scaling(48, attention_factor=1.5))).rope.short_mscale == 1.5
    # A factor replaces the ratio of the contexts.
    assert parse(mini(8192, None, scaling(48, factor=16.0))).rope.long_mscale == pytest.approx(
        math.sqrt(4 / 3)
    )


@pytest.mark.parametrize("classes", [["PhimoeForCausalLM"], ["PhiMoEForCausalLM"], [], None])
def test_names_of_phimoe(classes):
    config = MODELS["Phi-tiny-MoE"][0] | {"architectures": classes}
    assert parse(config) == parse(MODELS["Phi-tiny-MoE"][0])


REFUSED = {
    "Phi-3-small": ("Phi3SmallForCausalLM", "phi3small"),
    "Phi-4-mini-flash": ("Phi4FlashForCausalLM", "phi4flash"),
    "the 2023 layout": ("PhiForCausalLM", "phi-msft"),
    "the 2023 layout of phi-1": ("MixFormerSequentialForCausalLM", "mixformer-sequential"),
    "not supported": ("MistralForCausalLM", "mistral"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_other_models_are_refused_by_name(title):
    name, kind = REFUSED[title]
    config = mini(4096, 2047) | {"architectures": [name], "model_type": kind}
    with pytest.raises(UnsupportedModelError, match=title.split(" of ")[0]) as caught:
        find(Config(config, PATH))
    assert name in str(caught.value)
    assert str(PATH) in str(caught.value)
    for half in ({"architectures": None}, {"model_type": None}):
        if name != "PhiForCausalLM" or "model_type" not in half:
            with pytest.raises(UnsupportedModelError):
                find(Config(config | half, PATH))


def test_a_model_without_a_name_is_refused():
    with pytest.raises(ConfigError, match=r"config\.json: key architectures: missing"):
        find(Config({}, PATH))
    with pytest.raises(ConfigError, match="must be a list"):
        find(Config({"architectures": "Phi3ForCausalLM"}, PATH))


def rope(**changes):
    return {"rope_scaling": scaling(48) | changes}


BAD = [
    *(("hidden_size", value) for value in ("3072", -1, True, 0, 3072.0, [3072], {}, 2**31, 10**400)),
    ("num_attention_heads", 0),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", 7),
    ("num_hidden_layers", 1.5),
    ("vocab_size", "many"),
    ("head_dim", 0),
    ("sliding_window", 0),
    ("sliding_window", False),
    ("hidden_act", "relu"),
    ("hidden_act", ["silu"]),
    ("tie_word_embeddings", "no"),
    *(("rms_norm_eps", value) for value in (0, -1e-5, "1e-05", False, math.nan, math.inf)),
    *(("rope_theta", value) for value in (0, "10000", True, 1e39, 10**400)),
    ("partial_rotary_factor", 1.5),
    ("partial_rotary_factor", 0.01),
    ("rope_scaling", "longrope"),
    ("rope_scaling", []),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_values_name_the_file_and_the_key(key, value):
    with pytest.raises(ConfigError) as caught:
        parse(PHI4MINI | {key: value})
    assert str(caught.value).startswith(f"{PATH}: key {key}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


BAD_ROPE = [
    *(("long_factor", value) for value in ([1.0] * 47, [1.0] * 49, [], None, 1.0, "x", {"0": 1})),
    *(("short_factor", [1.0] * 47 + [item]) for item in (math.nan, math.inf, -1.0, 0, "1", None, True, [1])),
    *(("type", value) for value in ("linear", "yarn", "dynamic", "LongRoPE", 5, ["su"])),
    ("original_max_position_embeddings", 0),
    ("original_max_position_embeddings", 1),
    ("original_max_position_embeddings", "4096"),
    ("long_mscale", -1),
    ("short_mscale", "1.2"),
]


@pytest.mark.parametrize(("key", "value"), BAD_ROPE)
def test_bad_rope_scaling_names_the_file_and_the_key(key, value):
    with pytest.raises(ConfigError) as caught:
        parse(PHI4MINI | rope(**{key: value}))
    assert str(caught.value).startswith(f"{PATH}: key rope_scaling.{key}")
    assert len(str(caught.value)) < 1000


def test_factors_without_a_type_are_refused():
    with pytest.raises(ConfigError, match="long and short factors"):
        parse(PHI4MINI | rope(type=None))


@pytest.mark.parametrize("model", ["phi-2", "Phi-4-mini", "Phi-3.5-MoE"])
def test_missing_keys_are_named(model):
    config = MODELS[model][0]
    needed = {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    }  # fmt: skip
    needed |= {"intermediate_size"} if model != "phi-2" else set()
    needed |= {"num_local_experts", "num_experts_per_tok"} if "MoE" in model else set()
    for key in needed:
        with pytest.raises(ConfigError, match=rf"config\.json: key {key}: missing"):
            parse({k: v for k, v in config.items() if k != key})


def test_values_that_do_not_fit_each_other():
    with pytest.raises(ConfigError, match="key num_attention_heads: 25 does not divide hidden_size"):
        parse(PHI4MINI | {"num_attention_heads": 25, "num_key_value_heads": 5})
    with pytest.raises(ConfigError, match="key num_experts_per_tok: 17 of 16 experts"):
        parse(MODELS["Phi-3.5-MoE"][0] | {"num_experts_per_tok": 17})
    with pytest.raises(UnsupportedModelError, match="key qk_layernorm"):
        parse(MODELS["phi-2"][0] | {"qk_layernorm": True})


# -------------------------------------------------------------------------------- config.json and the tensors


def edit_header(path, change):
    """Changes the header of a safetensors file; the bytes of the tensors stay where they are."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rename(header, old, new):
    header[new] = header.pop(old)


FIRST = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda h: h[FIRST].update(shape=[96, 64]), ConfigError, ["[96, 64]", "[64, 96]", FIRST]),
        (lambda h: rename(h, FIRST, "other.weight"), MalformedFileError, ["missing", FIRST]),
        (lambda h: h[FIRST].update(dtype="I16"), MalformedFileError, ["i16", FIRST]),
        (
            lambda h: rename(h, "model.norm.weight", "model.norm.bias"),
            MalformedFileError,
            ["missing", "model.norm.weight"],
        ),
    ],
    ids=["shape", "missing", "type", "norm"],
)
def test_tensors_that_do_not_fit_the_config(change, kind, says, make_model, tmp_path, refused):
    folder = make_model(tmp_path, "phi3")
    edit_header(folder / "model.safetensors", change)
    error = refused(phiconv.open_model, folder, kind=kind, says=says[0])
    assert all(part in str(error) for part in [*says, str(folder)])


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"num_hidden_layers": 1}, MalformedFileError, "model.layers.1."),
        ({"num_hidden_layers": 3}, MalformedFileError, "2.input_layernorm.weight: this tensor"),
        ({"num_hidden_layers": 2**30}, MalformedFileError, "2.input_layernorm.weight: this tensor"),
        ({"vocab_size": 2000}, ConfigError, "model.embed_tokens.weight"),
        ({"vocab_size": 2**30}, ConfigError, "model.embed_tokens.weight"),
        ({"num_key_value_heads": 2}, ConfigError, "qkv_proj.weight"),
        ({"intermediate_size": 48}, ConfigError, "gate_up_proj.weight"),
        ({"architectures": ["PhiForCausalLM"], "hidden_act": None}, MalformedFileError, "norm.bias"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_the_tensors(changes, kind, says, make_model, tmp_path, refused):
    folder = make_model(tmp_path, "phi3")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    refused(phiconv.open_model, folder, kind=kind, says=says)


def test_experts_that_do_not_fit_the_config(make_model, tmp_path, refused):
    folder = make_model(tmp_path, "phimoe")
    config = json.loads((folder / "config.json").read_text())
    for count in (3, 5, 2**30):
        (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": count}))
        refused(phiconv.open_model, folder, kind=ConfigError, says="gate.weight: has shape [4, 64]")


def test_every_kind_of_checkpoint_opens(make_models, model_folder):
    for kind in make_models.KINDS:
        model = phiconv.open_model(model_folder(kind))
        assert model.architecture == make_models.CONFIGS[kind]["model_type"]
        assert sum(t.size for t in model.tensors.values()) == model.size


def test_stacked_experts_are_the_same_weights(model_folder):
    apart, stacked = (phiconv.open_model(model_folder(k)).tensors for k in ("phimoe", "phimoe-stacked"))
    assert apart.keys() == stacked.keys()
    for role, tensor in apart.items():
        assert (phiconv.read(tensor) == phiconv.read(stacked[role])).all(), str(role)
