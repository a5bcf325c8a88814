"""What an encoder of pictures computes, and nothing of how or where: the counterpart of `ops` for encoders.

Values have one vector per patch, crop by crop, and after `EncoderOps.arrange` one per feature. How many crops
a picture has, which of its patches show something, and the pixels themselves are the interpreter's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from phiconv.errors import MalformedFileError
from phiconv.forward.ops import ATTENTION_ROLES
from phiconv.ir.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from phiconv.forward.ops import Activation
    from phiconv.ir.senses import Encoder, Vision

__all__ = [
    "EncoderAttention",
    "EncoderCall",
    "EncoderOps",
    "EncoderRecorder",
    "Merging",
    "Positions",
    "check_calls",
    "record",
    "vision",
]

V = TypeVar("V")

Positions: TypeAlias = Literal["table", "buckets", "resized"]
"""Which row of the table of positions is added to a patch.

    table    the row of the patch's own number
    buckets  the rows and columns of patches that show something are spread over those of the table, which is
             a square (https://arxiv.org/abs/2307.06304); patches that show nothing have the first row
    resized  the table, a square, is made as large as the picture: bilinear, with antialiasing
"""

Merging: TypeAlias = Literal["stack", "mean"]
"""What becomes of two by two patches: one long vector, row by row, or their mean."""


def vision(name: str, layer: int | None = None, part: str = "weight") -> Role:
    """A role in an encoder of pictures."""
    return Role(f"vision.{name}", layer, part)


@dataclass(frozen=True, slots=True)
class EncoderAttention:
    """One layer's attention: every patch of a crop attends to all that show something.

    Attributes:
        heads: How many.
        head_dim: Dimensions of a head; scores are divided by its square root.
        encoder: What its roles begin with.
    """

    heads: int
    head_dim: int

    encoder: str = "vision"

    @property
    def roles(self) -> tuple[str, ...]:
        """The matrices that it reads."""
        return tuple(f"{self.encoder}.{name}" for name in ATTENTION_ROLES)


class EncoderOps(Protocol[V]):
    """The operations; ``V`` is what stands for a value between two of them."""

    def patches(self, role: Role, parameters: Vision, /) -> V:
        """The picture's patches, each as one vector: ``patch @ weight.T + bias``."""

    def with_class(self, x: V, role: Role, /) -> V:
        """A vector of the model's own in front of those of each crop."""

    def without_class(self, x: V, /) -> V:
        """The first vector of each crop taken away."""

    def positions(self, x: V, role: Role, how: Positions, /) -> V:
        """The sum with a vector for each place."""

    def linear(self, x: V, role: Role, /) -> V:
        """``x @ weight.T + bias``."""

    def layer_norm(self, x: V, role: Role, epsilon: float, /) -> V:
        """``(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias``."""

    def add(self, a: V, b: V, /) -> V:
        """The sum of two values."""

    def activate(self, x: V, kind: Activation, /) -> V:
        """A function of each number."""

    def attention(self, x: V, layer: int, spec: EncoderAttention, /) -> V:
        """Self-attention in both directions; queries, keys and values included, the output matrix not."""

    def merge(self, x: V, how: Merging, /) -> V:
        """Two by two neighbouring patches as one."""

    def arrange(self, x: V, row_end: Role, separator: Role, /) -> V:
        """The crops side by side as one picture, then the small one; each row ends in ``row_end``.

        Between the two stands ``separator``. Only rows and columns that show something are there.
        """


class EncoderCall(NamedTuple):
    """An operation that an encoder asked for, and the weights that it reads, biases left out."""

    operation: str
    roles: tuple[Role, ...]


class EncoderRecorder:
    """Operations that compute nothing: each is written down, and its value is the number of the call.

    Attributes:
        calls: In order.
    """

    def __init__(self) -> None:
        self.calls: list[EncoderCall] = []

    def __getattr__(self, operation: str) -> Callable[..., int]:
        """Any operation, of `EncoderOps` or of another vocabulary whose weights are arguments."""

        def written_down(*arguments: object) -> int:
            roles = [each for each in arguments if isinstance(each, Role)]
            for before, spec in pairwise(arguments):
                if isinstance(spec, EncoderAttention) and isinstance(before, int):
                    roles += [Role(name, before) for name in spec.roles]
            self.calls.append(EncoderCall(operation, tuple(roles)))
            return len(self.calls) - 1

        return written_down


def record(encoder: Encoder) -> tuple[EncoderCall, ...]:
    """What an encoder asks for from the pixels to the features, in order."""
    recorder = EncoderRecorder()
    x = encoder.tower(recorder, encoder.parameters)
    encoder.project(recorder, encoder.arrange(recorder, x, encoder.parameters), encoder.parameters)
    return tuple(recorder.calls)


def check_calls(calls: Collection[EncoderCall], tensors: Collection[Role], path: Path) -> None:
    """Checks that an encoder has every weight that it uses, and no other among its roles.

    Raises:
        MalformedFileError: A weight is missing, or nothing uses it.
    """
    needed = {role for call in calls for role in call.roles}
    used = needed | {role._replace(part="bias") for role in needed}
    for fault, roles in (
        ("this weight is missing", needed - {*tensors}),
        ("nothing uses this weight", {*tensors} - used),
    ):
        if roles:
            raise MalformedFileError(fault, path=path, at=f"weight {min(map(str, roles))}")
