"""What ONNX Runtime GenAI (0.18) wants of a model that sees: three graphs, and how pictures are made ready.

Its model type ``phi3v`` is Phi-3-vision and Phi-3.5-vision. One graph makes features of pixels, one puts
these between the embeddings of tokens, and the decoder takes embeddings.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from onnx import TensorProto

from phiconv.ir.model import Role
from phiconv_formats.onnx.emitter import OnnxOps
from phiconv_formats.onnx.encoder import encoder_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir.model import Model
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["NOTE", "TEXT", "graphs", "processor_files", "with_senses"]

TEXT, EMBEDDING, VISION = "text.onnx", "embedding.onnx", "vision.onnx"
_PROCESSOR = "processor_config.json"

NOTE = (
    "ONNX Runtime GenAI makes the small view of a picture with other arithmetic than the model's own "
    "processor, and takes up to 16 crops whatever preprocessor_config.json says"
)

_CROPS, _TOKENS = 16, 144
"""As GenAI's transformation has them, whatever its settings say."""


def graphs(model: Model, store: Store, settings: RuntimeSettings, target: Target) -> dict[str, bytes]:
    """The three graphs by their files' names."""
    assert model.senses is not None  # noqa: S101 - whoever asks has looked
    assert model.senses.vision is not None  # noqa: S101
    assert model.forward is not None  # noqa: S101 - output_tensors has looked
    assert model.hyperparameters is not None  # noqa: S101
    text = model.forward(OnnxOps(model, store, settings, embedded=True), model.hyperparameters)
    return {
        TEXT: cast("bytes", text),  # what `OnnxOps.logits` gives
        EMBEDDING: _embedding(model, store, settings),
        VISION: encoder_graph(model.senses.vision, store, target, settings.accuracy_level),
    }


def _embedding(model: Model, store: Store, settings: RuntimeSettings) -> bytes:
    """Embeddings of ids, and the features, in order, where an id is negative."""
    ops, path = OnnxOps(model, store, settings), "/model/embed_tokens"
    g, kind, width = ops.graph, ops.float_type, model.tensors[Role("token_embedding")].shape[1]
    ids = g.input("input_ids", TensorProto.INT64, ("batch_size", "sequence_length"))
    features = g.input("image_features", kind, ("num_image_tokens", width))
    zero = g.constant(np.array(0, np.int64))
    known = g.value("Max", f"{path}/Max", ids, zero)
    x = ops.rows(known, Role("token_embedding"))
    where = g.value("NonZero", f"{path}/NonZero", g.value("Less", f"{path}/Less", ids, zero))
    places = g.value("Transpose", f"{path}/Transpose", where, perm=[1, 0])
    g.node("ScatterND", f"{path}/ScatterND", x, places, features, outputs=("inputs_embeds",))
    g.output("inputs_embeds", kind, ("batch_size", "sequence_length", width))
    return g.finish()


def with_senses(config: Mapping[str, Any]) -> dict[str, Any]:
    """genai_config.json of the decoder with what it says of pictures."""
    own = dict(config["model"])
    decoder = dict(own["decoder"])
    inputs = {k: v for k, v in decoder["inputs"].items() if k != "input_ids"}
    decoder["inputs"] = {"inputs_embeds": "inputs_embeds", **inputs}
    session = {"session_options": decoder["session_options"]}
    return {
        **config,
        "model": {
            **own,
            "type": "phi3v",
            "decoder": decoder,
            "embedding": {
                **session,
                "filename": EMBEDDING,
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "vision": {
                **session,
                "filename": VISION,
                "config_filename": _PROCESSOR,
                "inputs": {"pixel_values": "pixel_values", "image_sizes": "image_sizes"},
                "outputs": {"image_features": "image_features"},
            },
        },
    }


def processor_files(model: Model) -> dict[str, bytes]:
    """How GenAI makes pictures ready: decode, and Phi-3's transformation."""
    assert model.senses is not None  # noqa: S101 - whoever asks has looked
    operations: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("decode_image", "DecodeImage", {"color_space": "BGR"}),
        ("convert_to_rgb", "ConvertRGB", {}),
        ("phi3_image_transform", "Phi3ImageTransform", {"num_crops": _CROPS, "num_img_tokens": _TOKENS}),
    )
    transforms = [
        {"operation": {"name": name, "type": kind, **({"attrs": attributes} if attributes else {})}}
        for name, kind, attributes in operations
    ]
    processor = {"processor": {"name": "phi_3_image_processor", "transforms": transforms}}
    files = {_PROCESSOR: json.dumps(processor, indent=4).encode()}
    if model.senses.preprocessor:
        kept = {key: value for key, value in model.senses.preprocessor.items() if key != "auto_map"}
        files["preprocessor_config.json"] = json.dumps(kept, indent=2).encode()
    return files
