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
    most = 2 + max(len(picture.pixels) for picture in pictures)
    feeds = {"pixel_values": np.zeros((len(pictures), most, *pictures[0].pixels.shape[1:]), np.float32)}
    for place, picture in zip(feeds["pixel_values"], pictures, strict=True):
        place[: len(picture.pixels)] = picture.pixels
    side = pictures[0].pixels.shape[-1]
    feeds["image_sizes"] = np.array([picture.grid for picture in pictures], np.int64) * side
    if pictures[0].mask is not None:
        shape = pictures[0].mask.shape[1:]
        feeds["image_attention_mask"] = masks = np.ones((len(pictures), most, *shape), np.float32)
        for place, picture in zip(masks, pictures, strict=True):
            place[: len(picture.pixels)] = picture.mask
    return session.run(None, feeds)[0].astype(np.float64)


def heard(ort, folder, spectrograms, beside="speech"):
    """What a folder that hears makes of sounds (see `log_mel`), as GenAI hands them over."""
    session = open_session(ort, folder / "speech.onnx")
    lengths = np.array([len(each) for each in spectrograms], np.int64)
    frames = np.zeros((len(lengths), lengths.max(), spectrograms[0].shape[1]), np.float32)
    for place, each in zip(frames, spectrograms, strict=True):
        place[: len(each)] = each
    feeds = {
        "audio_embeds": frames,
        "audio_attention_mask": np.arange(lengths.max()) < lengths[:, None],
        "audio_sizes": -(-lengths // 8),
        "audio_projection_mode": np.array([{"speech": 2, "vision": 3}[beside]]),
    }
    return session.run(None, feeds)[0].astype(np.float64)


def onnx_logits(ort, folder, ids, embeddings=None):
    """Logits of ONNX Runtime on the processor; products in float32 where the graph names no other level.

    With ``embeddings`` the decoder is that of a folder that sees, which says the last token's alone.
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
    tensors, senses = dict(model.tensors), model.senses
    encoders = {"vision": senses.vision, "audio": senses.hearing}
    kept = {name: dict(encoder.tensors) for name, encoder in encoders.items() if encoder}
    for output in output_tensors(model):
        if output.role is None:  # a rotary table
            continue
        found = kept[output.role.name.partition(".")[0]] if output.in_encoder else tensors
        for role in joined_roles(output.role, output.tensor, model) or [output.role]:
            rounded = Rounded(found[role], encodings[output.name])
            found[role] = ir.Tensor.of(rounded, found[role].shape)
    vision, hearing = (e and replace(e, tensors=kept[name]) for name, e in encoders.items())
    return replace(model, tensors=tensors, senses=replace(senses, vision=vision, hearing=hearing))
