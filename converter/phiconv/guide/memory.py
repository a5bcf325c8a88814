"""How much memory a model takes while it runs: its weights, what it remembers of a text, and the runtime.

For every token of a text each layer keeps a key and a value for each of its key-value heads (which may be
fewer than the query heads: grouped-query attention). So the cache takes::

    2 * layers * key-value heads * head size * tokens * bytes of a number
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.ir.model import Hyperparameters
    from phiconv.runtimes import Runtime

__all__ = ["beside_weights", "cache_size", "running_size"]


def cache_size(hp: Hyperparameters, runtime: Runtime, context: int) -> int:
    """Bytes of the keys and values of a text.

    Args:
        hp: The sizes.
        runtime: It says how wide a number is, and whether it makes use of a sliding window.
        context: Tokens of the text.
    """
    positions = min(context, hp.sliding_window or context) if runtime.windowed else context
    numbers = 2 * hp.num_hidden_layers * hp.num_key_value_heads * hp.head_dim * positions
    return math.ceil(numbers * runtime.cache_bytes)


def running_size(size: int, hp: Hyperparameters, runtime: Runtime, context: int) -> int:
    """Bytes of memory to run a model.

    Args:
        size: Bytes of its files.
        hp: The sizes.
        runtime: What runs it.
        context: Tokens of the longest text.
    """
    return math.ceil(size * runtime.weights) + beside_weights(hp, runtime, context)


def beside_weights(hp: Hyperparameters, runtime: Runtime, context: int) -> int:
    """Bytes of memory to run a model, but for its weights."""
    return cache_size(hp, runtime, context) + runtime.overhead * 1_000_000
