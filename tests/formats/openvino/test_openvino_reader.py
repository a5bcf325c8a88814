"""An OpenVINO model as a source: what was written is read back, number for number and byte for byte."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.recipes import override
from phiconv_formats.openvino.packing import encoding_of, pack, parts_of, unpack

KINDS = [
    "phi",
    "phi2",
    "phi3",
    "phi4mini",
    "phi4mini-transformers5",
    "phimoe",
    "phimoe-stacked",
    "llama-bias",
    "qwen3",
]
RECIPES = [
    *("int4-asym", "int4-asym-g64", "int4-asym-g32", "int4-asym-channel", "int8-asym"),
    *("int4-sym", "int4-sym-g64", "int4-sym-g32", "int4-sym-channel", "int8-sym"),
    *("nf4", "nf4-g64", "nf4-g32", "mxfp4", "mxfp8", "f16", "bf16", "f32"),
]


def convert(source, target, quant, **options):
    return phiconv.convert(
        source, target, to="openvino", quant=quant, choices=phiconv.Choices(**options)
    ).plan


def weights_that_were_written(plan):
    """The weights that each stream of a conversion to OpenVINO stands for, by its name."""
    result = {}
    for stream in plan.package.streams:
        rows = decode(stream.tensor.read(0, stream.tensor.rows), stream.tensor.columns)
        result[stream.name] = decode(encode(rows, stream.encoding), stream.tensor.columns)
    return result


def check(folder, plan, tmp_path):
    """What is read is what was written, and the same recipe again writes the same bytes."""
    choices = phiconv.Choices(allow_requantize=False)
    again = phiconv.convert(
        folder, tmp_path / "again", to="openvino", quant=plan.recipe, choices=choices, repack_only=True
    )
    for name in ("openvino_model.bin", "config.json", "tokenizer.json", "openvino_tokenizer.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert {t.action for t in again.plan.tensors} == {"copied"}
    expected = weights_that_were_written(plan)
    phiconv.convert(folder, tmp_path / "f32", to="safetensors", quant="f32")
    found = {s.name: s.tensor for s in phiconv.plan(tmp_path / "f32", "x.xml", quant="f32").package.streams}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(0, tensor.rows), expected[name], name)


@pytest.mark.parametrize("quant", RECIPES)
def test_every_recipe_is_read_back(tmp_path, model_folder, quant):
    plan = convert(model_folder("phi3-gqa"), tmp_path / "m", quant)
    check(tmp_path / "m", plan, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_back(tmp_path, model_folder, kind):
    plan = convert(model_folder(kind), tmp_path / "m", "int4-asym-g32")
    check(tmp_path / "m", plan, tmp_path)
    first, second = plan.model, phiconv.open_model(tmp_path / "m")
    assert second.format == "openvino"
    assert second.hyperparameters == first.hyperparameters
    assert second.tensors.keys() == first.tensors.keys()
    assert second.tokenizer == first.tokenizer


@pytest.mark.parametrize("quant", ["int4-sym-channel", "mxfp4", "int8-sym"])
def test_experts_are_read_back(tmp_path, model_folder, quant):
    plan = convert(model_folder("phimoe-tiny"), tmp_path / "m", quant)
    check(tmp_path / "m", plan, tmp_path)


def test_mixes_are_read_back(tmp_path):
    for n, options in enumerate(({"ratio": 0.5}, {"all_layers": True})):
        plan = convert(FIXTURES / "tiny-phi4mini", tmp_path / f"{n}", "int4-asym-g32", **options)
        expected = weights_that_were_written(plan)
        for stream in phiconv.plan(tmp_path / f"{n}", "x.xml", quant="f32").package.streams:
            found = decode(stream.tensor.read(0, stream.tensor.rows), stream.tensor.columns)
            np.testing.assert_array_equal(found, expected[stream.name], stream.name)


def test_a_bare_document_is_a_file_of_tensors(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.xml", quant="f16")
    model = phiconv.open_model(tmp_path / "x.xml")
    assert model.architecture is None
    assert "model.layers.0.self_attn.qkv_proj.weight" in model.stored
    shutil.copy(FIXTURES / "tiny-phi3" / "config.json", tmp_path)
    assert phiconv.open_model(tmp_path / "x.xml").architecture == "phi3"


def test_rows_are_read_where_they_are_wanted(tmp_path, model_folder):
    """Also where a row begins inside a byte, as zero points of an odd number of groups do."""
    plan = convert(model_folder("phi3"), tmp_path / "m", "int4-asym-g32")  # 96 columns are 3 groups
    (down,) = (s for s in plan.package.streams if s.name == "model.layers.1.mlp.down_proj.weight")
    assert down.tensor.columns == 96
    expected = weights_that_were_written(plan)[down.name]
    tensor = phiconv.open_model(tmp_path / "m").stored[down.name]
    for start, stop in ((0, 64), (1, 2), (1, 64), (7, 10), (8, 9), (63, 64), (5, 5), (0, 0)):
        np.testing.assert_array_equal(phiconv.read(tensor, start, stop), expected[start:stop])


def test_the_original_weights_come_first(tmp_path, model_folder):
    convert(model_folder("phi3"), tmp_path / "m", "int8-asym")
    shutil.copy(model_folder("phi3") / "model.safetensors", tmp_path / "m")
    assert phiconv.open_model(tmp_path / "m").format == "safetensors"


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize(
    "encoding",
    [
        *(
            ir.openvino_affine(bits, 32, symmetric=symmetric)
            for bits in (4, 8)
            for symmetric in (True, False)
        ),
        *(ir.openvino_nf4(64), ir.OPENVINO_MXFP4, ir.OPENVINO_MXFP8),
    ],
    ids=lambda e: getattr(e, "name", e),
)
def test_unpacking_is_the_inverse_of_packing(encoding, zeros):
    weights = np.random.default_rng(zeros).normal(size=(zeros, encoding.block_size)).astype(np.float32)
    blocks = encode(weights, encoding)
    kinds = [p.type for p in parts_of(encoding, weights.shape)]
    found = encoding_of(kinds[0], encoding.block_size, kinds[1], has_zero_point=len(kinds) == 3)
    assert found == encoding
    again = unpack(found, *pack(blocks))
    assert again.codes.dtype == blocks.codes.dtype
    assert again.codes.flags.c_contiguous
    np.testing.assert_array_equal(again.codes, blocks.codes)
    np.testing.assert_array_equal(again.scales, blocks.scales)
    if blocks.zero_points is not None:
        np.testing.assert_array_equal(again.zero_points, blocks.zero_points)


def test_8_bit_floats():
    """A code that is no number makes a block that is refused."""
    encoding = encoding_of("f8e4m3", 32, "f8e8m0", has_zero_point=False)
    codes = np.array([[0x38, 0x40, 0xB8, 0x7E] * 8, [0x38, 0x7F, 0, 0] * 8, [1, 0x80, 8, 0xFF] * 8], np.uint8)
    blocks = unpack(encoding, codes.reshape(-1), np.array([128, 127, 127], np.uint8))
    np.testing.assert_array_equal(decode(blocks, 32)[0, :4], [2, 4, -2, 896])
    assert np.isnan(blocks.scales).tolist() == [False, True, True]


# ------------------------------------------------------------------------------------------ other converters


def edit(folder, change):
    """Changes the document of a folder."""
    tree = ET.parse(folder / "openvino_model.xml")  # noqa: S314 - our own
    change(tree.getroot())
    tree.write(folder / "openvino_model.xml")


def test_names_of_modules_stand_for_those_of_constants(tmp_path, model_folder):
    """Other converters fold norms into constants without a name, and name operations after their modules."""
    plan = convert(model_folder("phi2"), tmp_path / "m", "int4-asym-g32")
    expected = weights_that_were_written(plan)

    def rename(net):
        layers = {layer.get("id"): layer for layer in net.iterfind("layers/layer")}
        users = {edge.get("from-layer"): layers[edge.get("to-layer")] for edge in net.iterfind("edges/edge")}
        for number, layer in layers.items():
            module, _, part = layer.get("name").rpartition(".")
            if layer.get("type") != "Const" or part not in ("weight", "bias"):
                continue
            user = users[number]
            if user.get("type") in ("Multiply", "Add"):
                layer.set("name", "Constant_1")
                user.set("name", f"__module.{module}/aten::mul/{user.get('type')}_1")
            else:
                layer.set("name", f"self.{module}._openvino_orig_weight")

    edit(tmp_path / "m", rename)
    model = phiconv.open_model(tmp_path / "m")
    assert model.tensors.keys() == plan.model.tensors.keys()
    for stream in phiconv.plan(tmp_path / "m", "x.xml", quant="f32").package.streams:
        found = decode(stream.tensor.read(0, stream.tensor.rows), stream.tensor.columns)
        np.testing.assert_array_equal(found, expected[stream.name], stream.name)


def test_scales_of_float32(tmp_path, model_folder):
    """Some versions of NNCF keep the scales of float32 weights."""
    convert(model_folder("phi3"), tmp_path / "m", "int8-sym")
    before = phiconv.read(phiconv.open_model(tmp_path / "m").tensors["token_embedding", None, "weight"])
    binary = tmp_path / "m" / "openvino_model.bin"

    def widen(net):
        for data in net.iterfind("layers/layer[@name='model.embed_tokens.weight/scale']/data"):
            offset, size = int(data.get("offset")), int(data.get("size"))
            content = binary.read_bytes()
            scales = np.frombuffer(content[offset : offset + size], "<f2").astype("<f4").tobytes()
            data.attrib.update(element_type="f32", offset=str(len(content)), size=str(len(scales)))
            binary.write_bytes(content + scales)

    edit(tmp_path / "m", widen)
    tensor = phiconv.open_model(tmp_path / "m").tensors["token_embedding", None, "weight"]
    assert tensor.encoding.scale_type == ir.F32
    np.testing.assert_array_equal(phiconv.read(tensor), before)


# -------------------------------------------------------------------------------------------- other runtimes

HELD = [
    ("int4-sym-g64", "gguf", "Q4_0", {"pure": True}),
    ("int8-sym", "gguf", "Q8_0", {}),
    ("mxfp4", "mlx", "mxfp4", {}),
    ("mxfp8", "mlx", "mxfp8", {}),
    ("int4-asym-g64", "mlx", "4bit", {"dtype": "f32"}),
    ("int4-asym", "mlx", "4bit-g32", {"dtype": "f32"}),
    ("int4-sym", "mlx", "4bit", {"dtype": "f16"}),
    ("int4-asym-g32", "onnx", "int4-asym", {}),
]


@pytest.mark.parametrize(("stored", "to", "quant", "options"), HELD)
def test_blocks_that_another_runtime_can_hold(tmp_path, stored, to, quant, options):
    ends = {"all_layers": True} if "4" in stored else {}
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", stored, **ends)
    result = phiconv.convert(
        tmp_path / "m", tmp_path / "x", to=to, quant=quant, choices=phiconv.Choices(**options)
    )
    blocks = [t for t in result.plan.tensors if not isinstance(t.stored, ir.FloatEncoding)]
    assert len(blocks) >= 17
    assert {t.action for t in blocks} == {"repacked"}
    path = result.files[0] if to == "gguf" else tmp_path / "x"
    first, second = (phiconv.open_model(p).tensors for p in (tmp_path / "m", path))
    for role, tensor in first.items():
        if not isinstance(tensor.encoding, ir.FloatEncoding):
            np.testing.assert_array_equal(phiconv.read(second[role]), phiconv.read(tensor), str(role))


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_blocks_of_llama_cpp_are_taken_over(tmp_path, name):
    """Those of embedding and head, too, though the recipe has 8 bits for them."""
    pure, first, last = phiconv.Choices(pure=True), tmp_path / "a.gguf", tmp_path / "b.gguf"
    phiconv.convert(FIXTURES / name, first, quant="Q4_0", choices=pure)
    phiconv.convert(first, tmp_path / "m", to="openvino", quant="int4-sym-g32", repack_only=True)
    phiconv.convert(tmp_path / "m", last, quant="Q4_0", repack_only=True)
    stored, again = (phiconv.open_model(path).stored for path in (first, last))
    assert stored.keys() == again.keys()
    for tensor, weights in stored.items():
        assert again[tensor].encoding == weights.encoding
        np.testing.assert_array_equal(phiconv.read(again[tensor]), phiconv.read(weights), tensor)


def test_8_bit_floats_of_mlx_are_taken_over(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx", quant="mxfp8")
    phiconv.convert(tmp_path / "m", tmp_path / "x", to="openvino", quant="mxfp8", repack_only=True)
    first, second = (phiconv.open_model(tmp_path / name).tensors for name in "mx")
    assert first["output", None, "weight"].encoding == ir.MLX_MXFP8
    for role, tensor in first.items():
        np.testing.assert_array_equal(phiconv.read(second[role]), phiconv.read(tensor), str(role))


def test_what_the_guide_says_of_mlx(tmp_path):
    """A whole folder, its ends of 8 bits included, without a weight changed."""
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "int4-asym")
    choices = phiconv.Choices(dtype="f32", tensor_types=(override("embed_tokens|lm_head=8bit"),))
    phiconv.convert(tmp_path / "m", tmp_path / "x", to="mlx", quant="4bit", choices=choices, repack_only=True)
    first, second = (phiconv.open_model(tmp_path / name).tensors for name in "mx")
    for role, tensor in first.items():
        np.testing.assert_array_equal(phiconv.read(second[role]), phiconv.read(tensor), str(role))


@pytest.mark.parametrize("name", ["Multiply_x", "__module.model.layers.0.mlp.down_proj/awq_mul"])
def test_a_product_that_no_phi_has_is_refused(tmp_path, model_folder, name):
    """As AWQ inserts one: the weights alone would then be another model's."""
    convert(model_folder("phi3"), tmp_path / "m", "f32")
    weights = tmp_path / "m" / "openvino_model.bin"
    end = weights.stat().st_size
    weights.write_bytes(weights.read_bytes() + bytes(256))

    def insert(net):
        layers, edges = net.find("layers"), net.find("edges")
        products = {layer.get("id") for layer in layers if layer.get("type") == "MatMul"}
        edge = [e for e in edges if e.get("to-layer") in products and e.get("to-port") == "0"][2]
        constant = ET.SubElement(layers, "layer", id="90000", name="scale", type="Const")
        ET.SubElement(constant, "data", element_type="f32", shape="1, 1, 64", offset=str(end), size="256")
        ET.SubElement(ET.SubElement(constant, "output"), "port", id="0")
        product = ET.SubElement(layers, "layer", id="90001", name=name, type="Multiply")
        ports = ET.SubElement(product, "input")
        for number in "01":
            ET.SubElement(ports, "port", id=number)
        ET.SubElement(ET.SubElement(product, "output"), "port", id="2")
        source = {key: edge.get(key) for key in ("from-layer", "from-port")}
        ET.SubElement(edges, "edge", {**source, "to-layer": "90001", "to-port": "0"})
        constant_to = {"from-layer": "90000", "from-port": "0", "to-layer": "90001", "to-port": "1"}
        ET.SubElement(edges, "edge", constant_to)
        edge.attrib.update({"from-layer": "90001", "from-port": "2"})

    edit(tmp_path / "m", insert)
    with pytest.raises(phiconv.PhiconvError, match=r"does not have, the first is scale|two constants are"):
        phiconv.open_model(tmp_path / "m")
