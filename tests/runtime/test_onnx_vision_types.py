"""ONNX Runtime GenAI answers about pictures as NumPy does with the weights that it has, of any type."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from make_multimodal import picture
from onnx_runtime import stored_weights
from phiconv.forward.encoders import features
from phiconv.forward.interpreter import compute
from phiconv.ir.senses import Picture
from references import relative_l2

pytestmark = pytest.mark.runtime

TOKENS = 3
PROMPT = "<|image_1|>\nWhat is it?"


@pytest.fixture(scope="module")
def source(make_multimodal, tmp_path_factory):
    return make_multimodal(
        tmp_path_factory.mktemp("source") / "m", "phi3v", seed=7, max_position_embeddings=4096
    )


@pytest.fixture(scope="module")
def genai():
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


def on_processor(folder):
    """The graphs of another target, run where there is neither its hardware nor its library."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    for part in ("decoder", "embedding", "vision"):
        config["model"][part]["session_options"]["provider_options"] = []
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("quant", "target", "bound"),
    [
        ("int4", "cpu", 1e-5),
        ("f16", "cpu", 1e-5),
        ("int4", "cuda", 5e-3),
        ("f16", "cuda", 5e-3),
        ("int4", "dml", 5e-3),
    ],
)
def test_answers_with_a_picture(genai, source, tmp_path, quant, target, bound):
    """On processors products in float32; other targets compute in float16, the encoder too."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(picture(7, 60, 600)).save(tmp_path / "wide.png")
    choices = phiconv.Choices(target=target, accuracy_level=1)
    plan = phiconv.convert(source, tmp_path / "m", to="onnx", quant=quant, choices=choices).plan
    model = genai.Model(str(on_processor(tmp_path / "m")))
    inputs = model.create_multimodal_processor()(PROMPT, images=genai.Images.open(str(tmp_path / "wide.png")))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=4096, do_sample=False)
    generator = genai.Generator(model, options)
    generator.set_inputs(inputs)

    known = stored_weights(plan)
    sequence = inputs["input_ids"].as_numpy().reshape(-1).astype(np.int64)
    pixels, ((height, width),) = inputs["pixel_values"].as_numpy()[0], inputs["image_sizes"].as_numpy() // 336
    ready = Picture(pixels[: 1 + height * width].astype(np.float32), (int(height), int(width)))
    seen = features(known.senses.vision, ready)
    assert (sequence < 0).sum() == len(seen)
    for _ in range(TOKENS):
        expected = compute(known, sequence[None], features=seen).at(np.array([len(sequence) - 1])).reshape(-1)
        assert relative_l2(generator.get_logits().reshape(-1), expected) < bound
        generator.generate_next_token()
        sequence = np.append(sequence, generator.get_next_tokens()[0])
        assert sequence[-1] == expected.argmax()


def test_a_text_is_not_taken_up_again(genai, make_multimodal, tmp_path):
    """Before the long factors begin a text's logits are right, and after it they are off, as a note says."""
    sizes = {
        "num_hidden_layers": 1,
        "original_max_position_embeddings": 4096,
        "max_position_embeddings": 8192,
    }
    source = make_multimodal(tmp_path / "s", "phi3v", seed=7, **sizes)
    done = phiconv.convert(source, tmp_path / "m", to="onnx", quant="f32")
    assert any("does not take up a text again at the 4097th" in note for note in done.notes)
    model, known = genai.Model(str(tmp_path / "m")), phiconv.open_model(source)
    processor = model.create_multimodal_processor()
    each = processor(" time" * 100, images=None)["input_ids"].as_numpy().size
    inputs = processor(" time" * (4090 * 100 // each), images=None)
    sequence = inputs["input_ids"].as_numpy().reshape(-1).astype(np.int64)
    assert 4000 < len(sequence) < 4096
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=4100, do_sample=False)
    generator = genai.Generator(model, options)
    generator.set_inputs(inputs)
    while len(sequence) < 4096:
        generator.generate_next_token()
        sequence = np.append(sequence, generator.get_next_tokens()[0])
    for right in (True, False):
        expected = compute(known, sequence[None]).at(np.array([len(sequence) - 1])).reshape(-1)
        assert (relative_l2(generator.get_logits().reshape(-1), expected) < 1e-5) == right
        generator.generate_next_token()
        sequence = np.append(sequence, generator.get_next_tokens()[0])


def test_long_context_has_nothing_to_cross(source, tmp_path):
    longer = phiconv.Choices(long_context=True)
    plan = phiconv.plan(source, tmp_path / "m", to="onnx", quant="int4", choices=longer)
    assert not any("taken up" in note or "take up" in note for note in plan.package.notes)
    assert not any("unquantized" in note for note in plan.package.notes)


def test_the_decoders_file_is_the_text_part(source, tmp_path):
    phiconv.convert(source, tmp_path / "m", to="onnx", quant="f32")
    whole, alone = (phiconv.open_model(tmp_path / "m" / name) for name in ("", "text.onnx"))
    assert alone.left_out == whole.left_out != ""
    assert alone.tensors.keys() == whole.tensors.keys()
    assert phiconv.compare(source, tmp_path / "m" / "text.onnx").total.relative_rmse == 0
