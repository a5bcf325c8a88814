"""What the GGUF writer lays out, seen by the independent reader of the `gguf` package, and by our own."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, quants

import phiconv
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv_formats.gguf.reader import open_gguf

U16, U32, I32, F32 = (getattr(GGUFValueType, n) for n in ("UINT16", "UINT32", "INT32", "FLOAT32"))
STRING, ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY
QUANTS = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}


@pytest.fixture
def convert(tmp_path):
    """Converts to a file of a folder of its own; the path of the first file."""
    folder = tmp_path / "output"
    folder.mkdir()

    def run(source, quant, name="model.gguf", **options):
        return phiconv.convert(source, folder / name, quant=quant, force=True, **options).files[0]

    return run


def pairs(path):
    """Metadata by key: type and value."""
    fields = GGUFReader(path).fields.items()
    return {k: (f.types[0], f.contents()) for k, f in fields if not k.startswith("GGUF.")}


def tensors(path):
    """Types and shapes by name, outermost dimension first, as the file's own order."""
    return {
        t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape[::-1])) for t in GGUFReader(path).tensors
    }


# --------------------------------------------------------------------------------------------------- tensors

PHI_LAYER = {
    "attn_k": (64, 64), "attn_norm": (64,), "attn_output": (64, 64), "attn_q": (64, 64), "attn_v": (64, 64),
    "ffn_down": (64, 256), "ffn_up": (256, 64),
}  # fmt: skip
PHI3_LAYER = {
    "attn_norm": (64,), "attn_output": (64, 64), "attn_qkv": (192, 64), "ffn_down": (64, 96),
    "ffn_norm": (64,), "ffn_up": (192, 64),
}  # fmt: skip
PHI4MINI_LAYER = {
    "attn_norm": (128,), "attn_output": (128, 128), "attn_qkv": (256, 128), "ffn_down": (128, 96),
    "ffn_norm": (128,), "ffn_up": (192, 128),
}  # fmt: skip
MOE_LAYER = {
    "attn_k": (32, 64), "attn_norm": (64,), "attn_output": (64, 64), "attn_q": (64, 64), "attn_v": (32, 64),
    "ffn_down_exps": (4, 64, 32), "ffn_gate_exps": (4, 32, 64), "ffn_gate_inp": (4, 64), "ffn_norm": (64,),
    "ffn_up_exps": (4, 32, 64),
}  # fmt: skip
OUTER = {"output": (2112, 64), "output_norm": (64,), "token_embd": (2112, 64)}
FACTORS = {"rope_factors_long": (8,), "rope_factors_short": (8,)}
PHI4MINI_OUTER = {
    "output_norm": (128,), "rope_factors_long": (12,), "rope_factors_short": (12,), "token_embd": (2112, 128),
}  # fmt: skip
LAYOUTS = {
    "phi": (PHI_LAYER, OUTER, {*PHI_LAYER, "output", "output_norm"}),
    "phi3": (PHI3_LAYER, OUTER, set()),
    "phi4mini": (PHI4MINI_LAYER, PHI4MINI_OUTER, set()),
    "phimoe": (
        MOE_LAYER,
        OUTER | FACTORS,
        {"attn_k", "attn_norm", "attn_output", "attn_q", "attn_v", "ffn_norm", "output", "output_norm"},
    ),
}


def expected_tensors(kind, quant):
    """In llama-quantize's order: those of no layer first, then by layer, each by name."""
    layer, outer, biased = LAYOUTS[kind]
    result = {}
    for prefix, entries in (("", outer), ("blk.0.", layer), ("blk.1.", layer)):
        group = {}
        for name, shape in entries.items():
            keep = len(shape) == 1 or name == "ffn_gate_inp"
            group[f"{prefix}{name}.weight"] = ("F32" if keep else quant, shape)
            if name in biased:
                group[f"{prefix}{name}.bias"] = ("F32", shape[:1])
        result |= dict(sorted(group.items()))
    return result


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_names_types_and_shapes(kind, quant, model_folder, convert):
    path = convert(model_folder(kind), quant, choices=phiconv.Choices(pure=True))
    expected = expected_tensors(kind, quant)
    actual = tensors(path)
    assert actual == expected
    assert list(actual) == list(expected)
    assert pairs(path)["general.file_type"] == (U32, FILE_TYPES[quant])


def test_offsets_are_aligned_and_nothing_is_left_over(model_folder, convert):
    path = convert(model_folder("phi4mini"), "Q5_1")
    end = 0
    for tensor in GGUFReader(path).tensors:
        assert tensor.data_offset % 32 == 0
        assert 0 <= tensor.data_offset - end < 32 or end == 0
        end = tensor.data_offset + int(tensor.n_bytes)
    assert path.stat().st_size == -(-end // 32) * 32


def test_plan_tells_the_exact_size(model_folder, tmp_path):
    for quant in QUANTS:
        plan = phiconv.plan(model_folder("phi3"), tmp_path / "x.gguf", quant=quant)
        assert not list(tmp_path.glob("*.gguf"))
        result = phiconv.convert(plan.model, tmp_path / "x.gguf", quant=quant)
        assert [result.size] == [plan.size] == [f.stat().st_size for f in result.files]
        result.files[0].unlink()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_unquantized_weights_are_those_of_the_checkpoint(kind, model_folder, convert):
    model = phiconv.open_model(model_folder(kind))
    values = {t.name: t.data for t in GGUFReader(convert(model, "F32")).tensors}
    names = {"phi3": {"attn_q": ("attn_qkv", 0), "ffn_up": ("ffn_up", 96)}}.get(kind, {})
    for role, tensor in model.tensors.items():
        if role.name in {"attn_output", "ffn_down", "attn_norm", *names} and role.layer == 1:
            name, first = names.get(role.name, (role.name, 0))
            expected = phiconv.read(tensor)
            actual = values[f"blk.1.{name}.{role.part}"]
            np.testing.assert_array_equal(actual[first : first + len(expected)], expected, str(role))


@pytest.mark.parametrize("quant", QUANTS)
def test_our_own_reader_reads_the_same_numbers(quant, model_folder, convert):
    path = convert(model_folder("phimoe"), quant)
    ours = open_gguf(path).tensors
    for tensor in GGUFReader(path).tensors:
        theirs = quants.dequantize(tensor.data, tensor.tensor_type)
        read = phiconv.read(ours[tensor.name])
        np.testing.assert_array_equal(read, theirs.reshape(read.shape))


def test_rows_that_are_not_whole_blocks_become_f16(make_model, tmp_path, convert):
    folder = make_model(tmp_path / "odd", "phi3", intermediate_size=112)
    path = convert(folder, "Q4_0")
    found = {name: kind for name, (kind, _) in tensors(path).items()}
    assert found["blk.0.ffn_down.weight"] == "F16"
    assert found["blk.0.ffn_up.weight"] == found["token_embd.weight"] == "Q4_0"
    assert pairs(path)["general.file_type"] == (U32, 2)


# -------------------------------------------------------------------------------------------------- metadata

KEYS = {
    "phi": {
        "phi2.context_length": (U32, 2048),
        "phi2.embedding_length": (U32, 64),
        "phi2.feed_forward_length": (U32, 256),
        "phi2.block_count": (U32, 2),
        "phi2.attention.head_count": (U32, 2),
        "phi2.attention.head_count_kv": (U32, 2),
        "phi2.attention.layer_norm_epsilon": (F32, 1e-5),
        "phi2.rope.dimension_count": (U32, 16),
    },
    "phi4": {
        "phi3.context_length": (U32, 16384),
        "phi3.rope.scaling.original_context_length": (U32, 16384),
        "phi3.embedding_length": (U32, 64),
        "phi3.feed_forward_length": (U32, 96),
        "phi3.block_count": (U32, 2),
        "phi3.attention.head_count": (U32, 4),
        "phi3.attention.head_count_kv": (U32, 2),
        "phi3.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "phi3.rope.dimension_count": (U32, 16),
        "phi3.rope.freq_base": (F32, 250000.0),
        "phi3.attention.sliding_window": (U32, 0),
    },
    "phi4mini": {
        "phi3.rope.scaling.attn_factor": (F32, (1 + np.log(8) / np.log(512)) ** 0.5),
        "phi3.context_length": (U32, 4096),
        "phi3.rope.scaling.original_context_length": (U32, 512),
        "phi3.embedding_length": (U32, 128),
        "phi3.feed_forward_length": (U32, 96),
        "phi3.block_count": (U32, 2),
        "phi3.attention.head_count": (U32, 4),
        "phi3.attention.head_count_kv": (U32, 2),
        "phi3.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "phi3.rope.dimension_count": (U32, 24),
        "phi3.rope.freq_base": (F32, 10000.0),
        "phi3.attention.sliding_window": (U32, 262144),
    },
    "phimoe-tiny": {
        "phimoe.context_length": (U32, 4096),
        "phimoe.rope.scaling.original_context_length": (U32, 4096),
        "phimoe.embedding_length": (U32, 64),
        "phimoe.feed_forward_length": (U32, 32),
        "phimoe.block_count": (U32, 2),
        "phimoe.attention.head_count": (U32, 4),
        "phimoe.attention.head_count_kv": (U32, 1),
        "phimoe.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "phimoe.rope.dimension_count": (U32, 32),
        "phimoe.rope.freq_base": (F32, 10000.0),
        "phimoe.attention.sliding_window": (U32, 2047),
        "phimoe.expert_used_count": (U32, 2),
        "phimoe.expert_count": (U32, 4),
        "phimoe.attention.key_length": (U32, 32),
        "phimoe.attention.value_length": (U32, 32),
    },
}


@pytest.mark.parametrize("kind", KEYS)
def test_hyperparameters_are_keys(kind, model_folder, convert):
    found = pairs(convert(model_folder(kind), "F16"))
    name = next(iter(KEYS[kind])).split(".")[0]
    assert found["general.architecture"] == (STRING, name)
    assert found["general.type"] == (STRING, "model")
    assert found["general.quantization_version"] == (U32, 2)
    hyperparameters = {k: v for k, v in found.items() if k.startswith(f"{name}.")}
    assert hyperparameters.keys() == KEYS[kind].keys()
    for key, (of_type, value) in KEYS[kind].items():
        assert hyperparameters[key] == (of_type, pytest.approx(value, rel=1e-6)), key
    assert found["tokenizer.ggml.tokens"][0] == ARRAY
    assert len(found["tokenizer.ggml.tokens"][1]) == 2112


def test_mscale_of_the_config_is_the_attention_factor(model_folder, convert):
    found = pairs(convert(model_folder("phimoe"), "F16"))
    assert found["phimoe.rope.scaling.attn_factor"] == (F32, pytest.approx(1.243163121016122))


def test_rope_factors_are_tensors(model_folder, convert, make_models):
    factors = make_models.CONFIGS["phi4mini"]["rope_scaling"]
    data = {t.name: t.data for t in GGUFReader(convert(model_folder("phi4mini"), "Q4_0")).tensors}
    for name in ("long", "short"):
        expected = np.array(factors[f"{name}_factor"], np.float32)
        np.testing.assert_array_equal(data[f"rope_factors_{name}.weight"], expected)


def test_su_gives_the_file_of_longrope(make_model, tmp_path, convert):
    folder = make_model(tmp_path / "model", "phi3-su")
    first = convert(folder, "Q8_0", "su.gguf").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"]["type"] = "longrope"
    (folder / "config.json").write_text(json.dumps(config))
    assert convert(folder, "Q8_0", "longrope.gguf").read_bytes() == first


README = """---
license: mit
license_link: https://example.org/LICENSE
language: [en, fr]
pipeline_tag: text-generation
tags: [nlp, code]
base_model: example/Phi-9-mini
---
# A model
"""


def test_card_and_generation_settings(make_model, tmp_path, convert):
    folder = make_model(tmp_path / "model", "phi3", _name_or_path="example/Phi-9-mini-instruct")
    (folder / "README.md").write_text(README)
    settings = {"temperature": 1, "top_p": 0.95, "top_k": 40, "min_p": None, "eos_token_id": [2048, 2049]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = pairs(convert(folder, "F16"))
    expected = {
        "general.license": (STRING, "mit"),
        "general.license.link": (STRING, "https://example.org/LICENSE"),
        "general.tags": (ARRAY, ["nlp", "code", "text-generation"]),
        "general.languages": (ARRAY, ["en", "fr"]),
        "general.base_model.count": (U32, 1),
        "general.base_model.0.repo_url": (STRING, "https://huggingface.co/example/Phi-9-mini"),
        "general.sampling.temp": (F32, 1.0),
        "general.sampling.top_p": (F32, pytest.approx(0.95)),
        "general.sampling.top_k": (I32, 40),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert not [key for key in found if key.startswith("general.sampling.") and key not in expected]


# ----------------------------------------------------------------------------------------------------- files


def test_split_file(model_folder, convert):
    whole = convert(model_folder("phi3"), "Q8_0", "whole.gguf")
    first = convert(model_folder("phi3"), "Q8_0", "part.gguf", split_max_size=150_000)
    parts = sorted(first.parent.glob("part*.gguf"))
    count = len(parts)
    assert count > 2
    assert [p.name for p in parts] == [f"part-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert first == parts[0]
    names = []
    for number, path in enumerate(parts):
        found = pairs(path)
        assert (found.pop("split.no"), found.pop("split.count")) == ((U16, number), (U16, count))
        assert found.pop("split.tensors.count") == (I32, 15)
        assert found == (pairs(whole) if number == 0 else {})
        readers = GGUFReader(path).tensors
        names += [t.name for t in readers]
        assert len(readers) == 1 or sum(int(t.n_bytes) for t in readers) <= 150_000
    assert names == list(tensors(whole))


def test_our_own_reader_joins_a_split_file(model_folder, convert):
    whole = open_gguf(convert(model_folder("phi3"), "Q4_1", "whole.gguf"))
    split = open_gguf(convert(model_folder("phi3"), "Q4_1", "part.gguf", split_max_size=1))
    assert len(split.files) == len(whole.tensors) == 15
    assert split.metadata == whole.metadata
    assert list(split.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(phiconv.read(split.tensors[name]), phiconv.read(tensor))


@pytest.mark.parametrize("kind", ["phi4mini", "phi3-sharded", "phimoe-stacked"])
def test_bytes_do_not_depend_on_the_number_of_workers(kind, model_folder, convert):
    files = [convert(model_folder(kind), "Q5_0", f"{n}.gguf", jobs=n).read_bytes() for n in (1, 2, 5)]
    # Not forked: this process has threads.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        files.append(convert(model_folder(kind), "Q5_0", "processes.gguf", executor=pool).read_bytes())
    assert files == files[:1] * 4


# --------------------------------------------------------------------------------------------- plain tensors


def numpy_tensors(write_safetensors, arrays, name="plain.safetensors"):
    header, data = {}, b""
    for key, (dtype, array) in arrays.items():
        span = [len(data), len(data) + array.nbytes]
        header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    return write_safetensors(header, data, name)


def test_plain_tensors_keep_their_names(write_safetensors, convert):
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((4, 64)).astype(np.float32)
    cube = rng.standard_normal((2, 3, 33)).astype(np.float16)
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    small = np.arange(5, dtype=np.int32)
    arrays = {
        "z.matrix": ("F32", matrix), "a/cube": ("F16", cube), "ids": ("I64", ids), "small": ("I32", small),
        "bias": ("F16", cube[0, 0]), "half": ("F32", matrix[0]), "scalar": ("F32", np.float32(2.5)),
    }  # fmt: skip
    path = convert(numpy_tensors(write_safetensors, arrays), "Q8_0", choices=phiconv.Choices(plain=True))
    assert tensors(path) == {
        "z.matrix": ("Q8_0", (4, 64)), "a/cube": ("F16", (2, 3, 33)), "ids": ("I64", (2, 3)),
        "small": ("I32", (5,)), "bias": ("F32", (33,)), "half": ("F32", (64,)), "scalar": ("F32", (1,)),
    }  # fmt: skip
    found = {t.name: t.data for t in GGUFReader(path).tensors}
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_array_equal(found["small"], small)
    np.testing.assert_array_equal(found["a/cube"], cube)
    np.testing.assert_array_equal(found["half"], matrix[0])
    np.testing.assert_array_equal(found["scalar"], [2.5])
    expected = quants.quantize(matrix, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found["z.matrix"], expected)
    assert pairs(path) == {"general.quantization_version": (U32, 2), "general.file_type": (U32, 7)}


@pytest.mark.parametrize(
    ("dtype", "array", "says"),
    [
        ("U8", np.zeros((2, 32), np.uint8), "no type for u8"),
        ("BOOL", np.zeros((2, 32), np.bool_), "no type for bool"),
        ("U64", np.zeros((2, 32), np.uint64), "no type for u64"),
        ("F32", np.zeros((1, 1, 1, 1, 32), np.float32), "at most 4 dimensions, not 5"),
        ("F32", np.zeros((0, 32), np.float32), "empty"),
    ],
)
def test_tensors_that_gguf_cannot_hold_are_refused_by_name(dtype, array, says, write_safetensors, tmp_path):
    arrays = {"good": ("F32", np.ones((2, 32), np.float32)), "the.bad\none": (dtype, array)}
    path = numpy_tensors(write_safetensors, arrays)
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        phiconv.convert(path, tmp_path / "x.gguf", quant="F16", choices=phiconv.Choices(plain=True))
    assert "tensor the.bad\\none" in str(caught.value)
    assert not list(tmp_path.glob("*.gguf"))


def test_unknown_names_are_usage_errors(model_folder, tmp_path):
    with pytest.raises(UsageError, match="no quantization 'Q9_9'"):
        phiconv.convert(model_folder("phi3"), tmp_path / "x.gguf", quant="Q9_9")
    with pytest.raises(UsageError, match="gguf"):
        phiconv.convert(model_folder("phi3"), tmp_path / "x.zip")
