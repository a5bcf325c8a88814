"""What an architecture file says of a family: configuration, weights, decoder, and what runtimes call it.

Weights have *roles* (`phiconv.ir.model.Role`), and a family gives each role its name on the Hugging Face hub.
A name is a path below ``model.layers.N`` (those of `ENDS` are whole), to which a tensor adds ``.weight`` or
``.bias``. Roles of one name are its rows, in this order: a fused matrix. ``{e}`` is the number of an expert.
MLX and OpenVINO follow these names, ONNX and GGUF the roles; only where a runtime goes its own way does the
family say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Forward
    from phiconv.ir.model import Hyperparameters
    from phiconv.tokenization.tokenizer import SplitName

__all__ = ["ENDS", "Architecture", "Gguf", "Layout", "Mlx", "full_name"]

ENDS = ("token_embedding", "output_norm", "output")
"""Roles that belong to no layer."""

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Layout:
    """Other names that checkpoints have for some of the roles.

    A layer is stored so where it has the first of these tensors.

    Attributes:
        names: By role, as in `Architecture.names`.
        suffix: What a tensor of a matrix adds to the name.
    """

    names: Mapping[str, str]
    suffix: str = ".weight"


@dataclass(frozen=True, slots=True)
class Gguf:
    """What llama.cpp knows of a family.

    Attributes:
        name: ``general.architecture``, and the prefix of its keys.
        keys: The keys that its converter writes, in its order, without the prefix. One that ends in ``?`` is
            left out where it says what the runtime assumes anyway.
        neighbours: It rotates neighbouring dimensions, so rows of queries and keys stand by turns.
        tied: It loads a file without an output matrix.
        head_dim: It loads heads that do not add up to ``hidden_size``.
        bias_keys: It loads the biases that `Architecture.bias_keys` are about.
        tokenizer_keys: Keys of the tokenizer that its converter writes before all others of it.
        pre: What it calls a way of splitting text, where that is not the usual name.
        note: What it computes wrongly, "" if nothing.
    """

    name: str
    keys: Sequence[str]
    neighbours: bool = False
    tied: bool = True
    head_dim: bool = True
    bias_keys: bool = True
    tokenizer_keys: Sequence[str] = ()
    pre: Mapping[SplitName, str] = field(default_factory=lambda: MappingProxyType({}))
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mlx:
    """What mlx-lm knows of a family.

    Attributes:
        order: The roles of a layer as its network has them.
        keys: The keys of config.json that it reads, beyond those that every model has.
        names: Names of roles, where they are not those of the hub.
        biases: Roles that have a bias there in any case.
        tied: The output matrix may be the embedding.
    """

    order: Sequence[str]
    keys: Sequence[str]
    names: Mapping[str, str] = field(default_factory=lambda: _NONE)
    biases: tuple[str, ...] = ()
    tied: bool = True


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model family.

    Attributes:
        name: ``model_type`` in config.json.
        classes: Names under ``architectures`` in config.json, the hub's first.
        title: What people call it.
        parse: Validated config.json to hyperparameters.
        forward: What the decoder computes.
        names: The hub's names by role, in the order in which a checkpoint lists them.
        gguf, mlx: What these runtimes call it.
        hidden_act: The name of the activation in config.json.
        epsilon: The key of the normalisations' epsilon in config.json.
        biases: Roles that always have a bias.
        bias_keys: The keys of config.json that announce other biases, and the roles that these belong to. The
            tensors decide: published files are known to have the keys wrong.
        layouts: Other ways in which checkpoints store some roles.
        openvino: Names in an OpenVINO model, where they are not those of the hub.
        windowed: Its ``sliding_window`` in config.json counts.
        byte_level: The class that transformers 5 is to read a byte-level tokenizer with. It splits text like
            GPT-2, whatever the file says, where it finds a ``GPT2Tokenizer`` in another model than a Phi.
        mscales: LongRoPE's two factors of cos and sin are keys of ``rope_scaling``.
    """

    name: str
    classes: tuple[str, ...]
    title: str
    parse: Callable[[Config], Hyperparameters]
    forward: Forward
    names: Mapping[str, str]
    gguf: Gguf
    mlx: Mlx
    hidden_act: str = "silu"
    epsilon: str = "rms_norm_eps"
    biases: tuple[str, ...] = ()
    bias_keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    layouts: tuple[Layout, ...] = ()
    openvino: Mapping[str, str] = field(default_factory=lambda: _NONE)
    windowed: bool = False
    byte_level: str = "PreTrainedTokenizerFast"
    mscales: bool = False

    @property
    def optional_biases(self) -> frozenset[str]:
        """Roles that may have a bias."""
        return frozenset(role for roles in self.bias_keys.values() for role in roles)

    def group(self, role: str) -> tuple[str, ...]:
        """The roles that the hub stores in one matrix with this one, in order; () for no role of its."""
        return tuple(r for r, name in self.names.items() if name == self.names.get(role))

    def apart(self, role: str) -> str:
        """The name of a role that is stored by itself, the experts of a layer in one stack."""
        for names in (self.names, *(layout.names for layout in self.layouts if layout.suffix)):
            name = names.get(role, "{e}")
            if "{e}" not in name and list(names.values()).count(name) == 1:
                return name
        return self.names[role]

    def separate(self, role: str, expert: int) -> str:
        """The name of one expert's matrix."""
        return self.names[role].format(e=expert)


def full_name(role: str, name: str, layer: int | None) -> str:
    """A name as a checkpoint has it."""
    return name if role in ENDS else f"model.layers.{layer}.{name}"
