"""Phi-4-multimodal in ONNX Runtime: features, answers of ONNX Runtime GenAI, what is refused."""

from __future__ import annotations

import json
import shutil
import wave

import numpy as np
import pytest

import phiconv
from make_multimodal import PLACES, VOCABULARY, add_places, picture, sound
from onnx_runtime import features_of, heard, onnx_logits, stored_weights
from phiconv.errors import UnsupportedModelError
from phiconv.forward.encoders import features
from phiconv.forward.interpreter import compute
from phiconv.forward.sounds import sound_features
from phiconv.ir.senses import Picture
from phiconv.perception.pictures import prepare
from phiconv.perception.sounds import log_mel
from references import relative_l2

pytestmark = pytest.mark.runtime

TOKENS = 3
PICTURES = {"wide": (60, 500), "tall": (449, 448)}
SOUNDS = {"short": 9000, "longer": 16077}
LONG = 42 * 16000 + 55
"""Samples of a sound that is encoded in two pieces."""


@pytest.fixture(scope="module")
def source(make_multimodal, tmp_path_factory):
    """A model with as many tokens as the real one, since GenAI knows two of them by their numbers."""
    factors = [1 + n / 20 for n in range(24)]
    keys = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"long_factor": factors, "short_factor": factors, "type": "longrope"},
    }
    folder = tmp_path_factory.mktemp("source") / "m"
    return add_places(make_multimodal(folder, "phi4mm", seed=7, **keys))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """Conversions by recipe and choices, and the models with the weights that they have stored."""
    made = {}

    def write(quant, target="cpu", **choices):
        key = (quant, target, *choices.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("onnx") / "m"
            choices = phiconv.Choices(target=target, accuracy_level=1, **choices)
            done = phiconv.convert(source, folder, to="onnx", quant=quant, lora=["vision"], choices=choices)
            made[key] = folder, done, done.plan.model.senses and stored_weights(done.plan)
        return made[key]

    return write


@pytest.mark.parametrize(
    ("quant", "target", "bound"), [("f32", "cpu", 1e-6), ("int4", "cpu", 1e-5), ("int4", "cuda", 5e-3)]
)
def test_features_of_pictures_are_numpys(ort, written, quant, target, bound):
    """For processors in float32; for others in float16, run on a processor here."""
    folder, _, model = written(quant, target)
    ready = [prepare(model.senses, picture(7, *size)) for size in PICTURES.values()]
    assert [each.mask.all() for each in ready] == [False, False]
    expected = [features(model.senses.vision, each) for each in ready]
    assert relative_l2(features_of(ort, folder, ready), np.concatenate(expected)) < bound
    if quant == "f32":
        assert relative_l2(features_of(ort, folder, ready[1:]), expected[1]) < bound


@pytest.mark.parametrize(
    ("quant", "target", "bound"), [("f32", "cpu", 3e-6), ("int4", "cpu", 1e-5), ("int4", "cuda", 5e-3)]
)
def test_features_of_sounds_are_numpys(ort, written, quant, target, bound):
    """For processors in float32; for others in float16, run on a processor here."""
    folder, _, model = written(quant, target)
    ready = [
        log_mel(sound(7, samples)) for samples in (*SOUNDS.values(), *([LONG] if quant == "f32" else []))
    ]
    for beside in ("speech", "vision"):
        expected = [sound_features(model.senses.hearing, each, beside=beside) for each in ready]
        assert relative_l2(heard(ort, folder, ready, beside), np.concatenate(expected)) < bound
    assert relative_l2(heard(ort, folder, ready[:1], beside), expected[0]) < bound


def test_a_text_gets_the_logits_of_the_language_model(ort, written):
    ids = np.arange(20, 60)
    alone = onnx_logits(ort, written("int4", text_only=True)[0], ids)[-1:]
    session = ort.InferenceSession(str(written("int4")[0] / "embedding.onnx"))
    nothing = np.zeros((0, 64), np.float32)
    feeds = {"input_ids": ids[None], "image_features": nothing, "audio_features": nothing}
    embeddings = session.run(None, feeds)[0]
    assert relative_l2(onnx_logits(ort, written("int4")[0], ids, embeddings), alone) < 1e-6


def test_what_is_in_the_folder(source, written):
    folder, done, _ = written("int4")
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert config["type"] == "phi4mm"
    parts = [config[part] for part in ("decoder", "embedding", "vision", "speech")]
    files = {each[key] for each in parts for key in ("filename", "config_filename") if key in each}
    assert files <= {path.name for path in folder.iterdir()}
    preprocess = json.loads((folder / config["vision"]["config_filename"]).read_text())["processor"]
    assert preprocess["transforms"][1]["operation"]["attrs"]["dynamic_hd"] == 6
    matrices = {t.name: t.encoding for t in done.plan.tensors if t.name.startswith(("vision.", "audio."))}
    assert matrices["vision.layers.0.mlp.fc2.MatMul.weight"].block_size == 16  # rows of 304
    assert matrices["audio.layers.1.conv_mix.MatMul.weight"].bits == 8
    assert phiconv.verify(folder).outcome == "verified"
    assert phiconv.open_model(folder).left_out
    reference = phiconv.open_model(source, lora=["vision"])
    assert phiconv.compare(reference, phiconv.open_model(written("f32")[0])).total.relative_rmse == 0


def test_one_decoder_has_one_adapter(source, tmp_path):
    """A note says for which prompts another one would be needed."""
    for lora, missing in (([], "pictures need --lora vision and sounds"), (["speech"], "pictures need")):
        notes = phiconv.plan(source, tmp_path / "m", to="onnx", quant="int4", lora=lora).package.notes
        assert sum(missing in note and "no adapter changes by prompt" in note for note in notes) == 1


def test_other_tokens_are_refused(make_multimodal, source, tmp_path):
    small = make_multimodal(tmp_path / "small", "phi4-multimodal")
    other = shutil.copytree(source, tmp_path / "other")
    for path in other.glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("endoftext10", "another"))
    for folder in (small, other):
        with pytest.raises(UnsupportedModelError, match=r"token 200010 for <\|endoftext10"):
            phiconv.plan(folder, tmp_path / "out", to="onnx", quant="int4")
    alone = phiconv.Choices(text_only=True)
    plan = phiconv.plan(small, tmp_path / "out", to="onnx", quant="int4", choices=alone)
    assert any("text part" in note for note in plan.package.notes)


def test_tokens_get_the_names_that_genai_looks_for(source, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    for path in other.glob("tokenizer*.json"):
        text = path.read_text().replace("endoftext10", "image").replace("endoftext11", "audio")
        path.write_text(text)
    package = phiconv.plan(other, tmp_path / "out", to="onnx", quant="int4").package
    files = {file.name: b"".join(data for _, data in file.chunks) for file in package.files}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (source / name).read_text()
        assert [text.count(mark) for mark in PLACES] == [files[name].decode().count(mark) for mark in PLACES]
        assert b"<|image|>" not in files[name]


@pytest.fixture(scope="module")
def genai():
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures and sounds as files, by name."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path_factory.mktemp("files")
    for name, size in PICTURES.items():
        image.fromarray(picture(7, *size)).save(folder / f"{name}.png")
    for name, samples in SOUNDS.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((sound(7, samples) * 30000).astype("<i2").tobytes())
    return {path.stem: str(path) for path in folder.iterdir()}


def seen_and_heard(model, inputs):
    """The features of what GenAI's processor has made ready; None for a text."""
    found = []
    if "pixel_values" in inputs:
        arrays = (inputs[n].as_numpy() for n in ("pixel_values", "image_attention_mask", "image_sizes"))
        for pixels, mask, (height, width) in zip(*arrays, strict=True):
            grid = int(height) // 448, int(width) // 448
            count = 1 + grid[0] * grid[1]
            found.append(features(model.senses.vision, Picture(pixels[:count], grid, mask[:count] > 0.5)))
    if "audio_embeds" in inputs:
        beside = "vision" if found else "speech"
        for frames, mask in zip(
            *(inputs[f"audio_{n}"].as_numpy() for n in ("embeds", "attention_mask")), strict=True
        ):
            found.append(sound_features(model.senses.hearing, frames[: mask.sum()], beside=beside))
    return np.concatenate(found) if found else None


BOTH = ("<|image_1|><|audio_1|>So", ["wide"], ["short"])
PROMPTS = [
    ("f32", "Look: <|image_1|>What is it?", ["wide"], []),
    ("f32", "<|audio_1|>Say it.", [], ["longer"]),
    (
        "f32",
        "<|image_1|> and <|image_2|><|audio_1|><|audio_2|>",
        ["tall", "wide"],
        ["short", "longer"],
    ),
    ("f32", "Hello there", [], []),
    ("int4", *BOTH),
    ("f16", *BOTH),
]


@pytest.mark.parametrize(("quant", "prompt", "pictures", "sounds"), PROMPTS)
def test_genai_answers_as_numpy_does(genai, written, files, quant, prompt, pictures, sounds):
    """With the pixels and the spectrograms that its own processor makes."""
    folder, _, known = written(quant)
    model = genai.Model(str(folder))
    images = genai.Images.open(*(files[name] for name in pictures)) if pictures else None
    audios = genai.Audios.open(*(files[name] for name in sounds)) if sounds else None
    inputs = model.create_multimodal_processor()(prompt, images=images, audios=audios)
    found = seen_and_heard(known, inputs)
    sequence = inputs["input_ids"].as_numpy().reshape(-1).astype(np.int64)
    sequence[np.isin(sequence, [*PLACES.values()])] = -1
    assert (sequence < 0).sum() == (0 if found is None else len(found))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=3000, do_sample=False)
    generator = genai.Generator(model, options)
    generator.set_inputs(inputs)
    for _ in range(TOKENS):
        last = np.array([len(sequence) - 1])
        expected = compute(known, sequence[None], features=found).at(last).reshape(-1)
        assert relative_l2(generator.get_logits().reshape(-1), expected) < 1e-5
        generator.generate_next_token()
        sequence = np.append(sequence, generator.get_next_tokens()[0])
        assert sequence[-1] == expected.argmax()
