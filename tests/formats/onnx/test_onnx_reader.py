"""An ONNX folder as a source: what was written is read back, in phiconv's form and in the model builder's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import phiconv
from builder_folder import rewrite
from memory_rows import in_memory
from paths import FIXTURES
from phiconv import ir
from phiconv.ir.rope import Rope
from phiconv.recipes.onnx import RECIPES
from phiconv_formats.onnx.graph_reader import read_graph
from phiconv_formats.onnx.rotary import find_theta, rotary_tables
from phiconv_formats.shared.files import InputFile

KINDS = [
    "phi",
    "phi2",
    "phi3-gqa",
    "phi3-su",
    "phi4",
    "phi4mini",
    "phi4mini-transformers5",
    "phimoe-stacked",
    "llama3",
    "qwen3",
]
FLOATS = ("f32", "f16", "bf16")
# Not every block size with every method: they differ in sizes alone.
LEFT_OUT = ("-g64", "-g128", "a16")
QUANTIZED = [name for name in RECIPES.names() if name not in FLOATS and not name.endswith(LEFT_OUT)]


def convert(source, folder, quant, *, repack_only=False, **options):
    choices = phiconv.Choices(**options)
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=choices, repack_only=repack_only)


def same_weights(a, b):
    assert a.tensors.keys() == b.tensors.keys()
    for role, tensor in a.tensors.items():
        assert b.tensors[role].shape == tensor.shape, role
        np.testing.assert_array_equal(phiconv.read(b.tensors[role]), phiconv.read(tensor), str(role))


@pytest.mark.parametrize("kind", [*KINDS, "phimoe-tiny", "tiny-phi3"])
def test_unquantized_folder_is_the_model_again(tmp_path, model_folder, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    first, second = phiconv.open_model(model_folder(kind)), phiconv.open_model(tmp_path / "m")
    assert second.format == "onnx"
    assert second.hyperparameters == first.hyperparameters
    assert second.tokenizer == first.tokenizer
    same_weights(first, second)


def arrays_of(folder):
    """The tensors of a folder by the names in its graph, read by the onnx package."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    return graph, {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def dequantized(node, arrays, first, second, third):
    """What a node multiplies with, by the formula of ONNX Runtime's documentation."""
    sizes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    bits = sizes.get("bits") or sizes["expert_weight_bits"]
    names = [node.input[i] if i < len(node.input) else "" for i in (first, second, third)]
    codes, scales = (arrays[name] for name in names[:2])
    blocks = scales.shape[-1]

    def numbers(packed):
        parts = [packed & 15, packed >> 4] if bits == 4 else [packed]
        return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)

    values = numbers(codes.reshape(*scales.shape, -1)).astype(np.float32)
    zeros = numbers(arrays[names[2]])[..., :blocks, None] if names[2] else np.float32(1 << (bits - 1))
    result = (values - zeros) * scales[..., None].astype(np.float32)
    return result.reshape(*scales.shape[:-1], -1)


INPUTS = {"MatMulNBits": [(1, 2, 3)], "GatherBlockQuantized": [(0, 2, 3)], "QMoE": [(2, 3, 11), (5, 6, 12)]}


def check_matrices(folder):
    """Compares every quantized matrix of a folder with the formula; returns how many there are."""
    graph, arrays = arrays_of(folder)
    stored, count = phiconv.open_model(folder).stored, 0
    for node in graph.node:
        for inputs in INPUTS.get(node.op_type, ()):
            expected = dequantized(node, arrays, *inputs)
            name = node.input[inputs[0]].partition(".weight")[0].removesuffix(".MatMul") + ".weight"
            found = phiconv.read(stored[name]).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected, name)
            count += 1
    for name in (n for n in arrays if n.endswith(("_Q4", "_Q8"))):
        matrix = stored[name[:-3].replace(".MatMul", "")]
        if arrays[name].shape == matrix.shape:  # for ONNX's own operators
            np.testing.assert_array_equal(phiconv.read(matrix), standard(arrays, name), name)
            count += 1
    return count


def standard(arrays, name):
    """What DequantizeLinear makes of codes, by the formula of ONNX's documentation."""
    scales, zeros = arrays[f"{name[:-3]}_scales"], arrays.get(f"{name[:-3]}_zero_points", np.float32(0))
    codes = arrays[name].astype(np.float32).reshape(*scales.shape, -1)
    numbers = codes - (zeros.astype(np.float32)[..., None] if np.ndim(zeros) else zeros)
    return (numbers * scales[..., None].astype(np.float32)).reshape(arrays[name].shape)


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_matrix_is_what_its_tensors_say(tmp_path, model_folder, recipe):
    convert(model_folder("phi3-gqa"), tmp_path / "m", recipe)
    assert check_matrices(tmp_path / "m") > 10


@pytest.mark.parametrize("target", ["cuda", "dml", "webgpu"])
@pytest.mark.parametrize("recipe", ["int4-asym", "int8"])
def test_matrix_of_another_target(tmp_path, model_folder, recipe, target):
    convert(model_folder("phi2"), tmp_path / "m", recipe, target=target)
    assert check_matrices(tmp_path / "m") > 8


@pytest.mark.parametrize("recipe", ["int4", "int4-asym-g64", "int8", "int8-asym"])
def test_experts_are_what_their_tensors_say(tmp_path, model_folder, recipe):
    convert(model_folder("phimoe"), tmp_path / "m", recipe)
    assert check_matrices(tmp_path / "m") > 8


@pytest.mark.parametrize(
    "recipe", ["int4", "int8-asym-g64", "int4-qdq", "int8-qdq-asym", "f16", "bf16", "f32"]
)
@pytest.mark.parametrize("kind", ["phi", "phi4mini", "phimoe"])
def test_folder_for_transformers_has_the_dequantized_weights(tmp_path, model_folder, kind, recipe):
    convert(model_folder(kind), tmp_path / "m", recipe)
    phiconv.convert(tmp_path / "m", tmp_path / "s", to="safetensors", quant="f32")
    same_weights(phiconv.open_model(tmp_path / "m"), phiconv.open_model(tmp_path / "s"))


@pytest.mark.parametrize("recipe", ["int4-asym", "int8", "int4-k_quant_mixed", "int4-qdq", "int8-qdq", "f16"])
@pytest.mark.parametrize("kind", ["phi3", "phimoe"])
def test_the_same_recipe_again_copies_every_byte(tmp_path, model_folder, kind, recipe):
    convert(model_folder(kind), tmp_path / "a", recipe)
    convert(tmp_path / "a", tmp_path / "b", recipe, repack_only=True)
    a, b = (tmp_path / n / "model.onnx.data" for n in "ab")
    assert a.read_bytes() == b.read_bytes()
    first, second = (json.loads((tmp_path / n / "config.json").read_text()) for n in "ab")
    assert first == second


def test_quantizing_again_is_refused_unless_it_is_allowed(tmp_path):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "a", "int8")
    with pytest.raises(phiconv.UnsupportedModelError, match="--allow-requantize"):
        convert(tmp_path / "a", tmp_path / "b", "int4")


def test_the_largest_graph_is_not_too_large(tmp_path, make_model):
    """As many layers and experts as Phi-3.5-MoE has, each expert by itself, with zero points."""
    folder = make_model(tmp_path / "s", "phimoe", num_hidden_layers=32, num_local_experts=16)
    plan = phiconv.plan(folder, tmp_path / "m", to="onnx", quant="int4-qdq-asym")
    file = next(file for file in plan.package.files if file.name == "model.onnx")
    (tmp_path / "x.onnx").write_bytes(b"".join(data for _, data in file.chunks))
    assert len(read_graph(InputFile(tmp_path / "x.onnx")).nodes) > 10_000


# ------------------------------------------------------------------------------------------------ round trips


def gguf(source, target, quant, **options):
    choices = phiconv.Choices(pure=True)
    return phiconv.convert(source, target, quant=quant, choices=choices, **options)


@pytest.mark.parametrize(("quant", "recipe"), [("Q4_0", "int4"), ("Q8_0", "int8")])
@pytest.mark.parametrize("kind", ["phi2", "tiny-phi3", "tiny-phi4mini", "phimoe"])
def test_gguf_to_onnx_and_back_keeps_every_block(tmp_path, model_folder, kind, quant, recipe):
    gguf(model_folder(kind), tmp_path / "a.gguf", quant)
    there = convert(tmp_path / "a.gguf", tmp_path / "m", recipe, repack_only=True)
    back = gguf(tmp_path / "m", tmp_path / "b.gguf", quant, repack_only=True)
    for made in (there, back):
        assert {t.action for t in made.plan.tensors} <= {"copied", "repacked"}
    a, b = (phiconv.open_model(tmp_path / f"{n}.gguf").stored for n in "ab")
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert b[name].encoding == tensor.encoding
        first, second = (t.read(0, t.rows) for t in (tensor, b[name]))
        if isinstance(first, ir.Blocks):
            np.testing.assert_array_equal(second.codes, first.codes, name)
            first, second = first.scales, second.scales
        assert first.tobytes() == second.tobytes(), name


def test_scales_of_other_models_are_not_taken_for_float16(tmp_path, model_folder):
    convert(model_folder("phi3"), tmp_path / "m", "int4")
    with pytest.raises(phiconv.UnsupportedModelError, match="--allow-requantize"):
        gguf(tmp_path / "m", tmp_path / "b.gguf", "Q4_0")


def test_scales_that_are_not_what_the_file_says(tmp_path, model_folder):
    gguf(model_folder("phi3"), tmp_path / "a.gguf", "Q4_0")
    convert(tmp_path / "a.gguf", tmp_path / "m", "int4")
    graph = onnx.load(str(tmp_path / "m/model.onnx"), load_external_data=False).graph
    scales = next(
        t for t in graph.initializer if t.name == "model.layers.0.mlp.down_proj.MatMul.weight_scales"
    )
    offset = next(int(e.value) for e in scales.external_data if e.key == "offset")
    with (tmp_path / "m/model.onnx.data").open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(1.0001).tobytes())
    with pytest.raises(phiconv.MalformedFileError, match="its scales are f16 numbers"):
        gguf(tmp_path / "m", tmp_path / "b.gguf", "Q4_0")


# -------------------------------------------------------------------------------------- the builder's folders


@pytest.mark.parametrize(
    ("kind", "recipe", "form"),
    [
        ("phi", "f32", {}),
        ("phi2", "int4-asym", {"rtn_names": True}),
        ("phi2", "int4", {"qdq": True}),
        ("phi3", "f16", {}),
        ("phi3", "int4-asym", {"qdq": True}),
        ("phi4", "int8", {"rtn_names": True}),
        ("phi4", "int4", {}),
    ],
)
def test_builder_folder_is_read_without_config_json(tmp_path, model_folder, kind, recipe, form):
    convert(model_folder(kind), tmp_path / "a", recipe)
    rewrite(tmp_path / "a", tmp_path / "b", **form)
    a, b = (phiconv.open_model(tmp_path / n) for n in "ab")
    same_weights(a, b)
    kept, found = a.hyperparameters, b.hyperparameters
    fields = set(kept.__slots__) - {"rope"}
    assert {f: getattr(found, f) for f in fields} == {f: getattr(kept, f) for f in fields}
    assert (found.rope.theta, found.rope.dimensions) == (kept.rope.theta, kept.rope.dimensions)
    assert b.tokenizer.tokens == a.tokenizer.tokens
    assert b.tokenizer.eos_ids == a.tokenizer.eos_ids


@pytest.mark.parametrize("recipe", ["int4", "int8", "f32"])
def test_one_matrix_at_both_ends(tmp_path, recipe):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "a", recipe, match_runtime=True)
    rewrite(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/config.json").write_bytes((tmp_path / "a/config.json").read_bytes())
    a, b = (phiconv.open_model(tmp_path / n) for n in "ab")
    assert b.hyperparameters == a.hyperparameters
    assert b.hyperparameters.tie_word_embeddings
    same_weights(a, b)


def test_two_matrices_win_over_a_configuration_that_ties_them(tmp_path, model_folder):
    convert(model_folder("phi3"), tmp_path / "m", "int4")
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    model = phiconv.open_model(tmp_path / "m")
    assert not model.hyperparameters.tie_word_embeddings


@pytest.mark.parametrize(("kind", "says"), [("phi4mini", "rotary embedding"), ("phimoe", "a model of type")])
def test_what_the_files_do_not_say_is_asked_for(tmp_path, refused, model_folder, kind, says):
    convert(model_folder(kind), tmp_path / "m", "int4")
    (tmp_path / "m/config.json").unlink()
    error = refused(phiconv.open_model, tmp_path / "m", says=says, kind=phiconv.MissingFileError)
    assert "config.json" in error.hint


def test_file_by_itself_is_plain_tensors(tmp_path, model_folder):
    convert(model_folder("phi3"), tmp_path / "m", "int4")
    for name in ("config.json", "genai_config.json"):
        (tmp_path / "m" / name).unlink()
    model = phiconv.open_model(tmp_path / "m/model.onnx")
    assert model.architecture is None
    assert model.stored["model.layers.0.attn.qkv_proj.weight"].encoding.bits == 4


@pytest.mark.parametrize("theta", [10000.0, 10000.5, 250000.0, 1e6, 5e6])
@pytest.mark.parametrize(("dimensions", "rows"), [(32, 512), (96, 4096), (128, 16384)])
def test_theta_of_tables(theta, dimensions, rows):
    rope = Rope(dimensions, theta, rows)
    (_, cos), (_, sin) = rotary_tables(rope, rows)
    assert find_theta(cos, sin) == theta


class Half:
    """A table in float16 (an `ir.Source`)."""

    encoding, label = ir.F16, "table"

    def __init__(self, table):
        self.table = table

    def read(self, start, stop):
        return self.table.read(start, stop).astype(np.float16)

    def changed(self):
        return False


@pytest.mark.parametrize("theta", [10000.0, 250000.0])
def test_theta_of_tables_in_float16(theta):
    tables = (table for _, table in rotary_tables(Rope(96, theta, 4096), 4096))
    cos, sin = (ir.Tensor.of(Half(table), table.shape) for table in tables)
    assert find_theta(cos, sin) == theta


def test_tables_with_a_signaling_nan_have_no_theta():
    """NumPy warns when it converts one."""
    table = np.full((64, 8), 0x7FA0_0001, np.uint32).view(np.float32)
    tables = [in_memory(table) for _ in range(2)]
    assert find_theta(*tables) is None


def test_scaled_tables_have_no_theta():
    factors = tuple(1 + i / 10 for i in range(48))
    rope = Rope(96, 1e4, 512, factors, tuple(2 * f for f in factors), 1.1, 1.1)
    tables = dict(rotary_tables(rope, 2048))
    for kind in ("small", "large"):
        assert find_theta(tables[f"cos_cache_{kind}"], tables[f"sin_cache_{kind}"]) is None
    plain = dict(rotary_tables(Rope(96, 1e4, 512), 512))
    assert find_theta(plain["sin_cache"], plain["cos_cache"]) is None


# ---------------------------------------------------------------------------------------- what the API does


def test_compare_evaluate_generate(tmp_path):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int8")
    compared = phiconv.compare(FIXTURES / "tiny-phi3", tmp_path / "m")
    assert compared
    text = (FIXTURES / "test.txt").read_text()[:600]
    paths = (FIXTURES / "tiny-phi3", tmp_path / "m")
    first, second = (phiconv.evaluate(path, text, context=64) for path in paths)
    assert abs(first.perplexity / second.perplexity - 1) < 0.02
    assert len(list(phiconv.generate(tmp_path / "m", [1, 5, 9], 2))) == 2


def test_columns_are_read_in_any_range(tmp_path, model_folder):
    convert(model_folder("phi3"), tmp_path / "a", "int4-asym")
    rewrite(tmp_path / "a", tmp_path / "b", qdq=True)
    a, b = (phiconv.open_model(tmp_path / n).stored["model.layers.0.attn.qkv_proj.weight"] for n in "ab")
    for start, stop in itertools.product((0, 1, 6, 7), (8, 9, 30, 31)):
        np.testing.assert_array_equal(phiconv.read(b, start, stop), phiconv.read(a, start, stop))
