"""What ONNX Runtime GenAI (0.18) wants of a model that sees or hears: three graphs or four.

Its model type ``phi3v`` is Phi-3-vision and Phi-3.5-vision, ``phi4mm`` Phi-4-multimodal. One graph makes
features of pixels and one of sounds, another puts these between the embeddings of tokens, and the decoder
takes embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from onnx import TensorProto

from phiconv.errors import UnsupportedModelError
from phiconv.ir.adapter import Adapter
from phiconv.ir.model import Role
from phiconv_formats.onnx.emitter import OnnxOps
from phiconv_formats.onnx.encoder import encoder_graph
from phiconv_formats.onnx.processors import PICTURES, PROCESSOR, SOUNDS
from phiconv_formats.onnx.sounds import sound_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir.model import Model
    from phiconv.ir.senses import Senses
    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["TEXT", "check_senses", "graphs", "names_of_places", "notes_of_senses", "with_senses"]

TEXT, EMBEDDING, VISION, SPEECH = "text.onnx", "embedding.onnx", "vision.onnx", "speech.onnx"


class _Kind(NamedTuple):
    """How GenAI knows a kind of model.

    Attributes:
        type: The model's type in genai_config.json.
        processor: The file with its transformation of pictures.
        places: The tokens in whose places it puts features of pictures and of sounds, texts and ids: fixed in
            its code, whatever the tokenizer says. Empty where every id below 0 is such a place.
        masks: Pictures come with a mask of what shows something.
    """

    type: str
    processor: str
    places: Mapping[str, int]
    masks: bool = False


_PHI4MM = _Kind("phi4mm", PICTURES, {"<|endoftext10|>": 200010, "<|endoftext11|>": 200011}, masks=True)

_KINDS = {"phi3_v": _Kind("phi3v", PROCESSOR, {}), "phi4mm": _PHI4MM, "phi4_multimodal": _PHI4MM}
"""By `Senses.kind`."""

_ALSO_CALLED = {"<|endoftext10|>": "<|image|>", "<|endoftext11|>": "<|audio|>"}
"""What checkpoints of transformers may call the same tokens."""

_FEATURES = ("image_features", "audio_features")
"""What is put into the places, in the order of `_Kind.places`."""

_VIEW = (
    "ONNX Runtime GenAI makes the small view of a picture with other arithmetic than the model's own "
    "processor"
)
_NOTES = {
    "phi3v": (f"{_VIEW}, and takes up to 16 crops whatever preprocessor_config.json says",),
    "phi4mm": (_VIEW,),
}

_ADAPTERS = {"vision": "pictures", "speech": "sounds alone"}
"""What each of Phi-4-multimodal's own adapters is for."""


def graphs(model: Model, store: Store, settings: RuntimeSettings, target: Target) -> dict[str, bytes]:
    """The graphs by their files' names."""
    senses = _senses(model)
    assert senses.vision is not None  # noqa: S101 - whoever asks has looked
    assert model.forward is not None  # noqa: S101 - output_tensors has looked
    assert model.hyperparameters is not None  # noqa: S101
    level = settings.accuracy_level
    text = model.forward(OnnxOps(model, store, settings, embedded=True), model.hyperparameters)
    found = {
        TEXT: cast("bytes", text),  # what `OnnxOps.logits` gives
        EMBEDDING: _embedding(model, store, settings),
        VISION: encoder_graph(senses.vision, store, target, level),
    }
    if senses.hearing is not None:
        found[SPEECH] = sound_graph(senses.hearing, store, target, level)
    return found


def _senses(model: Model) -> Senses:
    assert model.senses is not None  # noqa: S101 - whoever asks has looked
    return model.senses


def _embedding(model: Model, store: Store, settings: RuntimeSettings) -> bytes:
    """Embeddings of ids, and the features, in order, in their places."""
    ops, path = OnnxOps(model, store, settings), "/model/embed_tokens"
    g, kind, width = ops.graph, ops.float_type, model.tensors[Role("token_embedding")].shape[1]
    ids = g.input("input_ids", TensorProto.INT64, ("batch_size", "sequence_length"))
    places = _KINDS[_senses(model).kind].places
    if places:
        tokens = [g.constant(np.array(token, np.int64)) for token in places.values()]
        chosen = [g.value("Equal", f"{path}/Equal_{i}", ids, token) for i, token in enumerate(tokens)]
        x = ops.rows(ids, Role("token_embedding"))
    else:
        zero = g.constant(np.array(0, np.int64))
        chosen = [g.value("Less", f"{path}/Less", ids, zero)]
        x = ops.rows(g.value("Max", f"{path}/Max", ids, zero), Role("token_embedding"))
    for name, where in zip(_FEATURES, chosen, strict=False):
        features = g.input(name, kind, (f"num_{name.removesuffix('_features')}_tokens", width))
        x = _scattered(g, x, where, features, f"{path}/{name}")
    g.rename(x, "inputs_embeds")
    g.output("inputs_embeds", kind, ("batch_size", "sequence_length", width))
    return g.finish()


def _scattered(g: Graph, x: str, where: str, features: str, path: str) -> str:
    """A value with rows in the places where another one is True."""
    indices = g.value("NonZero", f"{path}/NonZero", where)
    places = g.value("Transpose", f"{path}/Transpose", indices, perm=[1, 0])
    return g.value("ScatterND", f"{path}/ScatterND", x, places, features)


def with_senses(model: Model, config: Mapping[str, Any]) -> dict[str, Any]:
    """genai_config.json of the decoder with what it says of pictures and sounds."""
    senses = _senses(model)
    kind, own = _KINDS[senses.kind], dict(config["model"])
    decoder = dict(own["decoder"])
    inputs = {k: v for k, v in decoder["inputs"].items() if k != "input_ids"}
    decoder["inputs"] = {"inputs_embeds": "inputs_embeds", **inputs}
    session = {"session_options": decoder["session_options"]}
    given = _FEATURES[: max(len(kind.places), 1)]
    mask = {"attention_mask": "image_attention_mask"} if kind.masks else {}
    parts = {
        "embedding": {
            **session,
            "filename": EMBEDDING,
            "inputs": _same("input_ids", *given),
            "outputs": _same("inputs_embeds"),
        },
        "vision": {
            **session,
            "filename": VISION,
            "config_filename": kind.processor,
            "inputs": {**_same("pixel_values", "image_sizes"), **mask},
            "outputs": _same("image_features"),
        },
    }
    if senses.hearing is not None:
        heard = _same("audio_embeds", "audio_sizes", "audio_projection_mode")
        parts["speech"] = {
            **session,
            "filename": SPEECH,
            "config_filename": SOUNDS,
            "inputs": heard | {"attention_mask": "audio_attention_mask"},
            "outputs": _same("audio_features"),
        }
    return {**config, "model": {**own, "type": kind.type, "decoder": decoder, **parts}}


def _same(*names: str) -> dict[str, str]:
    """Names that GenAI has, and the graphs as well."""
    return {name: name for name in names}


def check_senses(model: Model) -> None:
    """Refuses a model in which GenAI would put features in the places of other tokens.

    Raises:
        UnsupportedModelError: The model's tokens are others.
    """
    assert model.hyperparameters is not None  # noqa: S101 - output_tensors has looked
    size, names = model.hyperparameters.vocab_size, _added_tokens(model)
    for text, token in _KINDS[_senses(model).kind].places.items():
        if token >= size or (names is not None and names.get(token) not in {text, _ALSO_CALLED[text]}):
            raise UnsupportedModelError(
                f"ONNX Runtime GenAI takes token {token} for {text}, and in this model it is not",
                path=model.path,
                hint="give --text-only for the language model alone",
            )


def names_of_places(model: Model) -> dict[int, str]:
    """What GenAI calls tokens that this model calls otherwise, by id."""
    places, names = _KINDS[_senses(model).kind].places, _added_tokens(model)
    return {token: text for text, token in places.items() if names is not None and names[token] != text}


def _added_tokens(model: Model) -> dict[int, str] | None:
    """Texts of added tokens by id; None where there is no tokenizer."""
    return None if model.tokenizer is None else {token.id: token.content for token in model.tokenizer.added}


def notes_of_senses(model: Model) -> list[str]:
    """What is not as it was, or not as it should be."""
    notes = [*_NOTES[_KINDS[_senses(model).kind].type]]
    merged = {adapter.path for adapter in model.adapters}
    own = {k: found.path if isinstance(found, Adapter) else found for k, found in model.own_adapters.items()}
    missing = {name: what for name, what in _ADAPTERS.items() if name in own and own[name] not in merged}
    if not missing:
        return notes
    fixed = "ONNX Runtime GenAI has one decoder for all prompts"
    wanted = " and ".join(f"{what} need --lora {name}" for name, what in missing.items())
    return [*notes, f"{fixed}, and no adapter changes by prompt: {wanted}"]
