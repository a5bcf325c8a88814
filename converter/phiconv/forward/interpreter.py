"""Computes a model's logits with NumPy: the `Ops` whose values are arrays.

No weight stays in memory. A matrix is read, and dequantized if need be, some rows at a time, so a model may
be larger than memory; several short sequences in one call share the reading. There is no cache of keys and
values, which `generation` has: a call computes whole sequences.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.forward import layers, threads
from phiconv.forward.ops import ATTENTION_ROLES, HEAD_NORMS, check_weights, output_matrix
from phiconv.ir.model import Role
from phiconv.quantizers import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Activation, Attention, Forward, MixtureOfExperts
    from phiconv.ir import Tensor
    from phiconv.ir.model import Model
    from phiconv.ir.rope import Rope

__all__ = ["Logits", "Precision", "Watch", "Weights", "compute", "logits_of", "no_model"]

Precision: TypeAlias = Literal["float32", "float64"]
"""What to compute in. Weights are float32 at most; float64 shows how much of a difference is rounding."""

_TILE = 1 << 22
"""Weights of a matrix in memory of a thread: enough that a product with them runs at full speed."""

_PARTS = 4
"""Into how many parts a smaller matrix is cut, so that all threads have something to do."""

_PIECE = 1 << 20
"""Weights that are read and dequantized at a time: what lies between those two steps stays small."""


class Watch(Protocol):
    """Is shown what goes into each matrix, before the product."""

    def __call__(self, role: Role, x: Array, expert: int | None) -> None:
        """``x`` has one row per token: for a stacked matrix, those tokens that use this ``expert``."""


def compute(
    model: Model,
    ids: ArrayLike,
    *,
    precision: Precision = "float32",
    watch: Watch | None = None,
    features: Array | None = None,
) -> Logits:
    """Computes whole sequences of one length.

    Args:
        model: Its weights are read from its files, each once.
        ids: Token ids, shape (batch, length).
        precision: What to compute in.
        watch: Is shown what goes into each matrix but the output matrix.
        features: What stands, in order, at negative ids: features of pictures, of shape (number of these,
            hidden size).

    Returns:
        The logits at every position; the output matrix is first read when some are asked for.

    Raises:
        UnsupportedModelError: It is a file of plain tensors and no model.
        MalformedFileError: Its weights are not those that its architecture uses.
        UsageError: The ids are not of that shape, or not in the vocabulary.
    """
    if model.forward is None or model.hyperparameters is None:
        raise no_model(model)
    forward, hp = cast("Forward", model.forward), model.hyperparameters
    check_weights(forward, hp, model.tensors, model.path)
    checked = token_ids(ids, hp.vocab_size, features)
    ops = NumpyOps(model.tensors, checked, np.dtype(precision), watch, features)
    # What NaN and infinity in the weights make of the logits is the caller's business.
    with threads.parallel(), np.errstate(all="ignore"):
        return forward(ops, hp)


def logits_of(model: Model, hidden: Array, ids_shape: tuple[int, ...]) -> Logits:
    """The logits that follow from what a model's last layer gave, see `Logits.hidden`."""
    return Logits(hidden, ids_shape, Weights(model.tensors, hidden.dtype), Role("output"))


def no_model(model: Model) -> UnsupportedModelError:
    """What to say of plain tensors that somebody wants computed."""
    cure = (
        "'phiconv formats' lists the models" if model.format == "gguf" else "config.json must be beside them"
    )
    return UnsupportedModelError(
        "these are plain tensors and no model that can be computed", path=model.path, hint=cure
    )


def token_ids(ids: ArrayLike, vocabulary: int, features: Array | None = None) -> NDArray[np.intp]:
    """Ids as a matrix, checked; there are as many negative ones as there are features."""
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of several lengths
        array = np.empty(0)
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.size == 0:
        raise UsageError("token ids must be integers, sequences of one length", hint="shape (batch, length)")
    places = int((array < 0).sum())
    if features is not None and places != len(features):
        raise UsageError(f"{places} places for {len(features)} features of pictures")
    if (places and features is None) or array.max() >= vocabulary:
        wrong = array.min() if array.min() < 0 else array.max()
        raise UsageError(f"token id {wrong} is not in the vocabulary of {vocabulary}")
    return array.astype(np.intp)


_Matrix: TypeAlias = "tuple[Tensor, Array | None]"
"""A matrix and its bias."""


def _tiles(matrix: Tensor) -> Iterator[tuple[int, int]]:
    """The rows of a matrix that are multiplied with at a time: first and last one of each tile."""
    step = max(min(_TILE // max(matrix.columns, 1), -(-matrix.rows // _PARTS)), 1)
    for start in range(0, matrix.rows, step):
        yield start, min(start + step, matrix.rows)


class Weights:
    """A model's weights by role, in the precision to compute in."""

    def __init__(self, tensors: Mapping[Role, Tensor], dtype: np.dtype[Any]) -> None:
        self.tensors = tensors
        self.dtype = dtype

    def vector(self, role: Role, part: str = "weight") -> Array | None:
        """All of a vector, or None where the model has none."""
        tensor = self.tensors.get(role._replace(part=part))
        return None if tensor is None else self._rows(tensor, 0, tensor.rows).reshape(-1)

    def rows_at(self, role: Role, indices: NDArray[np.intp]) -> Array:
        """Rows of a matrix, each read once."""
        tensor = self.tensors[role]
        distinct, inverse = np.unique(indices, return_inverse=True)
        result = np.empty((len(distinct), tensor.columns), self.dtype)
        for i, row in enumerate(distinct.tolist()):
            result[i] = decode(tensor.read(row, row + 1), tensor.columns)[0]
        return result[inverse.reshape(-1)]

    def product(self, x: Array, matrix: Tensor, bias: Array | None = None) -> Array:
        """``x @ matrix.T + bias``, in tiles of rows of the matrix."""
        result = np.empty((len(x), matrix.rows), self.dtype)

        def multiply(start: int, stop: int) -> None:
            result[:, start:stop] = self._times(x, matrix, start, stop)

        self._by_tiles(matrix, len(x), multiply)
        if bias is not None:
            result += bias
        return result

    def gated(self, x: Array, gate: _Matrix, up: _Matrix, kind: Activation) -> Array:
        """``activate(product(x, gate)) * product(x, up)``, of which only the result is ever whole."""
        matrix = gate[0]
        result = np.empty((len(x), matrix.rows), self.dtype)

        def multiply(start: int, stop: int) -> None:
            parts = []
            for some, bias in (gate, up):
                parts.append(self._times(x, some, start, stop))
                if bias is not None:
                    parts[-1] += bias[start:stop]
            np.multiply(layers.ACTIVATIONS[kind](parts[0]), parts[1], out=result[:, start:stop])

        self._by_tiles(matrix, len(x), multiply)
        return result

    def _by_tiles(
        self,
        matrix: Tensor,
        tokens: int,  # noqa: ARG002 - `held` asks for it
        multiply: Callable[[int, int], None],
    ) -> None:
        """Calls a function for all rows of a matrix, which that many tokens go into, some rows at a time."""
        threads.run(partial(multiply, *tile) for tile in _tiles(matrix))

    def _times(self, x: Array, matrix: Tensor, start: int, stop: int) -> Array:
        """``x @ rows.T`` for some rows of a matrix."""
        result: Array = x @ self._rows(matrix, start, stop).T
        return result

    def _rows(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Rows of a matrix."""
        tile = np.empty((stop - start, tensor.columns), self.dtype)
        self._read_into(tile, tensor, start, stop)
        return tile

    def _read_into(self, tile: Array, tensor: Tensor, start: int, stop: int) -> None:
        """Reads rows of a matrix, a piece at a time."""
        step = max(_PIECE // max(tensor.columns, 1), 1)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            rows, read = tile[first - start : last - start], tensor.read(first, last)
            if self.dtype == np.float32:
                decode(read, tensor.columns, rows)
            else:
                rows[...] = decode(read, tensor.columns)


class Logits:
    """A result that is computed when it is asked for: all of it may be larger than the model.

    Attributes:
        shape: Batch, length, vocabulary. Positions count through the batch, ``sequence * length + position``.
        hidden: What the output matrix is multiplied with at every position, shape (positions, hidden_size).
    """

    def __init__(self, hidden: Array, ids_shape: tuple[int, ...], weights: Weights, role: Role) -> None:
        self.hidden = hidden
        self._weights = weights
        self._matrix = weights.tensors[output_matrix(weights.tensors)]
        self._bias = weights.vector(role, "bias")
        self.shape = (*ids_shape, self._matrix.rows)

    def at(self, positions: NDArray[np.intp]) -> Array:
        """The logits at some positions, shape (positions, vocabulary)."""
        with threads.parallel(), np.errstate(all="ignore"):
            return self._weights.product(self.hidden[positions], self._matrix, self._bias)

    def all(self) -> Array:
        """All of them, of the given shape."""
        return self.at(np.arange(len(self.hidden))).reshape(self.shape)


class NumpyOps:
    """The operations on arrays of shape (tokens, width), sequence after sequence (see `forward.Ops`)."""

    def __init__(
        self,
        tensors: Mapping[Role, Tensor],
        ids: NDArray[np.intp],
        dtype: np.dtype[Any],
        watch: Watch | None = None,
        features: Array | None = None,
    ) -> None:
        self._weights = Weights(tensors, dtype)
        self._ids = ids
        self._features = features
        self._watch = watch
        self._rotary: dict[object, tuple[Array, Array]] = {}

    def embed(self, role: Role, /) -> Array:
        ids = self._ids.reshape(-1)
        x = self._weights.rows_at(role, np.maximum(ids, 0))
        if self._features is not None and ids.min() < 0:
            x[ids < 0] = self._features
        return x

    def linear(self, x: Array, role: Role, /) -> Array:
        return self._weights.product(x, *self._matrix(x, role))

    def _matrix(self, x: Array, role: Role) -> _Matrix:
        """A matrix that ``x`` is to go into."""
        if self._watch is not None:
            self._watch(role, x, None)
        return self._weights.tensors[role], self._weights.vector(role, "bias")

    def rms_norm(self, x: Array, role: Role, epsilon: float, /) -> Array:
        return layers.rms_norm(x, self._vector(role), epsilon)

    def layer_norm(self, x: Array, role: Role, epsilon: float, /) -> Array:
        bias = self._vector(role._replace(part="bias"))
        return layers.layer_norm(x, self._vector(role), bias, epsilon)

    def _vector(self, role: Role) -> Array:
        vector = self._weights.vector(role, role.part)
        assert vector is not None  # noqa: S101 - check_weights has seen it
        return vector

    def add(self, a: Array, b: Array, /) -> Array:
        return a + b

    def activate(self, x: Array, kind: Activation, /) -> Array:
        return layers.ACTIVATIONS[kind](x)

    def gated(self, x: Array, gate: Role, up: Role, kind: Activation, /) -> Array:
        return self._weights.gated(x, self._matrix(x, gate), self._matrix(x, up), kind)

    def attention(self, x: Array, layer: int, spec: Attention, /) -> Array:
        return self._attend(*self._heads(x, layer, spec), layer, spec)

    def _heads(self, x: Array, layer: int, spec: Attention) -> tuple[Array, Array, Array]:
        """Queries, keys and values, rotated; shape (batch, length, heads, head_dim)."""
        batch, length = self._ids.shape
        if spec.rope not in self._rotary:
            self._rotary[spec.rope] = self._rotary_table(spec.rope, x.dtype)
        cos, sin = self._rotary[spec.rope]
        q, k, v = (
            self.linear(x, Role(name, layer)).reshape(batch, length, -1, spec.head_dim)
            for name in ATTENTION_ROLES
        )
        if spec.norm_epsilon is not None:
            q, k = (
                layers.rms_norm(x, self._vector(Role(name, layer)), spec.norm_epsilon)
                for x, name in zip((q, k), HEAD_NORMS, strict=True)
            )
        layers.rotate(q, cos, sin)
        layers.rotate(k, cos, sin)
        return q, k, v

    def _rotary_table(self, rope: Rope, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Cos and sin of the positions that are computed."""
        return layers.rotary_table(rope, self._ids.shape[1], dtype)

    def _attend(
        self,
        q: Array,
        k: Array,
        v: Array,
        layer: int,  # noqa: ARG002 - `generation` asks for it
        spec: Attention,
    ) -> Array:
        """What all heads of a layer make of queries, keys and values; shape (tokens, heads * head_dim)."""
        batch, length = self._ids.shape

        def attend(sequence: int, head: int) -> None:
            queries = slice(head * group, (head + 1) * group)
            y[sequence, :, queries] = layers.attend(
                q[sequence, :, queries],
                k[sequence, :, head : head + 1],
                v[sequence, :, head : head + 1],
                spec.window,
            )

        y, group = np.empty_like(q), spec.heads // spec.kv_heads
        threads.run(partial(attend, i, head) for i in range(batch) for head in range(spec.kv_heads))
        return y.reshape(batch * length, -1)

    def moe(self, x: Array, layer: int, spec: MixtureOfExperts, /) -> Array:
        chosen, weights = layers.sparse_mixer(self.linear(x, Role("router", layer)), spec)
        result = np.zeros_like(x)
        for expert in range(spec.count):
            tokens, order = np.nonzero(chosen == expert)
            if tokens.size:
                y = self._expert(x[tokens], layer, expert, spec.activation)
                result[tokens] += weights[tokens, order, None] * y
        return result

    def _expert(self, x: Array, layer: int, expert: int, kind: Activation) -> Array:
        gate, up = (self._stacked(x, Role(name, layer), expert) for name in ("experts_gate", "experts_up"))
        y = self._weights.gated(x, (gate, None), (up, None), kind)
        return self._weights.product(y, self._stacked(y, Role("experts_down", layer), expert))

    def _stacked(self, x: Array, role: Role, expert: int) -> Tensor:
        """One matrix of a stack, that ``x`` is to go into."""
        if self._watch is not None:
            self._watch(role, x, expert)
        stack = self._weights.tensors[role]
        rows = stack.shape[-2]
        matrices = stack.reshape((stack.rows, stack.columns))
        return matrices.slice_rows(expert * rows, (expert + 1) * rows)

    def logits(self, x: Array, role: Role, /) -> Logits:
        return Logits(x, self._ids.shape, self._weights, role)
