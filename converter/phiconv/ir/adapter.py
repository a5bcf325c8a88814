"""What an adapter (LoRA) does to a model: products of two thin matrices to add, and tensors to replace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.ir import Tensor

__all__ = ["Adapter", "LowRank"]


@dataclass(frozen=True, slots=True, repr=False)
class LowRank(Brief):
    """``W + scale * (B @ A)``; with a magnitude (DoRA), each row of that brought to the length that it says.

    Attributes:
        a: "A", shape (rank, columns).
        b: "B", shape (rows, rank).
        scale: What the product is multiplied with.
        magnitude: The lengths of the rows, shape (rows,); None for as they come out.
        transposed: It is the transpose of ``B @ A`` that is added, as PEFT has it for embeddings.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that it is for."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    def slice_rows(self, start: int, stop: int) -> LowRank:
        """What happens to rows ``start`` to ``stop``, as a view."""
        if (start, stop) == (0, self.shape[0]):
            return self
        if self.transposed:
            raise IndexError("an embedding is not cut")
        magnitude = None if self.magnitude is None else self.magnitude.slice_rows(start, stop)
        return replace(self, b=self.b.slice_rows(start, stop), magnitude=magnitude)


@dataclass(frozen=True, slots=True, repr=False)
class Adapter(Brief):
    """An adapter that was opened; its weights are read when they are needed.

    Attributes:
        path: Its folder.
        file: Where its tensors are.
        stored: Every tensor under its own name in the file.
        changes: What is added, by the name that the hub has for the matrix, without ``.weight``.
        replaced: Tensors that stand for the model's own, by the hub's names.
        alpha: PEFT's ``lora_alpha``, before patterns and ranks.
        config: adapter_config.json.
    """

    path: Path
    file: Path
    stored: Mapping[str, Tensor]
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    alpha: float = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)
