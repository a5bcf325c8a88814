"""The real ONNX Runtime, computing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openvino_runtime import Rounded
from phiconv import ir
from phiconv_formats.onnx.names import output_tensors
from phiconv_formats.shared.output import joined_roles


def open_session(ort, path):
    """A graph on the processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def features_of(ort, folder, pictures):
    """What a folder that sees makes of pictures (`phiconv.ir.senses.Picture`), as GenAI hands them over."""
    session = open_session(ort, folder / "vision.onnx")
    pixels = np.zeros((len(pictures), 17, *pictures[0].pixels.shape[1:]), np.float32)
    for place, picture in zip(pixels, pictures, strict=True):
        place[: len(picture.pixels)] = picture.pixels
    sizes = np.array([picture.grid for picture in pictures], np.int64) * pixels.shape[-1]
    return session.run(None, {"pixel_values": pixels, "image_sizes": sizes})[0].astype(np.float64)


def onnx_logits(ort, folder, ids, embeddings=None):
    """Logits of ONNX Runtime on the processor; products in float32 where the graph names no other level.

    With ``embeddings`` the decoder is that of a folder that sees.
    """
    seeing = embeddings is not None
    session = open_session(ort, folder / ("text.onnx" if seeing else "model.onnx"))
    start = {"inputs_embeds": embeddings} if seeing else {"input_ids": ids[None].astype(np.int64)}
    feeds = {**start, "attention_mask": np.ones((1, len(ids)), np.int64)}
    inputs = {i.name: i for i in session.get_inputs()}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(len(ids))[None]
    for name, value in inputs.items():
        if name.startswith("past"):
            dtype = np.float32 if value.type == "tensor(float)" else np.float16
            feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    return session.run(["logits"], feeds)[0][0].astype(np.float64)


def stored_weights(plan):
    """The model with the weights that a plan would store, those of its encoder too."""
    model, encodings = plan.model, {t.name: t.encoding for t in plan.tensors}
    tensors, seen = dict(model.tensors), dict(model.senses.vision.tensors)
    for output in output_tensors(model):
        if output.role is None:  # a rotary table
            continue
        found = seen if output.in_encoder else tensors
        for role in joined_roles(output.role, output.tensor, model) or [output.role]:
            rounded = Rounded(found[role], encodings[output.name])
            found[role] = ir.Tensor.of(rounded, found[role].shape)
    senses = replace(model.senses, vision=replace(model.senses.vision, tensors=seen))
    return replace(model, tensors=tensors, senses=senses)
