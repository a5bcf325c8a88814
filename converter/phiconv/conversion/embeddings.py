"""What an error of the embedding does: nothing is multiplied with it, so that no input can be measured.

It goes, normalised, into the matrices of the first layer. What an error ``d`` makes of their outputs is
``d^T G d`` in the mean square, with ``G`` the second moment of their rows. On small models that were trained,
codes that are chosen so have two thirds of the divergence of the runtime's own. Where the embedding is also
the output matrix, the second moment of what goes into that counts as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.forward import threads
from phiconv.forward.ops import ATTENTION_ROLES
from phiconv.ir.model import Role
from phiconv.ir.moments import Moments, Sample
from phiconv.quantizers import decode

if TYPE_CHECKING:
    from phiconv.ir import FloatArray, Tensor
    from phiconv.ir.model import Model
    from phiconv_formats.calibration.reader import Calibration

__all__ = ["embedding_moments"]

_SHRINKAGE = 0.1

_FEED_FORWARD = ("ffn_gate", "ffn_up", "experts_gate", "experts_up")

_ROWS = 1024


def embedding_moments(model: Model, calibration: Calibration) -> Moments:
    """What stands for the second moments of the inputs of an embedding.

    Args:
        model: The first layer's matrices are read.
        calibration: What went into a head that is the embedding, too.
    """
    embedding = Role("token_embedding")
    with threads.parallel():
        total = _trace_1(_first_layer(model))
        if (head := calibration.of(embedding)) is not None:
            total += _trace_1(head.all())
    columns = len(total)
    sample = Sample(columns, columns, total)
    return Moments(total.diagonal().astype(np.float64), sample, sample, _SHRINKAGE)


def _first_layer(model: Model) -> FloatArray:
    """The second moment of the rows of the first layer's matrices, each with its norm's weights in it."""
    norms = [Role("attn_norm", 0), Role("ffn_norm", 0)]
    weights = [_rows(model.tensors[r], 0, None).reshape(-1) for r in norms if r in model.tensors]
    total = np.zeros((len(weights[0]), len(weights[0])), np.float32)
    for norm, names in zip((weights[0], weights[-1]), (ATTENTION_ROLES, _FEED_FORWARD), strict=True):
        for tensor in (model.tensors[r] for n in names if (r := Role(n, 0)) in model.tensors):
            matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1  # of a stack of experts the mean
            for start in range(0, tensor.rows, _ROWS):
                rows = _rows(tensor, start, start + _ROWS) * norm
                total += rows.T @ rows / np.float32(matrices)
    return total


def _rows(tensor: Tensor, start: int, stop: int | None) -> FloatArray:
    last = tensor.rows if stop is None else min(stop, tensor.rows)
    return decode(tensor.read(start, last), tensor.columns)


def _trace_1(moments: FloatArray) -> FloatArray:
    """The same, such that the mean of its diagonal is 1."""
    mean = float(moments.diagonal().mean(dtype=np.float64))
    return moments / np.float32(mean) if mean > 0 else np.zeros_like(moments)
