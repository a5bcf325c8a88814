"""Names of recipes: those that there were before the grammar, and the rules that they are built by."""

from __future__ import annotations

import itertools

import pytest

from phiconv.errors import UsageError
from phiconv.ir import F16
from phiconv.recipes import TARGETS, find_recipe
from phiconv.recipes.grammar import Family, Grammar

# What the tables of names had, with the encodings: on most tensors, on the more important ones, and (ONNX) on
# the two ends; of OpenVINO those of rows of 1024 weights. MLX's scales are float16 here.
BEFORE = {
    "gguf": """
        F32 F16 BF16 Q8_0 Q5_1 Q5_0 Q4_1 Q4_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q3_K_L Q3_K_M Q3_K_S Q2_K
        Q2_K_S IQ4_NL IQ4_XS IQ3_M IQ3_S IQ3_XS IQ3_XXS IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0
        MXFP4_MOE""",
    "litert": "wi8 wi4 wi4b32 wi4b64 wi4b128 f16 f32",
    "mlx": """
        f16 bf16 f32 mxfp4 mxfp8 nvfp4 2bit 2bit-g32 2bit-g128 3bit 3bit-g32 3bit-g128 4bit 4bit-g32
        4bit-g128 5bit 5bit-g32 5bit-g128 6bit 6bit-g32 6bit-g128 8bit 8bit-g32 8bit-g128 mixed_2_6
        mixed_2_6-g32 mixed_2_6-g128 mixed_3_4 mixed_3_4-g32 mixed_3_4-g128 mixed_3_6 mixed_3_6-g32
        mixed_3_6-g128 mixed_4_6 mixed_4_6-g32 mixed_4_6-g128""",
    "onnx": """
        w4a16 w8a16
        f16 bf16 f32 int4 int4-g16 int4-g64 int4-g128 int4-g256 int4-asym int4-asym-g16 int4-asym-g64
        int4-asym-g128 int4-asym-g256 int4-rtn int4-rtn-g16 int4-rtn-g64 int4-rtn-g128 int4-rtn-g256
        int4-rtn-asym int4-rtn-asym-g16 int4-rtn-asym-g64 int4-rtn-asym-g128 int4-rtn-asym-g256 int4-qdq
        int4-qdq-g16 int4-qdq-g64 int4-qdq-g128 int4-qdq-g256 int4-qdq-asym int4-qdq-asym-g16
        int4-qdq-asym-g64 int4-qdq-asym-g128 int4-qdq-asym-g256 int8 int8-g16 int8-g64 int8-g128 int8-g256
        int8-asym int8-asym-g16 int8-asym-g64 int8-asym-g128 int8-asym-g256 int8-rtn int8-rtn-g16
        int8-rtn-g64 int8-rtn-g128 int8-rtn-g256 int8-rtn-asym int8-rtn-asym-g16 int8-rtn-asym-g64
        int8-rtn-asym-g128 int8-rtn-asym-g256 int8-qdq int8-qdq-g16 int8-qdq-g64 int8-qdq-g128 int8-qdq-g256
        int8-qdq-asym int8-qdq-asym-g16 int8-qdq-asym-g64 int8-qdq-asym-g128 int8-qdq-asym-g256 int4-k_quant
        int4-k_quant-g16 int4-k_quant-g64 int4-k_quant-g128 int4-k_quant-g256 int8-k_quant int8-k_quant-g16
        int8-k_quant-g64 int8-k_quant-g128 int8-k_quant-g256 int4-k_quant_mixed int4-k_quant_mixed-g16
        int4-k_quant_mixed-g64 int4-k_quant_mixed-g128 int4-k_quant_mixed-g256""",
    "openvino": """
        int4-asym int4-asym-g64 int4-asym-g32 int4-asym-channel int4-sym int4-sym-g64 int4-sym-g32
        int4-sym-channel int8-asym int8-sym nf4 nf4-g64 nf4-g32 mxfp4 mxfp8 f16 bf16 f32""",
    "safetensors": "f16 bf16 f32",
    "compressed-tensors": """
        w4a16 w4a16-g64 w4a16-g32 w4a16-channel w4a16-asym w4a16-asym-g64 w4a16-asym-g32 w4a16-asym-channel
        w8a16 w8a16-g64 w8a16-g32 w8a16-channel w8a8 w4a8 fp8-dynamic fp8-block nvfp4a16 mxfp4a16 mxfp8
        f16 bf16 f32""",
    "gptq": """
        4bit 4bit-g64 4bit-g32 4bit-channel 4bit-v2 4bit-v2-g64 4bit-v2-g32 4bit-v2-channel 8bit 8bit-g64
        8bit-g32 8bit-channel 8bit-v2 8bit-v2-g64 8bit-v2-g32 8bit-v2-channel f16 bf16 f32""",
    "awq": "4bit 4bit-g64 4bit-g32 f16 bf16 f32",
}

# By a name without its size; sizes change nothing but the number in an encoding's name.
ENCODINGS = {
    "mlx": {
        "4bit": "mlx_4bit_g64_f16 mlx_4bit_g64_f16",
        "mixed_3_6": "mlx_3bit_g64_f16 mlx_6bit_g64_f16",
        "nvfp4": "mlx_nvfp4 mlx_nvfp4",
        "bf16": "bf16 bf16",
    },
    "onnx": {
        "f16": "f16 f16 f16",
        "int4": "onnx_int4_g32_f32 onnx_int4_g32_f32 onnx_int8_g32_f32",
        "int4-asym": "onnx_int4_asym_g32_f32 onnx_int4_asym_g32_f32 onnx_int8_g32_f32",
        "int4-rtn": "onnx_int4_rtn_g32_f32 onnx_int4_rtn_g32_f32 onnx_int8_g32_f32",
        "int4-rtn-asym": "onnx_int4_rtn_asym_g32_f32 onnx_int4_rtn_asym_g32_f32 onnx_int8_g32_f32",
        "int4-qdq": "onnx_int4_qdq_g32_f32 onnx_int4_qdq_g32_f32 onnx_int8_qdq_g32_f32",
        "int8": "onnx_int8_g32_f32 onnx_int8_g32_f32 onnx_int8_g32_f32",
        "int8-qdq-asym": "onnx_int8_qdq_asym_g32_f32 onnx_int8_qdq_asym_g32_f32 onnx_int8_qdq_g32_f32",
        "int4-k_quant": "onnx_int4_k_quant_asym_g32_f32 onnx_int4_k_quant_asym_g32_f32 onnx_int8_g32_f32",
        "int8-k_quant": "onnx_int8_k_quant_asym_g32_f32 onnx_int8_k_quant_asym_g32_f32 onnx_int8_g32_f32",
        "int4-k_quant_mixed": (
            "onnx_int4_k_quant_asym_g32_f32 onnx_int8_k_quant_asym_g32_f32 onnx_int8_g32_f32"
        ),
    },
    "openvino": {
        "int4-asym": "openvino_int4_asym_g128",
        "int4-sym": "openvino_int4_sym_g128",
        "int4-sym-channel": "openvino_int4_sym_g1024",
        "int8-asym": "openvino_int8_asym_g1024",
        "int8-sym": "openvino_int8_sym_g1024",
        "nf4": "openvino_nf4_g128",
        "mxfp4": "openvino_mxfp4",
        "mxfp8": "openvino_mxfp8",
        "f32": "f32",
    },
}

FLOATS = {"fp16": "f16", "fp32": "f32", "float16": "f16", "bfloat16": "bf16", "float32": "f32"}
ALIASES = {
    "gguf": {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "q4": "Q4_K_M", "q8": "Q8_0"},
    "litert": {
        "fp16": "f16", "float32": "f32", "dynamic_wi8_afp32": "wi8", "dynamic-wi4b32-afp32": "wi4b32",
        "q4": "wi4b32", "q8": "wi8", "bf16": "f16",
    },
    "mlx": FLOATS | {"4bit-g64": "4bit", "mixed_2_6-g64": "mixed_2_6", "q4": "4bit"},
    "onnx": FLOATS | {
        "int4-g32": "int4", "int8-rtn-asym-g32": "int8-rtn-asym", "int4-k_quant-g32": "int4-k_quant",
        "int4-k_quant_mixed-g32": "int4-k_quant_mixed", "int4-asym-rtn-g64": "int4-rtn-asym-g64",
        "int8-g16-asym-qdq": "int8-qdq-asym-g16", "int4-g64-k_quant": "int4-k_quant-g64", "q8": "int8",
    },
    "openvino": FLOATS | {
        "int4": "int4-asym", "int8": "int8-asym", "int4-asym-g128": "int4-asym", "int4-sym-g128": "int4-sym",
        "nf4-g128": "nf4", "mxfp4-g32": "mxfp4", "mxfp8-g32": "mxfp8", "mxfp8-e4m3": "mxfp8",
        "q4": "int4-asym", "int4-channel-sym": "int4-sym-channel",
    },
    "safetensors": FLOATS,
    "compressed-tensors": FLOATS | {
        "w4a16-g128": "w4a16", "w4a16-g32-asym": "w4a16-asym-g32", "int8": "w8a8", "fp8": "fp8-dynamic",
        "mxfp4": "mxfp4a16", "nvfp4": "nvfp4a16", "q4": "w4a16", "q8": "w8a8",
    },
    "gptq": FLOATS | {"4bit-g32-v2": "4bit-v2-g32", "int4": "4bit", "w8a16": "8bit", "q8": "8bit"},
    "awq": FLOATS | {"gemm": "4bit", "q4": "4bit"},
}  # fmt: skip

UNKNOWN = {
    "gguf": ["Q9_Z", "fp8", "Q4_K_M-g32", "Q4_K_X", "Q4K_M"],
    "litert": ["wi2", "wi4b16", "wi4-b32", "wi8-g32", "int8"],
    "mlx": ["7bit", "4bit-g256", "4bit-", "4bit--g64", "4bit-g64-g64", "mxfp4-g32", "mixed", "bit", ""],
    "onnx": [
        "int5", "int4-g48", "int4-rtn-qdq", "int4-rtn-rtn", "int4-k_quant-asym", "int4-k_quant-rtn",
        "int8-k_quant_mixed", "int4-k", "int4-sym", "int4-channel", "rtn-int4", "f16-g32", "int4--asym", "q5",
    ],
    "openvino": ["int4-g64", "int4-asym-sym", "int8-asym-g64", "int8-channel", "nf4-asym", "mxfp4-g64"],
    "safetensors": ["q4", "int4", "f16-g32"],
    "compressed-tensors": ["w8a16-asym", "w8a8-g32", "fp8-static", "w3a16", "w4a16-g48", "nvfp4a16-g16"],
    "gptq": ["4bit-asym", "3bit", "4bit-v3"],
    "awq": ["8bit", "q8", "4bit-channel"],
}  # fmt: skip

each_target = pytest.mark.parametrize("target", TARGETS)


def encodings(target, name):
    """The names of what a recipe's matrices become."""
    module = TARGETS[target]
    scheme = module._scheme(module.RECIPES.read(name))
    if target == "onnx":
        found = [scheme.encoding, scheme.high, scheme.ends]
    elif target == "mlx":
        found = [scheme.encoding(F16), scheme.encoding(F16, high=True)]
    else:
        found = [scheme.encoding(1024)]
    return " ".join(encoding.name for encoding in found)


@each_target
def test_names_are_those_of_before(target):
    names = BEFORE[target].split()
    assert sorted(TARGETS[target].RECIPES.names()) == sorted(names)
    for name in names:
        forms = {name, name.upper(), name.lower(), name.replace("-", "_"), name.replace("_", "-")}
        assert {find_recipe(target, form) for form in forms} == {name}


@each_target
def test_aliases_mean_what_they_did(target):
    for alias, name in ALIASES[target].items():
        assert find_recipe(target, alias) == find_recipe(target, alias.upper()) == name


@each_target
def test_unknown_names_are_refused_with_a_hint(target):
    for name in UNKNOWN[target]:
        with pytest.raises(UsageError, match=f"{target} has no quantization '{name}'") as caught:
            find_recipe(target, name)
        assert str(caught.value).endswith("phiconv formats lists them all")


@pytest.mark.parametrize(
    ("target", "name", "says"),
    [
        ("gguf", "Q4_K_X", "did you mean Q4_K_S?"),
        ("gguf", "int4", "which is one of onnx; here it would be Q4_K_M"),
        ("gguf", "8bit", "which is one of mlx; here it would be Q8_0"),
        ("gguf", "nf4", "which is one of openvino; here it would be Q4_K_M"),
        ("onnx", "Q4_K_M", "which is one of gguf; here it would be int4"),
        ("onnx", "Q6_K", "which is one of gguf; here it would be int8"),
        ("onnx", "int4-asym-q64", "did you mean int4-asym-g64?"),
        ("mlx", "int8-asym", "which is one of onnx; here it would be 8bit"),
        ("openvino", "4bit", "which is one of mlx; here it would be int4-asym"),
        ("litert", "int8", "which is one of onnx; here it would be wi8"),
        ("onnx", "wi4b64", "which is one of litert; here it would be int4"),
        ("safetensors", "Q4_0", "which is one of gguf; here it would be f16"),
    ],
)
def test_what_somebody_may_have_meant(target, name, says):
    with pytest.raises(UsageError) as caught:
        find_recipe(target, name)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("target", "name", "recipe"),
    [
        *(("gguf", name, "Q4_K_M") for name in ("q4_k_m", "q4-k-m", "Q4KM", "q4km")),
        *(("gguf", name, "F16") for name in ("fp16", "float16", "f16", "Float16")),
        *(("gguf", name, "BF16") for name in ("bfloat16", "bf16")),
        *(("onnx", name, "int4-asym-g64") for name in ("int4asymg64", "INT4_ASYM_G64", "int4-g64-asym")),
        *(("mlx", name, "mixed_3_6") for name in ("mixed-3-6", "mixed36")),
        ("openvino", "int8sym", "int8-sym"),
    ],
)
def test_spellings_of_other_tools(target, name, recipe):
    assert find_recipe(target, name) == recipe


@pytest.mark.parametrize("target", ENCODINGS)
def test_encodings_are_those_of_before(target):
    for name, expected in ENCODINGS[target].items():
        assert encodings(target, name) == expected, name
        usual = f"g{TARGETS[target].RECIPES.read(name).group}"
        for size in ("g16", "g32", "g64", "g128", "g256"):
            if f"{name}-{size}" in BEFORE[target].split():
                assert encodings(target, f"{name}-{size}") == expected.replace(usual, size)


@each_target
def test_single_tensors_take_what_is_not_mixed(target):
    names = BEFORE[target].split() if target != "gguf" else ["Q4_K", "q4-k", "MXFP4", "NVFP4", "f64"]
    mixed = {name for name in names if "mixed" in name}
    for name in set(names) - mixed:
        assert TARGETS[target].type_of(name) == TARGETS[target].type_of(name.swapcase())
    for name in {*mixed, "q4", "Q4_K_M"}:
        with pytest.raises(UsageError, match=f"no tensor can be .* '{name}'; .*phiconv formats"):
            TARGETS[target].type_of(name)


def test_a_name_is_taken_apart():
    family = Family(("a", "b"), (("", "x", "x_y"), ("p", "q")), (32, 64, 0))
    assert str(family) == "(a|b)[-x|-x_y](-p|-q)[-gN|-channel]"
    assert len(family.names()) == len(set(family.names())) == 2 * 3 * 2 * 3
    for words in itertools.permutations(["X-y", "Q", "g64"]):
        name = family.read("-".join(["B", *words]))
        assert (name.spelling, name.stem, name.variants, name.group) == ("b-x_y-q-g64", "b", ("x_y", "q"), 64)
    assert family.read("a-p-g32").spelling == "a-p"
    assert family.read("a-p").group == 32
    assert family.read("a-p-channel").group == 0
    assert family.read("a") is None  # p or q is needed


def test_a_name_belongs_to_the_first_family_that_it_fits():
    grammar = Grammar((Family(("a",)), Family(("a_b", "a"), (("x",),))), {"A-Z": "a_b-x"})
    assert [grammar.read(name).spelling for name in ("a", "a-x", "a-b-x", "a_z")] == [
        "a",
        "a-x",
        "a_b-x",
        "a_b-x",
    ]
    with pytest.raises(UsageError, match=r"^no such 'b'; phiconv formats lists them all$"):
        grammar.read("b", "no such")
    with pytest.raises(UsageError, match=r"^no such 'a_b-y'; did you mean a_b-x\? "):
        grammar.read("a_b-y", "no such")
