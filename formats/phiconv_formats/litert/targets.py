"""What differs between the processors that LiteRT runs a model on, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import UnsupportedModelError, UsageError
from phiconv_formats.litert.inputs import Step

if TYPE_CHECKING:
    from phiconv.ir.model import Model

__all__ = ["TARGETS", "Target", "context_of"]

_USUAL_CONTEXT = 4096
_MOST = 1 << 20
"""Positions; a table of cos and sin has a row for each."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of processor.

    Attributes:
        lengths: How many tokens each prefill takes; () for a cache, and a prefill, of any length.
        norm_scale: What goes into an RMSNorm is multiplied by this power of two: a GPU computes in float16,
            in which squares of more than 255 are infinite. No bit of a float32 result depends on it.
        backends: What the file says that it runs on; "" for nothing.
    """

    lengths: tuple[int, ...] = ()
    norm_scale: float = 1.0
    backends: str = ""

    def steps(self, context: int) -> tuple[Step, ...]:
        """The signatures of a file for so many positions."""
        return Step.static(context, self.lengths) if self.lengths else Step.dynamic()


TARGETS = {
    "cpu": Target(backends="cpu"),
    # The runtime takes the longest that fits until it does not, then the shortest that holds the rest.
    "gpu": Target(lengths=(1024, 256, 64, 8), norm_scale=1 / 64),
}
"""Every target, by the name that ``--target`` takes; the first is the usual one."""


def context_of(model: Model, asked: int | None) -> int:
    """How many positions a file has room for.

    Args:
        model: The model.
        asked: What the user wants; None for 4096, or as many as the model was trained for if those are fewer.

    Raises:
        UsageError: The model was trained for fewer.
        UnsupportedModelError: Its config.json says more than any model has.
    """
    assert model.hyperparameters is not None  # noqa: S101 - names.output_tensors has looked
    most = model.hyperparameters.max_position_embeddings
    context = asked or min(_USUAL_CONTEXT, most)
    if context > most:
        raise UsageError(
            f"--context {context}: this model is for {most} positions at most",
            hint="give no more, or leave it out",
        )
    if context > _MOST:
        raise UnsupportedModelError(
            f"a context of {context} positions", path=model.path, hint=f"at most {_MOST} can be written"
        )
    return context
