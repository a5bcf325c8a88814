"""The model families that phiconv understands, one file each, and the ones that it knows by name only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phiconv.architectures.architecture import Architecture
from phiconv.architectures.heads import same_weights
from phiconv.architectures.llama import LLAMA
from phiconv.architectures.multimodal import kind_of
from phiconv.architectures.phi import PHI
from phiconv.architectures.phi3 import PHI3
from phiconv.architectures.phimoe import PHIMOE
from phiconv.architectures.qwen2 import QWEN2
from phiconv.architectures.qwen3 import QWEN3
from phiconv.architectures.stored_names import refusal, unwrapped
from phiconv.architectures.weights import bind, layout, table
from phiconv.errors import ConfigError, MalformedFileError, UnsupportedModelError, printable
from phiconv.ir.model import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from phiconv.architectures.config import Config
    from phiconv.architectures.multimodal import Multimodal
    from phiconv.ir import Tensor
    from phiconv.ir.model import HubTensor, Hyperparameters

__all__ = ["ARCHITECTURES", "Architecture", "find", "find_multimodal", "hub_tensors", "read_weights"]


ARCHITECTURES = {a.name: a for a in (PHI, PHI3, PHIMOE, LLAMA, QWEN2, QWEN3)}

# Known by class name and by model_type, and refused by name rather than misread.
_UNSUPPORTED = {
    ("Phi3SmallForCausalLM", "phi3small"): "Phi-3-small (block-sparse attention, muP scaling)",
    ("Phi4FlashForCausalLM", "phi4flash"): "Phi-4-mini-flash-reasoning (Mamba and differential attention)",
    ("MixFormerSequentialForCausalLM", "mixformer-sequential"): "the 2023 layout of phi-1 and phi-1.5",
    ("phi-msft",): "the 2023 layout of phi-1.5 and phi-2",
}

# Stored beside the weights by some versions of the training code, and computed from config.json anyway.
_IGNORED = (r".*\.rotary_emb\.inv_freq", r".*\.attention\.masked_bias", r".*\.attention\.bias")


def find(config: Config) -> Architecture:
    """Finds the architecture of a config.json; of a multimodal model that of its text part.

    Raises:
        UnsupportedModelError: A model that phiconv knows by name only, or does not know.
        ConfigError: Neither ``architectures`` nor ``model_type`` says what it is, or they contradict.
    """
    names = _names(config)
    if not names:
        raise config.error(
            "architectures", "missing, and model_type too", "config.json must say what model this is"
        )
    # model_type comes first where it is refused: the 2023 phi-2 is a PhiForCausalLM with other tensors.
    for aliases, title in _UNSUPPORTED.items():
        if any(name in aliases for name in names):
            raise UnsupportedModelError(
                f"{title} is not supported yet",
                path=config.path,
                at=f"model {names[0]}",
                hint="see 'phiconv formats'",
            )
    if (kind := kind_of(names, config)) is not None:
        return kind.text
    for architecture in ARCHITECTURES.values():
        if names[0] in architecture.classes or (names[0] == architecture.name):
            return architecture
    raise UnsupportedModelError(
        "this architecture is not supported",
        path=config.path,
        at=f"model {names[0]}",
        hint="supported are " + ", ".join(c for a in ARCHITECTURES.values() for c in a.classes),
    )


def find_multimodal(config: Config) -> Multimodal | None:
    """The kind of multimodal model that a config.json is of; None for a model of text alone.

    Raises:
        ConfigError: ``architectures`` and ``model_type`` contradict each other.
    """
    return kind_of(_names(config), config)


def _names(config: Config) -> list[str]:
    """What a config.json calls the model, the most telling name first."""
    classes, kind = (config.get(key)[1] for key in ("architectures", "model_type"))
    if classes is not None and not isinstance(classes, list):
        raise config.error("architectures", f"must be a list, not {printable(repr(classes), 90)}")
    for key, names in (("architectures", classes or []), ("model_type", [] if kind is None else [kind])):
        for name in names:
            if not isinstance(name, str):
                raise config.error(key, f"{printable(repr(name), 90)} is no text")
    return [*(classes or []), *([] if kind is None else [kind])]


def read_weights(
    architecture: Architecture,
    hp: Hyperparameters,
    stored: Mapping[str, Tensor],
    path: Path,
    config: Mapping[str, Any],
) -> tuple[Hyperparameters, dict[Role, Tensor]]:
    """Every weight of the model by role, as views of the stored tensors (see `weights.bind`).

    A head that is stored although config.json says that it is the embedding is compared with that, and kept
    where it is another matrix. Only for this are weights read.

    Args:
        architecture: The family.
        hp: The sizes.
        stored: The tensors under the checkpoint's names, or with what a wrapper left in these.
        path: The checkpoint, for messages.
        config: config.json, for messages.

    Returns:
        The hyperparameters, whose ``tie_word_embeddings`` is true only of the weights; and the weights.
    """
    try:
        return _bind(architecture, hp, stored, path)
    except (MalformedFileError, ConfigError):
        if (kind := refusal(stored, config, path)) is not None:
            raise kind from None
        names = unwrapped(stored, architecture)
        if not names:
            raise
    return _bind(architecture, hp, {new: stored[old] for old, new in names.items()}, path)


def _bind(
    architecture: Architecture, hp: Hyperparameters, stored: Mapping[str, Tensor], path: Path
) -> tuple[Hyperparameters, dict[Role, Tensor]]:
    embedding, head = (f"{architecture.names[role]}.weight" for role in ("token_embedding", "output"))
    if hp.tie_word_embeddings and head in stored and embedding not in stored:
        # One matrix under the other of its names, which transformers 5 takes for both as well.
        stored = {embedding if name == head else name: tensor for name, tensor in stored.items()}
    if hp.tie_word_embeddings and head in stored:
        apart = replace(hp, tie_word_embeddings=False)
        tensors = bind(table(architecture, apart, stored), stored, path=path, ignored=_IGNORED)
        if not same_weights(tensors[Role("token_embedding")], tensors[Role("output")]):
            return apart, tensors
        del tensors[Role("output")]
        return hp, tensors
    return hp, bind(table(architecture, hp, stored), stored, path=path, ignored=_IGNORED)


def hub_tensors(
    architecture: Architecture, hp: Hyperparameters, roles: Collection[Role]
) -> dict[str, HubTensor]:
    """How checkpoints on the hub store these weights (see `weights.layout`)."""
    return layout(table(architecture, hp, ()), roles)
