"""A text that grows token by token: what attention needs of the tokens before is kept.

`compute` takes whole sequences. Here every token but the prompt's goes through the decoder alone, and its
queries meet the keys and values that the others left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from phiconv.errors import UsageError
from phiconv.forward import layers, threads
from phiconv.forward.held import HeldWeights, spare_memory
from phiconv.forward.interpreter import NumpyOps, no_model, token_ids
from phiconv.forward.ops import Attention, check_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv.forward.interpreter import Precision
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Forward
    from phiconv.ir.model import Model
    from phiconv.ir.rope import Rope

__all__ = ["Generation", "KeysAndValues"]


class Generation:
    """A sequence of tokens, and what its model says of the next one.

    Keys and values of all its tokens, or of those that a window still shows, stay in memory: in float32 twice
    ``kv_heads * head_dim`` numbers per token and layer. Weights do as `HeldWeights` says.
    """

    def __init__(self, model: Model, *, precision: Precision = "float32", memory: int | None = None) -> None:
        """Reads no weight yet.

        Args:
            model: Its weights are read from its files.
            precision: What to compute in.
            memory: Bytes of weights that may stay in memory; by default what `spare_memory` says.

        Raises:
            UnsupportedModelError: It is a file of plain tensors and no model.
            MalformedFileError: Its weights are not those that its architecture uses.
        """
        if model.forward is None or model.hyperparameters is None:
            raise no_model(model)
        self._forward, self._hp = cast("Forward", model.forward), model.hyperparameters
        calls = check_weights(self._forward, self._hp, model.tensors, model.path)
        specs = [call.arguments[-1] for call in calls]
        self._ropes = {spec.rope for spec in specs if isinstance(spec, Attention)}
        spare = spare_memory() if memory is None else memory
        self._weights = HeldWeights(model.tensors, np.dtype(precision), spare)
        self._ids: list[int] = []
        self._features: Array | None = None
        self._kept: dict[int, KeysAndValues] = {}

    def start(self, ids: Sequence[int], features: Array | None = None) -> Array:
        """Begins a new sequence.

        Args:
            ids: The prompt's tokens.
            features: What stands, in order, in place of an embedding where an id is negative: shape (number
                of these, hidden_size).

        Returns:
            The logits of the next token, shape (vocabulary,).

        Raises:
            UsageError: There are no ids, one is not in the vocabulary, or features are missing or too many.
        """
        found = token_ids([[max(each, 0) for each in ids]] if ids else [], self._hp.vocab_size)
        places = sum(each < 0 for each in ids)
        if places != (0 if features is None else len(features)):
            raise UsageError(f"{places} negative token ids, and not as many features in their place")
        self._ids, self._features = [*ids], features
        return self._compute_all(found.shape[1])

    def extend(self, token: int) -> Array:
        """Adds a token to the sequence; the logits of the next one, shape (vocabulary,)."""
        length = len(self._ids)
        self._ids.append(token)
        if any(rope.is_long(length) != rope.is_long(length + 1) for rope in self._ropes):
            # From here on all positions are rotated otherwise, and so all tokens mean something else.
            return self._compute_all(length + 1)
        self._weights.holding = True
        return self._compute(1)

    def _compute_all(self, length: int) -> Array:
        self._kept.clear()
        self._weights.holding = False
        return self._compute(length)

    def _compute(self, count: int) -> Array:
        """Takes the last ``count`` tokens through the decoder."""
        ops = _GrowingOps(self._weights, self._ids, count, self._features, self._kept)
        with threads.parallel(), np.errstate(all="ignore"):
            result = self._forward(ops, self._hp)
        logits: Array = result.at(np.array([count - 1]))[0]
        return logits


class _GrowingOps(NumpyOps):
    """The operations on the last tokens of a sequence: all, or one."""

    def __init__(
        self,
        weights: HeldWeights,
        ids: Sequence[int],
        count: int,
        features: Array | None,
        kept: dict[int, KeysAndValues],
    ) -> None:
        last = np.array([ids[-count:]], np.intp)
        super().__init__(weights.tensors, last, weights.dtype, features=features)
        self._weights: HeldWeights = weights
        self._length = len(ids)
        self._kept = kept

    def _rotary_table(self, rope: Rope, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        first = self._length - self._ids.shape[1]
        return layers.rotary_table(rope, self._length, dtype, first=first)

    def _attend(self, q: Array, k: Array, v: Array, layer: int, spec: Attention) -> Array:
        kept = self._kept.setdefault(layer, KeysAndValues(spec, k.dtype))
        kept.append(k[0], v[0])
        if self._length == self._ids.shape[1]:
            return super()._attend(q, k, v, layer, spec)
        return layers.attend_last(q[0, 0], *kept.visible()).reshape(1, -1)


class KeysAndValues:
    """Those of one layer, of the tokens that the next one sees."""

    def __init__(self, spec: Attention, dtype: np.dtype[Any]) -> None:
        self._window = spec.window
        self._length = 0
        self._arrays: NDArray[Any] = np.empty((2, spec.kv_heads, 0, spec.head_dim), dtype)

    def append(self, keys: Array, values: Array) -> None:
        """Adds those of new tokens, shape (tokens, kv_heads, head_dim)."""
        if self._window is not None:
            keys, values = keys[-self._window :], values[-self._window :]
        if self._length + len(keys) > self._arrays.shape[2]:
            self._make_room(len(keys))
        stop = self._length + len(keys)
        for kept, new in zip(self._arrays, (keys, values), strict=True):
            kept[:, self._length : stop] = new.transpose(1, 0, 2)
        self._length = stop

    def visible(self) -> tuple[Array, Array]:
        """Keys and values that the last token sees, each of shape (kv_heads, tokens, head_dim)."""
        first = self._first(self._length)
        keys, values = self._arrays[:, :, first : self._length]
        return keys, values

    def _make_room(self, count: int) -> None:
        """For new tokens, and half as many again, so that old ones are seldom moved."""
        old = self._arrays[:, :, self._first(self._length + 1) : self._length]
        self._length = old.shape[2]
        needed = self._length + count
        room = needed + max(needed // 2, 64)
        self._arrays = np.empty((*old.shape[:2], room, old.shape[3]), old.dtype)
        self._arrays[:, :, : self._length] = old

    def _first(self, length: int) -> int:
        """The oldest token that the last one of so many sees."""
        return 0 if self._window is None else max(length - self._window, 0)
