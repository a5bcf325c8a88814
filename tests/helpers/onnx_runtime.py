"""The real ONNX Runtime, computing."""

from __future__ import annotations

import numpy as np


def onnx_logits(ort, folder, ids):
    """Logits of ONNX Runtime on the processor; products in float32 where the graph names no other level."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None].astype(np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    inputs = {i.name: i for i in session.get_inputs()}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(len(ids))[None]
    for name, value in inputs.items():
        if name.startswith("past"):
            dtype = np.float32 if value.type == "tensor(float)" else np.float16
            feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    return session.run(["logits"], feeds)[0][0].astype(np.float64)
