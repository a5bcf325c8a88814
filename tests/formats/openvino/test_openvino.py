"""The OpenVINO writer: what it lays out, and what it refuses; no runtime is needed."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.conversion.rows import TILE
from phiconv.errors import PhiconvError
from phiconv.recipes import override


def convert(source, target, quant, **options):
    return phiconv.convert(source, target, to="openvino", quant=quant, choices=phiconv.Choices(**options))


def constants(path):
    """Offset, size and element type of every constant by its name."""
    net = ET.parse(path).getroot()  # noqa: S314 - our own
    data = {
        e.get("name"): e.find("data").attrib for e in net.iterfind("layers/layer") if e.get("type") == "Const"
    }
    return {n: (int(d["offset"]), int(d["size"]), d["element_type"]) for n, d in data.items()}


def types(plan):
    return {t.name: t.encoding.name for t in plan.tensors}


def plan(source, quant, **options):
    return phiconv.plan(source, "x.xml", quant=quant, choices=phiconv.Choices(**options))


def test_folder_has_everything(tmp_path):
    result = convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {".phiconv.json", "receipt.json", *(p.name for p in result.files)}
    assert {"openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json"} <= names
    assert {"openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    settings = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2048, 2049, 2055]
    assert settings["bos_token_id"] == 1
    assert all("sliding window of 2047" in note for note in result.plan.package.notes)


def test_prompts_in_chunks_are_warned_of(model_folder):
    """A call beyond the original context has the long factors, those before it the short ones."""
    for kind, options, warned in (
        ("phi4mini", {}, True),
        ("phi4mini", {"long_context": True}, False),
        ("phi4mini", {"short_context": True}, False),
        ("phi3", {}, False),
    ):
        notes = plan(model_folder(kind), "f32", **options).package.notes
        assert any("--long-context" in note for note in notes) is warned


def test_settings_have_an_end_even_if_the_source_has_no_settings(tmp_path):
    shutil.copytree(FIXTURES / "tiny-phi3", tmp_path / "s")
    (tmp_path / "s" / "generation_config.json").unlink()
    convert(tmp_path / "s", tmp_path / "m", "f16")
    settings = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert settings["eos_token_id"] in (2048, [2048])
    assert {"bos_token_id", "pad_token_id"} <= set(settings)


def test_a_file_is_the_model_alone(tmp_path):
    result = phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.xml", quant="int4-sym-g64")
    assert [p.name for p in result.files] == ["x.xml", "x.bin"]
    names = [".phiconv.json", "x.bin", "x.xml", "x.xml.receipt.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    with pytest.raises(phiconv.OutputExistsError):
        phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.xml", quant="f16")


@pytest.mark.parametrize("quant", ["int4-asym-g32", "mxfp4", "f32"])
def test_plan_is_exact_and_constants_do_not_overlap(tmp_path, quant):
    made = plan(FIXTURES / "tiny-phi4mini", quant)
    result = phiconv.convert(FIXTURES / "tiny-phi4mini", tmp_path / "x.xml", quant=quant)
    assert [p.stat().st_size for p in result.files] == [f.size for f in made.package.files]
    found = constants(tmp_path / "x.xml")
    at = 0
    for offset, size in sorted({place[:2] for place in found.values()}):
        assert offset >= at
        at = offset + size
    assert at == (tmp_path / "x.bin").stat().st_size
    weights = {n: offset for n, (offset, _, _) in found.items() if "weight" in n}
    assert all(offset % 64 == 0 for offset in weights.values())
    assert sum("embed_tokens" in n or "lm_head" in n for n in weights) == {"f32": 1, "mxfp4": 3}.get(quant, 3)


def test_rows_that_share_a_byte_do_not_depend_on_tiles(tmp_path, monkeypatch, make_model):
    folder = make_model(tmp_path / "s", "phi3", hidden_size=96, intermediate_size=160, num_attention_heads=3,
                        num_key_value_heads=3)  # fmt: skip
    found = []
    for tile in (TILE, 700):  # 7 rows, if that were allowed
        monkeypatch.setattr("phiconv.conversion.rows.TILE", tile)
        monkeypatch.setattr("phiconv.conversion.rows.SPAN", 4 * tile)
        for quant in ("int4-asym-g32", "int4-asym-channel"):
            target = tmp_path / f"{tile}-{quant}.xml"
            phiconv.convert(folder, target, quant=quant)
            found.append(target.with_suffix(".bin").read_bytes())
    assert found[:2] == found[2:]


def test_weights_come_to_their_places(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.xml", quant="f32")
    offset, size, kind = constants(tmp_path / "x.xml")["model.layers.1.self_attn.qkv_proj.weight"]
    assert kind == "f32"
    data = (tmp_path / "x.bin").read_bytes()[offset : offset + size]
    stored = phiconv.open_model(FIXTURES / "tiny-phi3").stored["model.layers.1.self_attn.qkv_proj.weight"]
    assert np.array_equal(np.frombuffer(data, "<f4").reshape(stored.shape), phiconv.read(stored))


def test_blocks_of_llama_cpp_are_not_quantized_again(tmp_path):
    choices = phiconv.Choices(pure=True)
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.gguf", quant="Q4_0", choices=choices)
    choices = phiconv.Choices(all_layers=True)
    phiconv.convert(tmp_path / "x.gguf", tmp_path / "x.xml", quant="int4-sym-g32", choices=choices)
    offset, size, kind = constants(tmp_path / "x.xml")["model.layers.0.mlp.down_proj.weight"]
    assert kind == "i4"
    data = np.frombuffer((tmp_path / "x.bin").read_bytes()[offset : offset + size], np.uint8)
    tensor = phiconv.open_model(tmp_path / "x.gguf").stored["blk.0.ffn_down.weight"]
    codes = tensor.read(0, tensor.rows).codes.transpose(1, 0, 2).reshape(-1, 2)
    assert np.array_equal(data ^ 0x88, codes[:, 0] | codes[:, 1] << 4)


@pytest.mark.parametrize("kind", ["phi2", "phi3", "phi4mini", "phimoe", "qwen3"])
def test_products_are_named_after_their_modules(tmp_path, model_folder, kind):
    """As tracing names them, which is how programs find the layers of an adapter. phi4mini's head is tied."""
    result = convert(model_folder(kind), tmp_path / "m", "int4-asym-g32")
    net = ET.parse(tmp_path / "m" / "openvino_model.xml").getroot()  # noqa: S314 - our own
    names = [e.get("name") for e in net.iterfind("layers/layer") if e.get("type") == "MatMul"]
    matrices = {t.name for t in result.plan.tensors if len(t.shape) == 2} | {"lm_head.weight"}
    modules = {name.removesuffix(".weight") for name in matrices} - {"model.embed_tokens"}
    assert {n for n in names if n.startswith("__")} == {f"__module.{m}/aten::linear/MatMul" for m in modules}
    assert len(set(names)) == len(names)


# --------------------------------------------------------------------------------------------------- recipes


def test_the_two_ends_have_eight_bits(model_folder):
    found = types(plan(model_folder("phi3"), "int4-asym-g32"))
    ends = {n for n in found if "embed" in n or "lm_head" in n}
    assert {found[n] for n in ends} == {"openvino_int8_asym_g64"}
    assert {v for n, v in found.items() if "proj" in n} == {"openvino_int4_asym_g32"}
    assert {v for n, v in found.items() if "norm" in n} == {"f32"}
    found = types(plan(model_folder("phi3"), "int4-asym-g32", all_layers=True))
    assert {found[n] for n in ends} == {"openvino_int4_asym_g32"}


@pytest.mark.parametrize("kind", ["phi3", "phi4mini"])
@pytest.mark.parametrize(("match_runtime", "expected"), [(False, "int8_asym"), (True, "mxfp8")])
def test_eight_bits_beside_4_bit_floats(model_folder, kind, match_runtime, expected):
    """Integers are smaller and better; NNCF has floats at the two ends, and in what a ratio leaves."""
    for options in ({}, {"ratio": 0.5}, {"all_layers": True}):
        found = types(plan(model_folder(kind), "mxfp4", match_runtime=match_runtime, **options))
        wide = {n for n, v in found.items() if expected in v}
        assert {n for n, v in found.items() if "mxfp4" in v} | wide == {
            n for n in found if "proj" in n or "embed" in n or "lm_head" in n
        }
        assert any("proj" in n for n in wide) is ("ratio" in options)
        assert any("embed" in n for n in wide) is ("all_layers" not in options)


@pytest.mark.parametrize(("match_runtime", "expected"), [(False, "int8_asym"), (True, "int4_sym")])
def test_the_router_has_eight_bits(model_folder, match_runtime, expected):
    found = types(plan(model_folder("phimoe"), "int4-sym-g32", match_runtime=match_runtime))
    assert all(expected in v for n, v in found.items() if "router" in n)
    assert all("int4_sym" in v for n, v in found.items() if "experts" in n)


def test_rows_that_do_not_divide_get_smaller_groups_or_eight_bits(make_model, tmp_path):
    folder = make_model(tmp_path / "s", "phi3", hidden_size=96, intermediate_size=80, num_attention_heads=3,
                        num_key_value_heads=3)  # fmt: skip
    made = plan(folder, "int4-asym")
    found = types(made)
    assert found["model.layers.0.self_attn.o_proj.weight"] == "openvino_int4_asym_g32"
    assert found["model.layers.0.mlp.down_proj.weight"] == "openvino_int8_asym_g80"
    assert any("2 as u8 in whole rows" in note for note in made.package.notes)


def test_a_ratio_takes_the_least_sensitive_matrices_first():
    matrices = [n for n in types(plan(FIXTURES / "tiny-phi3", "f32")) if "proj" in n]
    chosen = []
    for ratio in (0.0, 0.3, 0.8, 1.0):
        found = types(plan(FIXTURES / "tiny-phi3", "int4-asym-g64", ratio=ratio))
        chosen.append({n for n in matrices if "int4" in found[n]})
    assert chosen[0] == set()
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(matrices)


def test_nncf_takes_linear_layers_before_experts(model_folder):
    """Unlike experts, they are stored in 16 bits when it measures, and so it adds more to their errors."""
    folder = model_folder("phimoe")
    for match_runtime in (False, True):
        found = types(plan(folder, "int4-sym-g32", ratio=0.4, match_runtime=match_runtime))
        linear = [n for n in found if "self_attn" in n and n.endswith("weight")]
        assert all("int4" in found[n] for n in linear) is match_runtime
        assert any("int8" in found[n] for n in found if "experts" in n)


def test_single_tensors_can_be_chosen(model_folder):
    types_ = (override("lm_head=f16"), override(r"layers\.0\.mlp=nf4-g32"), override("embed=MXFP8_E4M3"))
    found = types(plan(model_folder("phi3"), "int8-sym", tensor_types=types_))
    assert found["lm_head.weight"] == "f16"
    assert found["model.embed_tokens.weight"] == "openvino_mxfp8"
    assert found["model.layers.0.mlp.down_proj.weight"] == "openvino_nf4_g32"
    assert found["model.layers.1.mlp.down_proj.weight"].startswith("openvino_int8_sym")
    assert found["model.norm.weight"] == "f32"


@pytest.mark.parametrize(
    ("quant", "options", "says"),
    [
        ("int8-asym", {"ratio": 0.5}, "--ratio"),
        ("f16", {"all_layers": True}, "--all-layers"),
        ("int4-asym", {"pure": True}, "--pure means nothing for openvino"),
        ("int4-asym", {"tensor_types": (override("lm_head=Q4_K"),)}, "no tensor can be turned into 'Q4_K'"),
        ("int5", {}, "no quantization"),
        ("int4-asym", {"short_context": True}, "--short-context"),
        ("int4-asym", {"long_context": True}, "--long-context"),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(model_folder, quant, options, says):
    with pytest.raises(PhiconvError, match=says):
        plan(model_folder("phi3"), quant, **options)


def test_a_ratio_is_openvinos(model_folder):
    with pytest.raises(phiconv.UsageError, match="--ratio means nothing for gguf"):
        phiconv.plan(model_folder("phi3"), "x.gguf", choices=phiconv.Choices(ratio=0.5))


def test_plain_tensors_are_no_model_for_openvino(tmp_path):
    shutil.copy(FIXTURES / "tiny-phi3" / "model.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(phiconv.errors.MissingFileError, match="no config"):
        phiconv.plan(tmp_path / "x.safetensors", tmp_path / "m", to="openvino")


def test_a_scale_too_large_for_float16_is_refused(tmp_path, make_model):
    folder = make_model(tmp_path / "s", "phi")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    info = json.loads(data[8:start])["model.layers.0.mlp.fc1.weight"]
    huge = {"F32": np.float32(3e38).tobytes()}[info["dtype"]]
    at = start + info["data_offsets"][0]
    data[at : at + len(huge)] = huge
    path.write_bytes(data)
    with pytest.raises(phiconv.WeightError, match="too large"):
        convert(folder, tmp_path / "m", "int8-asym")
    assert not (tmp_path / "m").exists()
