"""Compressed-tensors folders: written, read, copied; what they say of themselves."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import make_golden_server as peers
import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.conversion.effort import best
from phiconv.errors import UsageError
from phiconv.ir.server import CT_MXFP4, CT_MXFP8, CT_NVFP4, compressed_fp8, compressed_int
from phiconv.quantizers import decode, encode
from phiconv.recipes import Choices, override
from phiconv_formats.server.compressed_packing import pack, unpack, unpack_zero_points

GOLDEN = json.loads((FIXTURES / "golden_server.json").read_text())["compressed-tensors"]
IDS = [[1, 5, 9, 700, 33, 2]]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return peers.make_source(tmp_path_factory.mktemp("source"), "phi3")


@pytest.fixture(scope="module")
def mixture(make_model, tmp_path_factory):
    """A PhiMoE whose experts have largest weights of their own."""
    kind, settings = peers.MODELS["phimoe"]
    return make_model(tmp_path_factory.mktemp("mixture"), kind, seed=3, **settings)


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """The folder of every recipe."""
    root = tmp_path_factory.mktemp("folders")

    def make(recipe):
        if not (root / recipe).exists():
            phiconv.convert(source, root / recipe, to="compressed-tensors", quant=recipe)
        return root / recipe

    return make


# ----------------------------------------------------------------------------------------------- the formulas


def bfloat(values):
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16)


def numbers(tensors, name, dtype):
    _, shape, data = tensors[name]
    return np.frombuffer(data, dtype).reshape(shape)


def formula(tensors, base, recipe):
    """A matrix by the formulas of the format, one after the other."""

    def part(suffix, dtype):
        return numbers(tensors, f"{base}.{suffix}", dtype)

    def halves(packed):
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)

    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    stem = recipe.partition("-")[0]
    if recipe == "nvfp4a16":
        scale = part("weight_scale", ml_dtypes.float8_e4m3fn).astype(np.float32)
        q, each = e2m1[halves(part("weight_packed", np.uint8))], scale / part("weight_global_scale", "<f4")
    elif stem.startswith("mx"):
        each = np.exp2(part("weight_scale", np.uint8).astype(np.float32) - 127)
        if recipe == "mxfp8":
            q = part("weight", ml_dtypes.float8_e4m3fn).astype(np.float32)
        else:
            q = e2m1[halves(part("weight_packed", np.uint8))]
    else:
        each = part("weight_scale", ml_dtypes.bfloat16).astype(np.float32)
        if stem == "fp8":
            q = part("weight", ml_dtypes.float8_e4m3fn).astype(np.float32)
        elif stem.endswith("a8"):
            q = part("weight", np.int8).astype(np.float32)
        else:
            rows, columns = part("weight_shape", "<i8")
            bits = int(recipe[1])
            stream = np.unpackbits(part("weight_packed", "<u4").view(np.uint8), axis=1, bitorder="little")
            fields = stream[:, : columns * bits].reshape(rows, columns, bits)
            q = (fields << np.arange(bits)).sum(axis=-1) - 2.0 ** (bits - 1)
            if "asym" in recipe:
                words = part("weight_zero_point", "<u4")
                nibbles = (words[:, None] >> (bits * np.arange(32 // bits))[:, None]) & (2**bits - 1)
                zero = nibbles.reshape(-1, words.shape[1])[:rows].astype(np.float32) - 2.0 ** (bits - 1)
                q = q - zero.repeat(columns // zero.shape[1], axis=1)
    if recipe == "fp8-block":
        each = each.repeat(128, axis=0)[: len(q)]
    width = 128 if recipe == "fp8-block" else q.shape[1] // each.shape[1]
    return q.astype(np.float32) * each.repeat(width, axis=1)[:, : q.shape[1]]


@pytest.mark.parametrize("recipe", peers.COMPRESSED)
def test_what_is_read_is_what_the_formulas_say(folders, recipe):
    folder = folders(recipe)
    tensors, stored = peers.tensors_of(folder), phiconv.open_model(folder).stored
    bases = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    assert len(bases) == 8
    for base in bases:
        tensor = stored[f"{base}.weight"]
        whole = decode(tensor.read(0, tensor.rows), tensor.columns)
        np.testing.assert_array_equal(whole, formula(tensors, base, recipe))
        some = decode(tensor.read(3, tensor.rows - 5), tensor.columns)
        np.testing.assert_array_equal(some, whole[3:-5])


@pytest.mark.parametrize("recipe", peers.COMPRESSED)
def test_a_copy_has_the_same_bytes(folders, tmp_path, recipe):
    made = phiconv.plan(folders(recipe), tmp_path / "o", to="compressed-tensors")
    assert {tensor.action for tensor in made.tensors} == {"copied"}
    assert made.recipe == recipe
    phiconv.convert(folders(recipe), tmp_path / "o", to="compressed-tensors", split_max_size=300_000)
    assert peers.tensors_of(tmp_path / "o") == peers.tensors_of(folders(recipe))
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "o", folders(recipe))]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("recipe", ["w4a16-g32", "w4a16-asym", "w8a8", "fp8-block", "nvfp4a16"])
def test_it_is_computed_with(make_model, tmp_path, recipe):
    kind, settings = peers.MODELS["phi3"]
    plain = make_model(tmp_path / "plain", kind, **settings)
    phiconv.convert(plain, tmp_path / "o", to="compressed-tensors", quant=recipe)
    found, wanted = phiconv.logits(tmp_path / "o", IDS), phiconv.logits(plain, IDS)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < (0.5 if "4" in recipe else 0.1)


# ----------------------------------------------------------------------------------------------- the quotient


@pytest.mark.parametrize(
    "encoding",
    [
        compressed_int("w4a16", 128, ir.BF16),
        compressed_int("w4a16", 32, ir.BF16, symmetric=False),
        compressed_int("w8a8", 512, ir.BF16),
        compressed_fp8("fp8-dynamic", 512, ir.BF16),
    ],
    ids=lambda encoding: encoding.name,
)
def test_the_exact_quotient_loses_no_more_than_the_rounded_one(encoding):
    values = bfloat(np.random.default_rng(0).normal(size=(256, 512)))
    runtime = type(encoding)
    errors = []
    for suffix in ("", "_runtime"):
        named = {f: getattr(encoding, f) for f in encoding.__slots__} | {"name": encoding.name + suffix}
        blocks = encode(values, runtime(**named))
        errors.append(np.square(decode(blocks, 512) - values.astype(np.float32)).sum())
    assert errors[0] < errors[1]


# ---------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    "encoding",
    [
        compressed_int("w4a16", 8, ir.BF16),
        compressed_int("w4a16", 24, ir.F16, symmetric=False),
        compressed_int("w8a16", 24, ir.F32),
        compressed_int("w8a8", 24, ir.BF16),
        compressed_int("w4a8", 24, ir.BF16),
        compressed_fp8("fp8-dynamic", 24, ir.BF16),
    ],
    ids=lambda encoding: encoding.name,
)
@given(rows=st.integers(1, 21), seed=st.integers(0, 2**32 - 1))
def test_unpack_is_the_inverse_of_pack(encoding, rows, seed):
    """The zero points of most numbers of rows end within a word."""
    values = bfloat(np.random.default_rng(seed).normal(size=(rows, 24)))
    blocks = encode(values, encoding)
    data = pack(blocks, (rows, 24))
    more = ()
    if encoding.name.startswith("ct_w4a16_asym"):
        words = data[2].view("<u4").reshape(-1, 1)
        more = (unpack_zero_points(words, 4)[:rows].reshape(-1),)
    again = unpack(encoding, data[0], data[-1], *more)
    np.testing.assert_array_equal(decode(again, 24), decode(blocks, 24))
    assert again.codes.dtype == blocks.codes.dtype
    np.testing.assert_array_equal(again.codes, blocks.codes)


# ----------------------------------------------------------------------------------------- config and choices


@pytest.mark.parametrize("recipe", peers.COMPRESSED)
def test_the_configuration_is_the_peers_key_for_key(folders, recipe):
    said = json.loads((folders(recipe) / "config.json").read_text())["quantization_config"]
    assert said.pop("ignore") == ["lm_head"]
    assert said == {key: value for key, value in GOLDEN["configs"][recipe].items() if key != "ignore"}


def test_the_router_of_a_mixture_is_left_alone(tmp_path):
    phiconv.convert(
        peers.make_source(tmp_path, "phimoe"), tmp_path / "o", to="compressed-tensors", quant="q4"
    )
    said = json.loads((tmp_path / "o" / "config.json").read_text())["quantization_config"]
    assert said["ignore"] == ["lm_head", "re:.*\\.(gate|router)$"]
    names = peers.tensors_of(tmp_path / "o")
    expert = "model.layers.1.block_sparse_moe.experts.3.w2"
    assert {f"{expert}.weight_packed", "model.layers.1.block_sparse_moe.gate.weight"} <= names.keys()


def test_experts_with_scales_of_their_own_are_copied(mixture, tmp_path):
    for source, target in ((mixture, "a"), (tmp_path / "a", "b")):
        phiconv.convert(source, tmp_path / target, to="compressed-tensors", quant="nvfp4a16")
    found = peers.tensors_of(tmp_path / "a")
    assert found == peers.tensors_of(tmp_path / "b")
    layer = "model.layers.0"
    w1, w2, w3 = (
        {found[f"{layer}.block_sparse_moe.experts.{e}.{w}.weight_global_scale"][2] for e in range(4)}
        for w in ("w1", "w2", "w3")
    )
    assert w1 == w3 != w2
    assert len(w1) == 4
    q, k, v = (found[f"{layer}.self_attn.{p}_proj.weight_global_scale"][2] for p in "qkv")
    assert q == k == v


def test_another_scheme_for_some_layers(source, tmp_path):
    choices = Choices(tensor_types=(override("down_proj=w8a16"), override("layers.1.*o_proj=bf16")))
    phiconv.convert(source, tmp_path / "o", to="compressed-tensors", quant="w4a16", choices=choices)
    said = json.loads((tmp_path / "o" / "config.json").read_text())["quantization_config"]
    assert said["ignore"] == ["lm_head", "model.layers.1.self_attn.o_proj"]
    assert said["format"] == "pack-quantized"
    assert said["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert said["config_groups"]["group_1"]["targets"] == [f"model.layers.{n}.mlp.down_proj" for n in (0, 1)]
    stored = phiconv.open_model(tmp_path / "o").stored
    names = [
        stored[f"model.layers.1.{n}.weight"].encoding.name for n in ("mlp.down_proj", "self_attn.o_proj")
    ]
    assert names == ["ct_w8a16_g128_bf16", "bf16"]


def test_rows_that_cannot_be_cut_are_refused_by_name(tmp_path):
    odd = peers.make_source(tmp_path, "phi3-odd")
    with pytest.raises(
        UsageError, match=r"192 weights.*groups of 128.*layers\.0\.self_attn\.qkv_proj"
    ) as caught:
        phiconv.plan(odd, tmp_path / "o", to="compressed-tensors", quant="q4")
    assert "-channel" in str(caught.value)
    assert phiconv.plan(odd, tmp_path / "o", to="compressed-tensors", quant="w4a16-channel").size


def test_best_effort_knows_the_integers_and_leaves_the_floats():
    assert best.supports(compressed_int("w4a16", 128, ir.BF16))
    assert best.supports(compressed_int("w4a16", 32, ir.BF16, symmetric=False))
    assert best.supports(compressed_int("w8a8", 3072, ir.BF16))
    for encoding in (CT_NVFP4, CT_MXFP4, CT_MXFP8, compressed_fp8("fp8-dynamic", 64, ir.BF16)):
        assert not best.supports(encoding)


def test_best_effort_makes_less_error_with_the_same_arrays(source, folders, tmp_path):
    text = (FIXTURES / "test.txt").read_text()[:6000]
    choices = Choices(effort="best")
    phiconv.convert(
        source, tmp_path / "o", to="compressed-tensors", quant="w4a16", choices=choices, text=[text]
    )
    found, usual = peers.tensors_of(tmp_path / "o"), peers.tensors_of(folders("w4a16"))
    assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in usual.items()}
    assert found != usual
    wanted = phiconv.logits(source, IDS)
    errors = [np.linalg.norm(phiconv.logits(f, IDS) - wanted) for f in (tmp_path / "o", folders("w4a16"))]
    assert errors[0] < errors[1]


def test_another_formats_blocks_are_kept_where_the_numbers_are_the_same(source, tmp_path):
    phiconv.convert(source, tmp_path / "m", to="mlx", quant="mxfp4")
    made = phiconv.plan(tmp_path / "m", tmp_path / "o", to="compressed-tensors")
    matrices = {t.action for t in made.tensors if "layers" in t.name and len(t.shape) > 1}
    assert (made.recipe, matrices) == ("mxfp4a16", {"repacked"})


# -------------------------------------------------------------------------------------------- others' folders


def rewritten(folder, target, tensors, change=lambda said: said):
    """A copy of a folder with other tensors and another configuration."""
    shutil.copytree(folder, target)
    header, data = {}, b""
    for name, (dtype, shape, stored) in tensors.items():
        ends = [len(data), len(data) + len(stored)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        data += stored
    text = json.dumps(header).encode()
    (target / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = change(config["quantization_config"])
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_the_names_of_transformers_are_those_of_the_hub(mixture, tmp_path):
    """As llm-compressor's oneshot writes a PhiMoE."""
    phiconv.convert(mixture, tmp_path / "o", to="compressed-tensors", quant="w4a16")
    others = {".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}
    tensors = {}
    for name, tensor in peers.tensors_of(tmp_path / "o").items():
        found = next((hub for hub in others if hub in name), "")
        tensors[name.replace(found, others[found]) if found else name] = tensor
    folder = rewritten(tmp_path / "o", tmp_path / "renamed", tensors)
    np.testing.assert_array_equal(phiconv.logits(folder, IDS), phiconv.logits(tmp_path / "o", IDS))


def test_one_scale_for_a_whole_tensor(folders, tmp_path):
    """The scheme FP8, whose activations need a calibration."""
    tensors = peers.tensors_of(folders("fp8-dynamic"))
    scale = bfloat([0.25]).tobytes()
    single = {n: ("BF16", [1], scale) if n.endswith("weight_scale") else t for n, t in tensors.items()}
    down = "model.layers.0.mlp.down_proj"
    single[f"{down}.input_scale"] = ("BF16", [1], scale)

    def change(said):
        said["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
        return said

    folder = rewritten(folders("fp8-dynamic"), tmp_path / "single", single, change)
    stored = phiconv.open_model(folder).stored
    assert f"{down}.input_scale" not in stored
    found = stored[f"{down}.weight"]
    codes = numbers(tensors, f"{down}.weight", ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(decode(found.read(5, 9), found.columns), codes[5:9] * np.float32(0.25))
