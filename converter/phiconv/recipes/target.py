"""What the module of a target's recipes has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from phiconv.ir import Encoding, FloatEncoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.grammar import Grammar
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["Recipes"]


class Recipes(Protocol):
    """The recipes of one target: what its module in this package has.

    Attributes:
        PRESETS: What ``--q4``, ``--q8``, ``--f16``, ``--bf16`` and ``--f32`` mean.
        RECIPES: How its recipes are called.
        TYPES: What a single matrix can be turned into.
        OPTIONS: The fields of `Choices` that it knows what to do with.
    """

    @property
    def PRESETS(self) -> Mapping[str, str]: ...  # noqa: D102, N802
    @property
    def RECIPES(self) -> Grammar: ...  # noqa: D102, N802
    @property
    def TYPES(self) -> Grammar: ...  # noqa: D102, N802
    @property
    def OPTIONS(self) -> Collection[str]: ...  # noqa: D102, N802

    def assign(
        self, recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices, /
    ) -> list[Encoding]:
        """The encoding of every tensor."""

    def type_of(self, name: str, /) -> object:
        """What a single tensor is turned into, by its name; an unknown one raises `UsageError`."""

    def cast(self, recipe: str, model: Model, choices: Choices, /) -> FloatEncoding | None:
        """What weights are rounded to before they are quantized; None for as they are."""
