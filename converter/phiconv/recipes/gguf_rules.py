"""The rules of llama-quantize's recipes, one a line, and what they may ask about a tensor.

Facts from llama.cpp's src/llama-quant.cpp (release v0.5.0), as far as they concern the Phi architectures. The
first rule that fits a tensor replaces the recipe's default type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RULES", "Place", "Rule"]


# -------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule may ask about.

    Attributes:
        index, count: Number of the tensor among those of its category, and how many there are.
        gqa: Attention heads per key/value head.
        experts: Experts of the model, 0 if it is dense.
        stacked: The tensor holds the matrices of several experts.
        importance: There is an importance matrix.
        divides: Its rows divide into blocks of the recipe's default type.
    """

    index: int
    count: int
    gqa: int
    experts: int
    stacked: bool
    importance: bool
    divides: bool


def _always(_: Place) -> bool:
    return True


def _gqa_4(p: Place) -> bool:
    return p.gqa >= 4


def _gqa_or_experts_4(p: Place) -> bool:
    return p.gqa >= 4 or p.experts >= 4


def _experts_8(p: Place) -> bool:
    return p.experts == 8  # Mixtral's number


def _stacked(p: Place) -> bool:
    return p.stacked


def _uneven(p: Place) -> bool:
    return not p.divides


def _first_2(p: Place) -> bool:
    return p.index < 2


def _first_4(p: Place) -> bool:
    return p.index < 4


def _first_eighth(p: Place) -> bool:
    return p.index < p.count // 8


def _first_eighth_unweighted(p: Place) -> bool:
    return _first_eighth(p) and not p.importance


def _first_eighth_weighted(p: Place) -> bool:
    return _first_eighth(p) and p.importance


def _first_sixteenth(p: Place) -> bool:
    return p.index < p.count // 16


def _middle(p: Place) -> bool:
    return p.count // 8 <= p.index < 7 * p.count // 8


def _more_bits(p: Place) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return not _middle(p) or (p.index - p.count // 8) % 3 == 2


def _more_bits_experts_8(p: Place) -> bool:
    return _experts_8(p) and _more_bits(p)


# ------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, slots=True)
class Rule:
    """In these recipes ("" for all), tensors of this category ("" for any) get this type, if it applies."""

    recipes: str
    category: str
    type: str
    where: Callable[[Place], bool] = _always

    def fits(self, recipe: str, category: str, place: Place) -> bool:
        """Whether the rule is for a tensor of this category at this place."""
        return (
            (not self.recipes or recipe in self.recipes.split())
            and self.category in {"", category}
            and self.where(place)
        )


_LOW = "IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M"

RULES = (
    # The output matrix; also the embedding, where it is both.
    Rule("MXFP4_MOE", "output", "Q8_0"),
    Rule("", "output", "Q8_0", _uneven),
    Rule(f"{_LOW} IQ3_XXS", "output", "Q5_K"),
    Rule("Q8_0", "output", "Q8_0"),
    Rule("", "output", "Q6_K"),
    Rule("MXFP4_MOE", "", "MXFP4", _stacked),
    Rule("MXFP4_MOE", "", "Q8_0"),
    Rule("IQ2_XXS IQ2_XS IQ1_S IQ1_M", "token_embd", "Q2_K"),
    Rule("IQ2_S IQ2_M IQ3_XXS", "token_embd", "IQ3_S"),
    Rule("TQ1_0 TQ2_0", "token_embd", "Q4_K"),
    # Below three bits.
    Rule(_LOW, "attn_v", "Q4_K", _gqa_or_experts_4),
    Rule("IQ2_S IQ2_M", "attn_v", "IQ3_S"),
    Rule(_LOW, "attn_v", "Q2_K"),
    Rule(_LOW, "attn_k", "Q4_K", _experts_8),
    Rule("IQ2_S IQ2_M", "ffn_down", "IQ3_S", _first_eighth),
    Rule(_LOW, "ffn_down", "Q2_K", _first_eighth),
    Rule(_LOW, "attn_output", "Q5_K", _experts_8),
    Rule("IQ1_S IQ1_M", "attn_output", "IQ2_XXS"),
    Rule("IQ2_S IQ2_M", "attn_output", "IQ3_S"),
    # Values.
    Rule("", "attn_v", "Q8_0", _experts_8),
    Rule("Q2_K", "attn_v", "Q4_K", _gqa_4),
    Rule("Q2_K", "attn_v", "Q3_K"),
    Rule("Q2_K_S IQ3_XXS IQ3_XS IQ3_S", "attn_v", "Q4_K", _gqa_4),
    Rule("IQ3_M", "attn_v", "Q4_K"),
    Rule("Q3_K_M", "attn_v", "Q5_K", _first_2),
    Rule("Q3_K_M", "attn_v", "Q4_K"),
    Rule("Q3_K_L", "attn_v", "Q5_K"),
    Rule("IQ4_NL IQ4_XS", "attn_v", "Q5_K", _gqa_4),
    Rule("Q4_K_M Q5_K_M", "attn_v", "Q6_K", _more_bits),
    Rule("Q4_K_S", "attn_v", "Q5_K", _first_4),
    # Keys and queries.
    Rule("", "attn_k", "Q8_0", _experts_8),
    Rule("IQ3_XS", "attn_k", "IQ3_XXS"),
    Rule("IQ3_XS", "attn_q", "IQ3_XXS"),
    Rule("IQ3_XXS", "attn_k", "IQ2_S"),
    Rule("IQ3_XXS", "attn_q", "IQ2_S"),
    # The way out of the feed-forward part.
    Rule("Q2_K", "ffn_down", "Q3_K"),
    Rule("Q2_K_S", "ffn_down", "Q4_K", _first_eighth),
    Rule("Q3_K_M", "ffn_down", "Q5_K", _first_sixteenth),
    Rule("Q3_K_M", "ffn_down", "Q4_K"),
    Rule("IQ3_M", "ffn_down", "Q4_K", _first_eighth),
    Rule("IQ3_M", "ffn_down", "Q4_K", _more_bits_experts_8),
    Rule("Q3_K_L", "ffn_down", "Q5_K"),
    Rule("Q4_K_M Q5_K_M", "ffn_down", "Q6_K", _more_bits),
    Rule("IQ4_NL IQ4_XS", "ffn_down", "Q5_K", _first_eighth_unweighted),
    Rule("Q4_K_S", "ffn_down", "Q5_K", _first_eighth),
    Rule("Q4_0", "ffn_down", "Q4_1", _first_eighth_weighted),
    Rule("Q5_0", "ffn_down", "Q5_1", _first_eighth_weighted),
    # The way out of the attention.
    Rule(
        "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS",
        "attn_output",
        "Q5_K",
        _experts_8,
    ),
    Rule("", "attn_output", "", _experts_8),  # no other rule for them
    Rule("Q2_K", "attn_output", "Q3_K"),
    Rule("IQ3_XXS", "attn_output", "IQ3_S"),
    Rule("Q3_K_M IQ3_M", "attn_output", "Q4_K"),
    Rule("Q3_K_L", "attn_output", "Q5_K"),
    # The way into the feed-forward part.
    Rule("IQ3_XS", "ffn_gate", "IQ3_XXS", _middle),
    Rule("IQ3_XS", "ffn_up", "IQ3_XXS", _middle),
)
