"""What a decoder computes, in ten operations, and nothing of how or where it is computed.

An architecture describes its decoder once, as a short function over `Ops`. Whoever implements `Ops`
interprets it: `interpreter` computes with NumPy, a writer emits the nodes of a graph, and `Recorder` writes
the calls down, so that a model can be checked before a byte of it is read.

The vocabulary stays high: attention and a mixture of experts are one operation each, because no smaller ones
mean the same to every runtime. So it has no reshape and no softmax, no positions, masks or caches, no dtypes,
and no names of nodes. Weights are named by `Role`, always split as roles are. A bias is no argument: a matrix
or a normalisation has one where the model has a weight with its role and the part "bias".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from phiconv.errors import MalformedFileError
from phiconv.ir.model import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from phiconv.ir.model import Hyperparameters
    from phiconv.ir.rope import Rope

__all__ = [
    "ATTENTION_ROLES",
    "EXPERT_ROLES",
    "HEAD_NORMS",
    "Activation",
    "Attention",
    "Call",
    "Forward",
    "MixtureOfExperts",
    "Ops",
    "Recorder",
    "check_weights",
    "output_matrix",
]

V = TypeVar("V")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Activation: TypeAlias = Literal["silu", "gelu_tanh", "gelu", "quick_gelu", "relu"]
"""``silu(x) = x / (1 + exp(-x))`` (https://arxiv.org/abs/1702.03118), also called swish; ``gelu(x) = x / 2 *
(1 + erf(x / sqrt(2)))`` (https://arxiv.org/abs/1606.08415), and there as approximations of it ``gelu_tanh(x)
= x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``, "gelu_new", and ``quick_gelu(x) = x / (1 +
exp(-1.702 * x))``. All but the first and the third are only in encoders.
"""

ATTENTION_ROLES = ("attn_q", "attn_k", "attn_v")
"""The matrices that `Ops.attention` reads."""

HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
"""The norms that it reads, where there are any; one vector for all heads."""

EXPERT_ROLES = ("router", "experts_gate", "experts_up", "experts_down")
"""The matrices that `Ops.moe` reads; those of the experts are stacked."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention.

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads; each serves ``heads / kv_heads`` neighbouring query heads.
        head_dim: Dimensions of a head; scores are divided by its square root.
        rope: What rotates queries and keys.
        window: Positions that a token attends to, itself included; None for all before it.
        norm_epsilon: Queries and keys go through an RMSNorm, head by head, before they are rotated, with this
            epsilon; None for no norm.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    window: int | None = None
    norm_epsilon: float | None = None

    @staticmethod
    def of(hp: Hyperparameters, *, normed: bool = False) -> Attention:
        """The attention of a model whose layers are all alike, with or without norms of queries and keys."""
        return Attention(
            hp.num_attention_heads,
            hp.num_key_value_heads,
            hp.head_dim,
            hp.rope,
            hp.sliding_window,
            hp.norm_epsilon if normed else None,
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """The weights that `Ops.attention` reads."""
        return (*ATTENTION_ROLES, *(HEAD_NORMS if self.norm_epsilon is not None else ()))


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """One layer's experts, chosen by the sparse mixer (https://arxiv.org/abs/2409.12136).

    The mixer chooses ``used`` experts, one after the other: the one with the best score among those that are
    left. Its weight is its softmax over the scores that are left and near: those for which ``(best - score) /
    max(abs(score), best)`` is at most ``2 * jitter``. The weights of a token need not add up to 1.

    Attributes:
        count: How many experts there are.
        used: How many a token uses.
        jitter: What counts as near.
        activation: Each expert is ``down(activation(gate(x)) * up(x))``.
    """

    count: int
    used: int
    jitter: float
    activation: Activation

    @staticmethod
    def of(hp: Hyperparameters, activation: Activation) -> MixtureOfExperts:
        """The experts of a model whose layers are all alike."""
        assert hp.experts is not None  # noqa: S101 - a dense architecture does not ask
        return MixtureOfExperts(hp.experts.count, hp.experts.used, hp.experts.jitter, activation)


class Ops(Protocol[V, R_co]):
    """The operations. ``V`` is what stands for a value between two of them, ``R_co`` for the logits.

    Values have one vector per token; the tokens and their positions are the interpreter's business.
    """

    def embed(self, role: Role, /) -> V:
        """The rows of a matrix at the token ids."""

    def linear(self, x: V, role: Role, /) -> V:
        """``x @ weight.T + bias``."""

    def rms_norm(self, x: V, role: Role, epsilon: float, /) -> V:
        """``x / sqrt(mean(x**2) + epsilon) * weight``."""

    def layer_norm(self, x: V, role: Role, epsilon: float, /) -> V:
        """``(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias``."""

    def add(self, a: V, b: V, /) -> V:
        """The sum of two values: a residual connection."""

    def activate(self, x: V, kind: Activation, /) -> V:
        """A function of each number."""

    def gated(self, x: V, gate: Role, up: Role, kind: Activation, /) -> V:
        """``activation(linear(x, gate)) * linear(x, up)``."""

    def attention(self, x: V, layer: int, spec: Attention, /) -> V:
        """Causal self-attention: the matrices of queries, keys and values included, the output matrix not."""

    def moe(self, x: V, layer: int, spec: MixtureOfExperts, /) -> V:
        """The weighted sum of the chosen experts, router included."""

    def logits(self, x: V, role: Role, /) -> R_co:
        """The model's result: ``x @ weight.T + bias`` with the weight that `output_matrix` says."""


class Forward(Protocol):
    """A decoder, from token ids to logits."""

    def __call__(self, ops: Ops[V, R], hp: Hyperparameters, /) -> R:
        """Walks through the layers."""


def output_matrix(tensors: Collection[Role]) -> Role:
    """The role of the output matrix: the embedding's where it is tied, that is, has no weight of its own."""
    own = Role("output")
    return own if own in tensors else Role("token_embedding")


class Call(NamedTuple):
    """An operation that a decoder asked for, and the weights that it reads, biases left out."""

    operation: str
    arguments: tuple[object, ...]
    roles: tuple[Role, ...]


class Recorder:
    """An `Ops` that computes nothing and keeps a list of what it was asked for.

    A value is the number of the call that makes it.

    Attributes:
        calls: In order.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def _record(self, operation: str, arguments: tuple[object, ...], *roles: Role) -> int:
        self.calls.append(Call(operation, arguments, roles))
        return len(self.calls) - 1

    def embed(self, role: Role, /) -> int:
        """See `Ops.embed`."""
        return self._record("embed", (role,), role)

    def linear(self, x: int, role: Role, /) -> int:
        """See `Ops.linear`."""
        return self._record("linear", (x, role), role)

    def rms_norm(self, x: int, role: Role, epsilon: float, /) -> int:
        """See `Ops.rms_norm`."""
        return self._record("rms_norm", (x, role, epsilon), role)

    def layer_norm(self, x: int, role: Role, epsilon: float, /) -> int:
        """See `Ops.layer_norm`."""
        return self._record("layer_norm", (x, role, epsilon), role)

    def add(self, a: int, b: int, /) -> int:
        """See `Ops.add`."""
        return self._record("add", (a, b))

    def activate(self, x: int, kind: Activation, /) -> int:
        """See `Ops.activate`."""
        return self._record("activate", (x, kind))

    def gated(self, x: int, gate: Role, up: Role, kind: Activation, /) -> int:
        """See `Ops.gated`."""
        return self._record("gated", (x, gate, up, kind), gate, up)

    def attention(self, x: int, layer: int, spec: Attention, /) -> int:
        """See `Ops.attention`."""
        return self._record("attention", (x, layer, spec), *(Role(name, layer) for name in spec.roles))

    def moe(self, x: int, layer: int, spec: MixtureOfExperts, /) -> int:
        """See `Ops.moe`."""
        return self._record("moe", (x, layer, spec), *(Role(name, layer) for name in EXPERT_ROLES))

    def logits(self, x: int, role: Role, /) -> int:
        """See `Ops.logits`."""
        return self._record("logits", (x, role), role)


def check_weights(
    forward: Forward, hp: Hyperparameters, tensors: Collection[Role], path: Path
) -> tuple[Call, ...]:
    """Checks that a decoder uses every weight of a model, and that the model has every weight it uses.

    Reads no weight. A bias counts as used where the weight that it belongs to is.

    Returns:
        What the decoder asks for.

    Raises:
        MalformedFileError: A weight is missing, or nothing uses it.
    """
    recorder = Recorder()
    forward(recorder, hp)
    needed = set(_needed(recorder.calls, tensors))
    allowed = needed | {role._replace(part="bias") for call in recorder.calls for role in call.roles}
    for fault, roles in (
        ("this weight is missing", needed - {*tensors}),
        ("nothing uses this weight", {*tensors} - allowed),
    ):
        if roles:
            raise MalformedFileError(fault, path=path, at=f"weight {min(map(str, roles))}")
    return tuple(recorder.calls)


def _needed(calls: Collection[Call], tensors: Collection[Role]) -> Iterator[Role]:
    """The weights that must be there: a layer_norm's bias is part of it, a matrix may do without."""
    for call in calls:
        for role in call.roles:
            yield output_matrix(tensors) if call.operation == "logits" else role
            if call.operation == "layer_norm":
                yield role._replace(part="bias")
