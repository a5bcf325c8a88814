"""Without a recipe a quantized file stays as it is, or a note says what becomes of it."""

from __future__ import annotations

import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import UsageError
from phiconv.recipes import override

TINY = FIXTURES / "tiny-phi3"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A GGUF of a recipe."""
    folder = tmp_path_factory.mktemp("quantized")

    def find(recipe, source=TINY):
        path = folder / f"{recipe}.gguf"
        if not path.exists():
            phiconv.convert(source, path, quant=recipe)
        return path

    return find


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "Q4_0", "Q5_K_S", "IQ4_XS"])
def test_a_gguf_is_copied(quantized, tmp_path, recipe):
    source = quantized(recipe)
    result = phiconv.convert(source, tmp_path / "copy.gguf")
    assert result.plan.recipe == recipe
    assert result.plan.package.notes == ()
    assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0"])
def test_a_split_gguf_does_not_grow(quantized, tmp_path, recipe):
    source = quantized(recipe)
    result = phiconv.convert(source, tmp_path / "parts.gguf", split_max_size=1_000_000)
    assert len(result.files) > 2
    assert result.size < source.stat().st_size + 20_000
    parts, whole = (phiconv.open_model(path).stored for path in (result.files[0], source))
    assert parts.keys() == whole.keys()
    for name, tensor in whole.items():
        assert (phiconv.read(parts[name]) == phiconv.read(tensor)).all()
        assert parts[name].encoding == tensor.encoding
    joined = phiconv.convert(result.files[0], tmp_path / "joined.gguf").files[0]
    assert phiconv.open_model(joined).stored.keys() == whole.keys()
    assert abs(joined.stat().st_size - source.stat().st_size) < 1000


def test_a_gguf_that_says_no_recipe(quantized, tmp_path, gguf_without_file_type):
    path = gguf_without_file_type(quantized("Q8_0"), tmp_path / "x.gguf")
    assert phiconv.plan(path, tmp_path / "o.gguf").recipe == "Q8_0"


@pytest.fixture
def gguf_without_file_type():
    """Renames the key, which has as many letters then."""

    def make(source, target):
        target.write_bytes(source.read_bytes().replace(b"general.file_type", b"general.file_typo"))
        return target

    return make


def test_a_type_that_is_asked_for_is_given(quantized, tmp_path):
    choices = phiconv.Choices(tensor_types=(override("ffn_down=f16"),), allow_requantize=True)
    plan = phiconv.plan(quantized("Q8_0"), tmp_path / "o.gguf", choices=choices)
    assert next(t for t in plan.tensors if "ffn_down" in t.name).encoding.name == "f16"
    with pytest.raises(UsageError, match="--dtype means nothing for gguf"):
        phiconv.plan(quantized("Q8_0"), tmp_path / "o.gguf", choices=phiconv.Choices(dtype="f16"))


def test_floats_are_described_by_a_recipe_as_before(tmp_path):
    phiconv.convert(TINY, tmp_path / "f.gguf")
    assert phiconv.plan(tmp_path / "f.gguf", tmp_path / "o.gguf").recipe == "BF16"


@pytest.mark.parametrize("to", ["mlx", "onnx", "openvino", "safetensors"])
def test_a_note_says_what_grows(quantized, tmp_path, to):
    notes = phiconv.plan(quantized("Q4_K_M"), tmp_path / "o", to=to).package.notes
    (note,) = (n for n in notes if "become floats" in n)
    before = sum(
        t.size * t.encoding.bits_per_weight / 8
        for t in phiconv.open_model(quantized("Q4_K_M")).stored.values()
    )
    assert f"instead of {before / 1e6:.1f} MB; {to} has other types" in note
    asked = phiconv.plan(quantized("Q4_K_M"), tmp_path / "o", to=to, quant="f16")
    assert not any("become floats" in n for n in asked.package.notes)


SOURCES = {
    "mlx": ("4bit", "4bit-g32", "mixed_3_6", "mxfp4"),
    "onnx": ("int4", "int8", "int4-asym-g64"),
    "openvino": ("int4", "int4-sym-g32", "int8-sym", "nf4"),
}


@pytest.mark.parametrize(("target", "recipe"), [(t, r) for t, recipes in SOURCES.items() for r in recipes])
def test_a_folder_is_copied(tmp_path, target, recipe):
    phiconv.convert(TINY, tmp_path / "a", to=target, quant=recipe)
    result = phiconv.convert(tmp_path / "a", tmp_path / "b", to=target)
    assert {t.action for t in result.plan.tensors} == {"copied"}
    size = sum(f.stat().st_size for f in (tmp_path / "a").iterdir() if f.name != "receipt.json")
    assert abs(result.size - size) < 2000
    found = phiconv.compare(tmp_path / "a", tmp_path / "b")
    assert found.total.max_error == 0


@pytest.mark.parametrize(
    ("source", "target", "recipe"),
    [
        (("gguf", "Q8_0"), "mlx", "8bit-g32"),
        (("gguf", "Q8_0"), "onnx", "int8"),
        (("gguf", "Q4_1"), "mlx", "4bit-g32"),
        (("gguf", "Q4_0"), "openvino", "int4-sym-g32"),
        (("mlx", "mxfp4"), "gguf", "MXFP4_MOE"),
        (("mlx", "mxfp4"), "openvino", "mxfp4"),
        (("openvino", "int8-sym"), "gguf", "Q8_0"),
        (("openvino", "int4-sym"), "onnx", "int4-g128"),
    ],
)
def test_blocks_that_the_target_has_are_kept(tmp_path, source, target, recipe):
    to, quant = source
    start = tmp_path / ("a.gguf" if to == "gguf" else "a")
    phiconv.convert(TINY, start, to=to, quant=quant)
    result = phiconv.convert(start, tmp_path / ("b.gguf" if target == "gguf" else "b"), to=target)
    assert result.plan.recipe == recipe
    decoded = [t for t in result.plan.tensors if t.action == "dequantized"]
    assert len(decoded) <= 2  # the ends of the model, which the recipe stores otherwise
    assert bool(decoded) == any("become floats" in note for note in result.plan.package.notes)
    total = phiconv.compare(start, result.files[0] if target == "gguf" else tmp_path / "b").total
    assert total.relative_rmse < 1e-3  # what was decoded is rounded to 16 bits in some


def test_what_the_target_has_not_becomes_floats(tmp_path):
    phiconv.convert(TINY, tmp_path / "a", to="mlx", quant="4bit")  # minima of bfloat16 are no zero points
    plan = phiconv.plan(tmp_path / "a", tmp_path / "b.gguf")
    assert plan.recipe == "F32"
    assert any("become floats" in note for note in plan.package.notes)
