"""The real OpenVINO, computing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv_formats.openvino.names import group_of, output_tensors, with_own_head

STRICT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
"""Without these the plugin rounds activations to 16 or 8 bits, and no error below 1e-2 could be seen."""


def infer(compiled, ids, chunks=None):
    """Logits of a batch, its tokens given in chunks."""
    request = compiled.create_infer_request()
    results, at = [], 0
    for count in chunks or [ids.shape[1]]:
        stop = at + count
        positions = np.broadcast_to(np.arange(at, stop), (len(ids), count))
        request.infer(
            {
                "input_ids": ids[:, at:stop].astype(np.int64),
                "attention_mask": np.ones((len(ids), stop), np.int64),
                "position_ids": np.ascontiguousarray(positions, np.int64),
                "beam_idx": np.arange(len(ids), dtype=np.int32),
            }
        )
        results.append(request.get_tensor("logits").data.copy())
        at = stop
    return np.concatenate(results, axis=1)


class Rounded:
    """A tensor's rows after quantization, in float32."""

    encoding = ir.F32
    label = "quantized"

    def __init__(self, tensor, encoding):
        self.tensor, self.target = tensor, encoding

    def read(self, start, stop):
        return decode(encode(self.tensor.read(start, stop), self.target), self.tensor.columns)


def quantized(plan):
    """The model with the weights that a plan would store, those of its encoder too."""
    model, encodings = with_own_head(plan.model), {t.name: t.encoding for t in plan.tensors}
    encoder = model.senses.vision if model.senses else None
    tensors, seen = {}, dict(encoder.tensors) if encoder else {}
    for output in output_tensors(model):
        roles, found, kept = (output.role,), seen, tensors
        if output.in_encoder:
            kept = seen
        else:
            found = model.tensors
            if output.role.part != "bias":
                roles = group_of(model.architecture, output.role)
        for role in roles:
            rounded = Rounded(found[role], encodings[output.name])
            kept[role] = ir.Tensor.of(rounded, found[role].shape)
    senses = replace(model.senses, vision=replace(encoder, tensors=seen)) if encoder else None
    return replace(model, tensors=tensors, senses=senses)
