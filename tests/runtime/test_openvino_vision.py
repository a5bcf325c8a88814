"""OpenVINO GenAI sees with what phiconv writes as NumPy does, and answers as it does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from openvino_runtime import STRICT, quantized
from phiconv.forward.encoders import NumpyEncoderOps, features
from phiconv.forward.interpreter import compute
from phiconv.ir.senses import Picture
from phiconv.perception.pictures import prepare
from phiconv.tokenization.encoder import decode, encode
from references import relative_l2

pytestmark = pytest.mark.runtime

TOKENS = 5
TAG = "<|image_1|>"
PROMPT = f"Look: {TAG}\nWhat is in it?"


def set_crops(folder, count):
    """Cuts pictures into at most so many crops."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_crops": count}))


@pytest.fixture(scope="module")
def source(make_multimodal, tmp_path_factory):
    folder = make_multimodal(tmp_path_factory.mktemp("source") / "m", "phi3v-wide", seed=7)
    set_crops(folder, 1)
    return folder


@pytest.fixture(scope="module", params=["f32", "int4-asym-g32"])
def converted(request, source, tmp_path_factory):
    """A folder, and the model with the weights in it."""
    folder = tmp_path_factory.mktemp("written") / request.param
    return folder, quantized(phiconv.convert(source, folder, to="openvino", quant=request.param).plan)


def striped(height, width):
    """A picture whose rows are of one colour each."""
    rows = np.random.default_rng(1).integers(0, 256, (height, 1, 3), np.uint8)
    return np.repeat(rows, width, axis=1)


def compiled(openvino, folder, name):
    return openvino.Core().compile_model(folder / f"openvino_{name}_model.xml", "CPU", STRICT)


def test_tower_and_projection(openvino, converted):
    folder, model = converted
    encoder = model.senses.vision
    crops = np.random.default_rng(2).normal(size=(2, 3, 336, 336)).astype(np.float32)
    picture = Picture(crops, (1, 1))
    ops = NumpyEncoderOps(encoder.tensors, picture, np.dtype(np.float32))
    patches = encoder.tower(ops, encoder.parameters)
    found = compiled(openvino, folder, "vision_embeddings")(picture.pixels)[0]
    assert found.shape == (len(picture.pixels), 576, 1024)
    assert relative_l2(found, patches) < 1e-5
    arranged = encoder.arrange(ops, patches, encoder.parameters)
    projected = encoder.project(ops, arranged, encoder.parameters)
    found = compiled(openvino, folder, "vision_projection")(arranged[None])[0]
    assert relative_l2(found[0], projected) < 1e-5


def test_embeddings_and_language_model(openvino, converted):
    folder, model = converted
    ids = np.random.default_rng(3).integers(0, model.hyperparameters.vocab_size, (2, 9))
    embeddings = compiled(openvino, folder, "text_embeddings")(ids)[0]
    request = compiled(openvino, folder, "language").create_infer_request()
    request.infer(
        {
            "inputs_embeds": embeddings,
            "attention_mask": np.ones((2, 9), np.int64),
            "position_ids": np.tile(np.arange(9), (2, 1)),
            "beam_idx": np.arange(2, dtype=np.int32),
        }
    )
    assert relative_l2(request.get_tensor("logits").data, compute(model, ids).all()) < 1e-5


@pytest.fixture(scope="module")
def ask(openvino, genai):
    """A function that asks GenAI."""

    def open_(folder, backend):
        pipeline = genai.VLMPipeline(folder, "CPU", ATTENTION_BACKEND=backend, **STRICT)
        config = genai.GenerationConfig(
            max_new_tokens=TOKENS, do_sample=False, ignore_eos=True, eos_token_id=0, stop_token_ids={0}
        )
        config.apply_chat_template = False

        def ask_(prompt, *images):
            tensors = [openvino.Tensor(np.ascontiguousarray(image[None])) for image in images]
            given = {"images": tensors} if tensors else {}
            return pipeline.generate(prompt, generation_config=config, **given).texts[0].strip()

        return ask_

    return open_


@pytest.fixture(scope="module")
def expect():
    """What NumPy answers to a prompt, greedily; pieces between pictures are tokenized one by one."""

    def answer(model, prompt, picture=None):
        ids = [encode(model.tokenizer, piece) for piece in prompt.split(TAG)]
        seen = None if picture is None else features(model.senses.vision, picture)
        if seen is not None:
            ids.insert(1, [-1] * len(seen))
        so_far = np.concatenate(ids)
        for _ in range(TOKENS):
            last = np.array([len(so_far) - 1])
            so_far = np.append(so_far, compute(model, so_far[None], features=seen).at(last).argmax())
        return decode(model.tokenizer, so_far[-TOKENS:].tolist(), skip_special=True).strip()

    return answer


@pytest.fixture(scope="module")
def answers(converted, expect):
    """Two prompts, and NumPy's answers."""
    _, model = converted
    picture = striped(336, 336)
    asked = ((PROMPT, picture), ("The quick brown fox", None))
    seen = [x if x is None else prepare(model.senses, x) for _, x in asked]
    return [(*pair, expect(model, pair[0], x)) for pair, x in zip(asked, seen, strict=True)]


@pytest.mark.parametrize("backend", ["SDPA", "PA"])
def test_answers_with_a_picture_and_without(ask, converted, answers, backend):
    found = ask(converted[0], backend)
    for prompt, picture, expected in answers:
        assert found(prompt, *([] if picture is None else [picture])) == expected != ""


def test_crops(ask, expect, source, tmp_path):
    """GenAI's small view of a picture twice as large is every other pixel of it.

    GenAI 2026.4 takes the rows of crops for columns where a picture is not square, whoever wrote the model.
    """
    phiconv.convert(source, tmp_path / "m", to="openvino", quant="f32")
    set_crops(tmp_path / "m", 4)
    model = phiconv.open_model(source)
    senses = replace(model.senses, preprocessor={**model.senses.preprocessor, "num_crops": 4})
    found = ask(tmp_path / "m", "SDPA")
    for height, width in ((672, 672), (336, 672)):
        pixels = striped(height, width)
        whole = prepare(model.senses, pixels[:: height // 336, ::2]).pixels[:1]
        picture = prepare(senses, pixels)
        picture = replace(picture, pixels=np.concatenate([whole, picture.pixels[1:]]))
        assert picture.grid == (height // 336, 2)
        answer = found(PROMPT, pixels)
        turned = replace(picture, grid=picture.grid[::-1])
        assert answer in (expect(model, PROMPT, x) for x in (turned, picture))
