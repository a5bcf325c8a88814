"""A tensor in memory, for tests of what is made of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phiconv import ir
from phiconv.quantizers import encode


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """Rows of floats, in an encoding when they are read (an `ir.Source`); a label may say "changed"."""

    values: Any
    encoding: ir.Encoding = ir.F32
    label: str = "rows"

    def read(self, start: int, stop: int) -> ir.Encoded:
        """Rows ``start`` to ``stop``."""
        return encode(self.values[start:stop], self.encoding)

    def changed(self) -> bool:
        """Whether the label says so."""
        return self.label == "changed"


def in_memory(values: Any, encoding: ir.Encoding = ir.F32, label: str = "rows") -> ir.Tensor:
    """A matrix, shape (rows, columns), as a tensor."""
    return ir.Tensor.of(MemoryRows(values, encoding, label), values.shape)
