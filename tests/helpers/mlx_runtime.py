"""The real mlx-lm, computing."""

from __future__ import annotations

import numpy as np


def run_logits(mlx_lm, folder, ids):
    """Logits of the runtime, computed in float32; loading is strict."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    logits = model(mx.array(np.asarray(ids, np.int32))[None])[0]
    return np.array(logits.astype(mx.float32))
