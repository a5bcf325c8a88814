"""Folders of models that see: graphs, features, what comes back, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from make_multimodal import picture
from onnx_runtime import features_of, onnx_logits
from phiconv.conversion.source import open_model
from phiconv.forward.encoders import features
from phiconv.forward.interpreter import compute
from phiconv.ir.senses import Picture
from phiconv.perception.pictures import prepare
from references import relative_l2

pytestmark = pytest.mark.runtime

PICTURES = {"wide": (200, 430), "tall": (610, 150), "square": (300, 300)}


@pytest.fixture(scope="module")
def source(make_multimodal, tmp_path_factory):
    return make_multimodal(tmp_path_factory.mktemp("source") / "m", "phi3v", seed=7)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """Folders by recipe."""
    made = {}

    def write(quant, **choices):
        key = (quant, *choices.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("onnx") / "m"
            phiconv.convert(source, folder, to="onnx", quant=quant, choices=phiconv.Choices(**choices))
            made[key] = folder
        return made[key]

    return write


@pytest.fixture(scope="module")
def ready(source):
    senses = open_model(source).senses
    return [prepare(senses, picture(7, *size)) for size in PICTURES.values()]


def test_features_are_numpys(ort, source, written, ready):
    vision = open_model(source).senses.vision
    expected = [features(vision, each) for each in ready]
    for each, own in zip(ready, expected, strict=True):
        assert relative_l2(features_of(ort, written("f32"), [each]), own) < 1e-6
    assert relative_l2(features_of(ort, written("f32"), ready), np.concatenate(expected)) < 1e-6


@pytest.mark.parametrize(("quant", "bound"), [("int4", 0.03), ("int8", 0.03), ("f16", 0.01)])
def test_features_of_smaller_types(ort, source, written, ready, quant, bound):
    expected = np.concatenate([features(open_model(source).senses.vision, each) for each in ready])
    assert relative_l2(features_of(ort, written(quant), ready), expected) < bound


@pytest.mark.parametrize("quant", ["f32", "int4"])
def test_a_text_gets_the_logits_of_the_language_model(ort, source, written, quant):
    ids = np.arange(20, 60)
    alone = onnx_logits(ort, written(quant, text_only=True), ids)[-1:]
    session = ort.InferenceSession(str(written(quant) / "embedding.onnx"))
    feeds = {"input_ids": ids[None], "image_features": np.zeros((0, 64), np.float32)}
    embeddings = session.run(None, feeds)[0]
    assert relative_l2(onnx_logits(ort, written(quant), ids, embeddings), alone) < 1e-6


def test_what_is_in_the_folder(written):
    names = {path.name for path in written("f32").iterdir()}
    assert {"vision.onnx", "embedding.onnx", "text.onnx", "model.onnx.data", "processor_config.json"} <= names
    config = json.loads((written("f32") / "genai_config.json").read_text())["model"]
    assert config["type"] == "phi3v"
    assert {*config["decoder"]["inputs"]} >= {"inputs_embeds", "attention_mask"}
    assert "input_ids" not in config["decoder"]["inputs"]
    files = {config[part]["filename"] for part in ("decoder", "embedding", "vision")}
    assert files <= names
    assert {path.name for path in written("f32", text_only=True).iterdir()} & {"vision.onnx"} == set()


def test_the_text_part_comes_back(source, written, tmp_path):
    for quant in ("f32", "int4"):
        model = open_model(written(quant))
        assert model.left_out
        assert model.senses is None
        phiconv.convert(written(quant), tmp_path / f"{quant}.gguf")
        phiconv.convert(written(quant, text_only=True), tmp_path / f"{quant}-text.gguf")
        found, expected = (phiconv.open_model(tmp_path / f"{quant}{end}.gguf") for end in ("", "-text"))
        assert phiconv.compare(found, expected).total.relative_rmse == 0
    assert phiconv.compare(source, written("f32")).total.relative_rmse == 0


def test_plans_say_the_sizes(source, written, tmp_path):
    plan = phiconv.plan(source, tmp_path / "m", to="onnx", quant="int4")
    sizes = {path.name: file.size for path, file in zip(plan.files, plan.package.files, strict=True)}
    assert sizes == {name: (written("int4") / name).stat().st_size for name in sizes}
    matrices = [t for t in plan.tensors if t.name.startswith("vision.layers") and len(t.shape) > 1]
    assert len(matrices) == 6
    assert {t.encoding.bits for t in matrices} == {8}


@pytest.mark.parametrize("choice", [{"target": "qnn"}, {"layout": "transformers.js"}])
def test_where_only_the_text_goes(source, tmp_path, choice):
    plan = phiconv.plan(source, tmp_path / "m", to="onnx", quant="int8", choices=phiconv.Choices(**choice))
    assert not [t for t in plan.tensors if t.name.startswith("vision.")]
    assert any("text part" in note for note in plan.package.notes)


@pytest.fixture(scope="module")
def genai():
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


def answer(genai, folder, prompt, paths, count):
    """Ids of a prompt, its pixels as GenAI makes them, the logits of the last id, the tokens after it."""
    model = genai.Model(str(folder))
    inputs = model.create_multimodal_processor()(prompt, images=genai.Images.open(*paths) if paths else None)
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=4096 if len(paths) < 2 else 8000, do_sample=False)
    generator = genai.Generator(model, options)
    generator.set_inputs(inputs)
    generator.generate_next_token()
    ids, logits = np.array(generator.get_sequence(0)), generator.get_output("logits")[0, -1]
    for _ in range(count - 1):
        generator.generate_next_token()
    tokens = [int(i) for i in generator.get_sequence(0)[len(ids) - 1 :]]
    pixels = [inputs[name].as_numpy() for name in ("pixel_values", "image_sizes")] if paths else None
    return ids[:-1], pixels, logits, tokens


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n", ["wide"]),
        ("<|image_1|>\nand\n<|image_2|>\n", ["tall", "square"]),
        ("Hello there", []),
    ],
)
def test_genai_answers_as_numpy_does(genai, make_multimodal, tmp_path, prompt, names):
    """With the pixels that its own processor makes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    source = make_multimodal(tmp_path / "m", "phi3v", seed=7, max_position_embeddings=8192)
    phiconv.convert(source, tmp_path / "onnx", to="onnx", quant="f32")
    paths = [str(tmp_path / f"{name}.png") for name in names]
    for name, path in zip(names, paths, strict=True):
        image.fromarray(picture(7, *PICTURES[name])).save(path)
    ids, made, logits, tokens = answer(genai, tmp_path / "onnx", prompt, paths, 4)
    model, found = open_model(source), None
    if made is not None:
        grids = [(int(height) // 336, int(width) // 336) for height, width in made[1]]
        ready = [Picture(x[: 1 + h * w], (h, w)) for x, (h, w) in zip(made[0], grids, strict=True)]
        found = np.concatenate([features(model.senses.vision, each) for each in ready])
        assert (ids < 0).sum() == len(found)
    result = compute(model, ids[None], features=found)
    assert relative_l2(logits, result.at(np.array([len(ids) - 1]))[0]) < 1e-5
    expected, sequence = [], list(ids)
    for _ in tokens:
        result = compute(model, [sequence], features=found)
        expected.append(int(result.at(np.array([len(sequence) - 1])).argmax()))
        sequence.append(expected[-1])
    assert tokens == expected


def test_genai_answers_with_4_bits(genai, written, source, tmp_path):
    """It takes the folder, and a text's logits are those of the folder of text alone."""
    (ids, _, logits, tokens), alone = (
        answer(genai, written("int4"), "Hello there", [], 4),
        generate(genai, written("int4", text_only=True), "Hello there", 4),
    )
    assert tokens == alone
    assert len(ids)
    assert np.isfinite(logits).all()


def generate(genai, folder, prompt, count):
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=200, do_sample=False)
    generator = genai.Generator(model, options)
    ids = genai.Tokenizer(model).encode(prompt)
    generator.append_tokens(ids)
    for _ in range(count):
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)[len(ids) :]]
