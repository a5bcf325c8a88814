"""What a weight is for."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Role"]


class Role(NamedTuple):
    """What a weight is for: its canonical name, its layer, and whether it is the matrix or the bias.

    Roles are always split (``attn_q``, ``attn_k``, ``attn_v``, ``ffn_gate``, ``ffn_up``), also where a
    checkpoint stores them fused: those are row views of one stored tensor.
    """

    name: str
    layer: int | None = None
    part: str = "weight"

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"layers.{self.layer}."
        return f"{layer}{self.name}.{self.part}"
