"""What a model is, whatever file it came from and whatever runtime it goes to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from phiconv.brief import Brief
from phiconv.ir.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from phiconv.ir import Tensor
    from phiconv.ir.adapter import Adapter
    from phiconv.ir.rope import Rope
    from phiconv.ir.senses import Senses
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "Experts",
    "HubTensor",
    "Hyperparameters",
    "Model",
    "ModelCard",
    "Role",
    "RoleRows",
    "as_text",
    "name_of",
    "title_of",
]

_HALF = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def name_of(path: Path) -> str:
    """What a model is called after the place that it is in: its folder, in the hub's cache the repository."""
    folder = (path if path.is_dir() else path.parent).resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name


def title_of(path: Path) -> str:
    """`name_of` as text for a file: see `as_text`."""
    return as_text(name_of(path))


def as_text(name: str) -> str:
    """A file's name as text on one line: bytes that are no UTF-8 as U+FFFD, control characters as spaces."""
    return _CONTROL.sub(" ", _HALF.sub("\ufffd", name))


class RoleRows(NamedTuple):
    """Rows ``start`` to ``stop`` of a weight, seen as a matrix."""

    role: Role
    start: int
    stop: int


@dataclass(frozen=True, slots=True, repr=False)
class HubTensor(Brief):
    """A tensor of the checkpoint that the model's family has on the Hugging Face hub.

    Attributes:
        shape: Outermost dimension first.
        rows: What it is made of, one after the other.
    """

    shape: tuple[int, ...]
    rows: tuple[RoleRows, ...]


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts.

    Attributes:
        count: How many there are.
        used: How many a token uses.
        jitter: The router compares a token's best expert with those whose scores are within twice this
            fraction of it. (In training it was the range of a random factor, which gave it its name.)
    """

    count: int
    used: int
    jitter: float = 0.01


@dataclass(frozen=True, slots=True, repr=False)
class Hyperparameters(Brief):
    """The validated numbers of a decoder; every architecture fills all of them.

    Attributes:
        norm_epsilon: Of every normalisation of the model.
        head_dim: Dimensions of one attention head; heads * head_dim need not be hidden_size.
        sliding_window: Positions that a token attends to, itself included; None for all.
        tie_word_embeddings: The output matrix is the embedding matrix.
        experts: None for a dense model.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_epsilon: float
    rope: Rope
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    experts: Experts | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ModelCard(Brief):
    """What the files around the weights say about the model's name and origin, as read.

    Attributes:
        folder: Where they are; None where the weights' own file says it.
        config: config.json.
        generation: generation_config.json.
        preprocessor: preprocessor_config.json.
        supplied: What the source does not say and was taken for granted, one sentence each.
    """

    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    supplied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint(Brief):
    """What a reader finds, before anybody knows what model it is.

    Attributes:
        path: What was opened.
        format: The format it is stored in, a key of ``phiconv_formats.FORMATS``.
        stored: Every tensor under its own name in the file, in the file's order.
        config: The object of config.json, made up where the format says the same in another way; None for a
            file of plain tensors.
        config_path: The file it comes from.
        read_tokenizer: Takes the model's vocabulary size; None where there is no tokenizer.
        card: Name and origin.
        metadata: The file's own key/value pairs, where the format has them.
        tensors: The same weights under the names of Hugging Face checkpoints; None where ``stored`` has them.
        left_out: What of a multimodal model is in the files and not among the tensors, which are the text
            part alone, a sentence; else "".
    """

    path: Path
    format: str
    stored: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    config_path: Path | None = None
    read_tokenizer: Callable[[int], Tokenizer | None] = lambda _: None
    card: ModelCard = field(default_factory=ModelCard)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] | None = None
    left_out: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Model(Brief):
    """A model that was opened; its weights are read when they are needed.

    Attributes:
        path: What was opened.
        format: The format it is stored in, a key of ``phiconv_formats.FORMATS``.
        stored: Every tensor under its own name in the file, in the file's order; of a multimodal checkpoint
            those of its text part.
        architecture: Key of ``phiconv.architectures.ARCHITECTURES``; None for a file of plain tensors.
        hyperparameters: None exactly where ``architecture`` is.
        tensors: The weights by role; empty exactly where ``architecture`` is None.
        hub: What the hub's checkpoints make of those roles, by name and in their order.
        tokenizer: None where there is none.
        card: Name and origin.
        metadata: The file's own key/value pairs, where the format has them.
        forward: What the decoder computes, see `phiconv.forward.ops.Forward`; None exactly where
            ``architecture`` is.
        merged: The adapters that are part of the weights, one sentence each.
        adapters: These adapters themselves.
        own_adapters: Those that come with the checkpoint and are merged only if asked for by these names, or
            their folders.
        left_out: What a multimodal checkpoint holds beside this model of text, a sentence; else "".
        senses: The encoders of a multimodal checkpoint; None for a model of text alone.
        opened: The files that were read to open it; of those that hold weights only the heads.
    """

    SHOWN = (
        "path",
        "format",
        "architecture",
        "hyperparameters",
        "size",
        "stored",
        "tensors",
        "tokenizer",
        "senses",
        "merged",
    )

    path: Path
    format: str
    stored: Mapping[str, Tensor]
    architecture: str | None = None
    hyperparameters: Hyperparameters | None = None
    tensors: Mapping[Role, Tensor] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    card: ModelCard = field(default_factory=ModelCard)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    hub: Mapping[str, HubTensor] = field(default_factory=dict)
    forward: Callable[[Any, Hyperparameters], object] | None = None
    merged: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    own_adapters: Mapping[str, Adapter | Path] = field(default_factory=dict)
    left_out: str = ""
    senses: Senses | None = None
    opened: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of weights stored."""
        return sum(t.size for t in self.stored.values())

    def bare(self) -> Model:
        """What it takes to compute it and no more: little to send to another process."""
        return Model(
            self.path,
            self.format,
            {},
            self.architecture,
            self.hyperparameters,
            self.tensors,
            forward=self.forward,
        )
