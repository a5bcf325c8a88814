"""MLX folders: tensor for tensor those of mlx_lm.convert, and mlx-lm computes with them as it should."""

from __future__ import annotations

import contextlib
import io

import pytest

import phiconv
from mlx_runtime import run_logits
from paths import FIXTURES
from phiconv_formats.shared.safetensors import open_safetensors
from references import open_reference, relative_l2

pytestmark = [
    pytest.mark.runtime,
    # transformers' own, as it loads a tokenizer
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
]

KINDS = ["phi", "phi-fp16", "phi2", "phi3", "phi3-gqa", "phi3-sharded", "phi4", "phi4mini", "phimoe"]
ALSO = ["llama", "llama3", "llama-bias", "qwen2", "qwen2-untied", "qwen3", "qwen3-untied"]
NEW_STYLE = ["phi4mini-transformers5", "phimoe-transformers5"]


@pytest.fixture(scope="module")
def convert(mlx_lm):
    """mlx_lm.convert, silently."""
    from mlx_lm.convert import convert

    def run(*arguments, **options):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert(*map(str, arguments), **options)

    return run


def peer_options(recipe):
    """What mlx_lm.convert takes for one of our recipes."""
    dtypes = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
    if recipe in dtypes:
        return {"dtype": dtypes[recipe]}
    if recipe in {"mxfp4", "mxfp8", "nvfp4"}:
        return {"quantize": True, "q_mode": recipe}
    name, _, group = recipe.partition("-g")
    size = {"quantize": True, "q_group_size": int(group or 64)}
    if name.startswith("mixed"):
        return {**size, "quant_predicate": name}
    return {**size, "q_bits": int(name.removesuffix("bit"))}


def tensors(folder):
    """Every array of a folder: its type, its shape and its bytes, by name."""
    found = {}
    for path in folder.glob("model*.safetensors"):
        for name, tensor in open_safetensors(path).tensors.items():
            data = tensor.read(0, tensor.rows).tobytes()
            found[name] = (tensor.encoding.name, tensor.shape, data)
    return found


def differing(ours, theirs):
    a, b = tensors(ours), tensors(theirs)
    return sorted({*a} ^ {*b}) + [name for name in a if name in b and a[name] != b[name]]


RECIPES = [
    *(f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)),
    *("4bit-g32", "3bit-g128", "8bit-g128", "5bit-g32"),
    *("mxfp4", "mxfp8", "nvfp4", "f16", "bf16", "f32"),
]
MIXED = ["mixed_2_6", "mixed_3_4", "mixed_3_6-g32", "mixed_4_6"]


@pytest.mark.parametrize("recipe", [*RECIPES, *MIXED])
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_trained_model_in_every_recipe(convert, tmp_path, name, recipe):
    convert(FIXTURES / name, tmp_path / "theirs", **peer_options(recipe))
    phiconv.convert(FIXTURES / name, tmp_path / "ours", to="mlx", quant=recipe)
    assert differing(tmp_path / "ours", tmp_path / "theirs") == []


@pytest.mark.parametrize("recipe", ["4bit-g32", "nvfp4", "f32"])
@pytest.mark.parametrize("kind", [*KINDS, *ALSO, *NEW_STYLE])
def test_every_kind_of_model(convert, tmp_path, model_folder, kind, recipe):
    convert(model_folder(kind), tmp_path / "theirs", **peer_options(recipe))
    choices = phiconv.Choices(match_runtime=True)
    phiconv.convert(model_folder(kind), tmp_path / "ours", to="mlx", quant=recipe, choices=choices)
    assert differing(tmp_path / "ours", tmp_path / "theirs") == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["phi", "phi3"])
def test_weights_are_cast_before_they_are_quantized(convert, tmp_path, model_folder, kind, dtype):
    convert(model_folder(kind), tmp_path / "theirs", quantize=True, q_group_size=32, q_bits=4, dtype=dtype)
    short = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[dtype]
    choices = phiconv.Choices(dtype=short)
    phiconv.convert(model_folder(kind), tmp_path / "ours", to="mlx", quant="4bit-g32", choices=choices)
    assert differing(tmp_path / "ours", tmp_path / "theirs") == []


def test_matrices_that_do_not_divide_stay_floats_as_there(convert, tmp_path, model_folder):
    folder = model_folder("phi3-gqa")  # rows of 224 divide by 32 and not by 64
    convert(folder, tmp_path / "theirs", **peer_options("4bit"))
    result = phiconv.convert(folder, tmp_path / "ours", to="mlx", quant="4bit")
    assert differing(tmp_path / "ours", tmp_path / "theirs") == []
    assert any("224" in note for note in result.plan.package.notes)


# ----------------------------------------------------------------------------------------------- the runtime


# Where the runtime is right: no longrope below the original context, no sliding window inside the text.
@pytest.mark.parametrize("name", ["phi", "phi2", "phi3", "phi3-gqa", "phi4", "phi4mini-long"])
def test_unquantized_logits_are_those_of_transformers(mlx_lm, tmp_path, model_folder, name):
    kept = open_reference(f"references/{name}.npz")
    phiconv.convert(model_folder(name.removesuffix("-long")), tmp_path / "m", to="mlx", quant="f32")
    logits = run_logits(mlx_lm, tmp_path / "m", kept["input_ids"])
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 3e-6
    assert (logits.argmax(axis=-1) == kept["argmax"]).all()


def test_short_context_makes_short_texts_right(mlx_lm, tmp_path, model_folder):
    kept = open_reference("references/phi4mini.npz")
    choices = phiconv.Choices(short_context=True)
    for options, right in (({}, False), ({"choices": choices}, True)):
        folder = tmp_path / str(right)
        result = phiconv.convert(model_folder("phi4mini"), folder, to="mlx", quant="f32", **options)
        logits = run_logits(mlx_lm, folder, kept["input_ids"])
        assert (relative_l2(logits[kept["positions"]], kept["logits"]) < 3e-6) == right
        assert any("--short-context" in note for note in result.plan.package.notes) != right


def test_new_style_configuration_gives_the_same_logits(mlx_lm, tmp_path, model_folder):
    kept = open_reference("references/phi4mini-long.npz")
    phiconv.convert(model_folder("phi4mini-transformers5"), tmp_path / "m", to="mlx", quant="f32")
    logits = run_logits(mlx_lm, tmp_path / "m", kept["input_ids"])
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 3e-6


def test_trained_model_predicts_as_transformers_does(mlx_lm, tmp_path):
    kept = open_reference("tiny-phi3/reference.npz")
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx")
    logits = run_logits(mlx_lm, tmp_path / "m", kept["input_ids"][0])
    assert relative_l2(logits, kept["logits_f32"][0]) < 1e-6


@pytest.mark.parametrize("recipe", ["8bit-g32", "6bit", "4bit-g32", "3bit-g32", "mxfp8", "mxfp4", "nvfp4"])
def test_runtime_computes_with_the_weights_that_phiconv_reads_back(mlx_lm, tmp_path, model_folder, recipe):
    """A quantized folder gives the logits of the unquantized folder that is made of it."""
    ids = range(40, 72)
    for kind in ("phi3", "phimoe"):
        first, second = tmp_path / f"{kind}-q", tmp_path / f"{kind}-f"
        phiconv.convert(model_folder(kind), first, to="mlx", quant=recipe)
        phiconv.convert(first, second, to="mlx", quant="f32")
        a, b = run_logits(mlx_lm, first, ids), run_logits(mlx_lm, second, ids)
        assert relative_l2(a, b) < 5e-5, kind


@pytest.mark.parametrize("kind", ["phi-fp16", "phi3-su", "phi4mini", "phimoe-stacked"])
def test_runtime_generates(mlx_lm, tmp_path, model_folder, kind):
    from mlx_lm import load

    # Its experts compute in float32 only, on the processor; and it does not switch LongRoPE's factors.
    choices = phiconv.Choices(dtype="f32", short_context=kind in {"phi3-su", "phi4mini", "phimoe-stacked"})
    phiconv.convert(model_folder(kind), tmp_path / "m", to="mlx", quant="4bit-g32", choices=choices)
    model, tokenizer = load(str(tmp_path / "m"))
    prompt = tokenizer.encode("Once upon a time")
    assert generated(model, prompt, 8) == list(phiconv.generate(tmp_path / "m", prompt, 8))


def generated(model, prompt, count):
    """The likeliest tokens. Its text streamer fails on rows of the head that are no token."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def test_trained_model_says_what_numpy_says(mlx_lm, tmp_path):
    from mlx_lm import generate, load

    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx", quant="f32")
    model, tokenizer = load(str(tmp_path / "m"))
    prompt = tokenizer.encode("The function returns")
    ids = generated(model, prompt, 24)
    assert ids == list(phiconv.generate(FIXTURES / "tiny-phi3", prompt, 24))
    assert generate(model, tokenizer, prompt="The function returns", max_tokens=24) == tokenizer.decode(ids)


def test_chat_template_arrives(mlx_lm, tmp_path):
    from mlx_lm import load

    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx", quant="q4")
    _, tokenizer = load(str(tmp_path / "m"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|user|>" in text
    assert "Hi" in text


def test_router_is_kept_at_8_bits(mlx_lm, tmp_path, model_folder):
    phiconv.convert(model_folder("phimoe"), tmp_path / "m", to="mlx", quant="q4")
    from mlx_lm.utils import load_model

    model, config = load_model(tmp_path / "m")
    gate = model.layers[0].block_sparse_moe.gate
    assert (gate.bits, gate.group_size) == (8, 64)
    assert config["quantization"]["bits"] == 4


def test_single_matrices_by_name(mlx_lm, tmp_path, model_folder):
    from mlx_lm.utils import load_model

    from phiconv.recipes import override

    types = (override("lm_head=f16"), override(r"layers\.1\..*o_proj=8bit-g32"), override("embed=mxfp8"))
    choices = phiconv.Choices(tensor_types=types)
    phiconv.convert(model_folder("phi3"), tmp_path / "m", to="mlx", quant="4bit-g32", choices=choices)
    model, _ = load_model(tmp_path / "m")
    assert model.layers[1].self_attn.o_proj.bits == 8
    assert model.layers[0].self_attn.o_proj.bits == 4
    assert model.model.embed_tokens.mode == "mxfp8"
    assert type(model.lm_head).__name__ == "Linear"


def test_shards_load(mlx_lm, tmp_path, model_folder):
    kept = open_reference("references/phi3.npz")
    phiconv.convert(model_folder("phi3"), tmp_path / "m", to="mlx", quant="f32", split_max_size=300_000)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    logits = run_logits(mlx_lm, tmp_path / "m", kept["input_ids"])
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 3e-6
