"""Models that see or hear: what of their checkpoints is the language model, which is a family of its own.

Beside that there are encoders, whose tensors have prefixes of their own, and keys of config.json about these.
Phi-4-multimodal has been trained with adapters (LoRA) that act only where there is a picture or speech. The
hub's checkpoint holds them apart under the names that PEFT gives its wrappers, so the language model is that
of a text without either when they are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from phiconv.architectures.clip import CLIP
from phiconv.architectures.conformer import (
    CONFORMER,
    CONFORMER_OF_TRANSFORMERS,
    Conformer,
    find_sound_encoder,
)
from phiconv.architectures.encoders import find_encoder
from phiconv.architectures.phi3 import PHI3
from phiconv.architectures.siglip import SIGLIP, SIGLIP2, SIGLIP_OF_TRANSFORMERS
from phiconv.errors import MalformedFileError, printable
from phiconv.ir import FloatEncoding
from phiconv.ir.adapter import Adapter, LowRank
from phiconv.ir.senses import Senses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.architectures.architecture import Architecture
    from phiconv.architectures.config import Config
    from phiconv.architectures.encoders import Tower
    from phiconv.ir import Tensor

__all__ = ["KINDS", "Multimodal", "TextPart", "kind_of", "senses", "text_config", "text_part", "text_stored"]


@dataclass(frozen=True, slots=True)
class Multimodal:
    """A kind of checkpoint.

    Attributes:
        names: Its names under ``architectures`` and ``model_type`` in config.json, the hub's first.
        title: What people call it.
        text: The family of its language model.
        parts: What is beside that, and what the names of its tensors begin with.
        keys: Keys of config.json that are about these parts, or about code that is not copied; those too that
            a target has added.
        adapters: The adapters in it, and the keys of config.json with their ``r`` and ``lora_alpha``.
        folders: Adapters that are folders beside it, as PEFT saves them.
        tower: The family of its encoder of pictures.
        conformer: Where its encoder of sounds is; None where it has none.
    """

    names: tuple[str, ...]
    title: str
    text: Architecture
    parts: Mapping[str, tuple[str, ...]]
    keys: frozenset[str]
    adapters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tower: Tower | None = None
    conformer: Conformer | None = None

    def beside(self, name: str) -> bool:
        """Whether a tensor belongs to another part than the language model."""
        return any(name.startswith(prefixes) for prefixes in self.parts.values())


_EXTENDED = {
    "vision": ("model.embed_tokens_extend.image_embed.",),
    "audio": ("model.embed_tokens_extend.audio_embed.",),
}

KINDS = (
    Multimodal(
        names=("Phi3VForCausalLM", "phi3_v", "phi3v"),
        title="Phi-3-vision and Phi-3.5-vision",
        text=PHI3,
        parts={"vision": ("model.vision_embed_tokens.",)},
        keys=frozenset("_attn_implementation embd_layer glb_GN img_processor sub_GN".split()),
        tower=CLIP,
    ),
    Multimodal(
        names=("Phi4MMForCausalLM", "phi4mm"),
        title="Phi-4-multimodal",
        text=PHI3,
        parts=_EXTENDED,
        keys=frozenset(
            "_attn_implementation audio_processor embd_layer glb_GN img_processor speech_lora sub_GN "
            "vision_lora".split()
        ),
        adapters={"vision": "vision_lora", "speech": "speech_lora"},
        tower=SIGLIP,
        conformer=CONFORMER,
    ),
    Multimodal(
        names=("Phi4MultimodalForCausalLM", "phi4_multimodal"),
        title="Phi-4-multimodal as transformers stores it",
        text=PHI3,
        parts=_EXTENDED,
        keys=frozenset("_attn_implementation audio_config vision_config".split()),
        folders={"vision": "vision-lora", "speech": "speech-lora"},
        tower=SIGLIP_OF_TRANSFORMERS,
        conformer=CONFORMER_OF_TRANSFORMERS,
    ),
    Multimodal(
        names=("Phi4ForCausalLMV", "phi4-siglip"),
        title="Phi-4-reasoning-vision",
        text=PHI3,
        parts={"vision": ("model.vision_tower.", "model.mm_projector.")},
        keys=frozenset(
            "freeze_mm_mlp_adapter image_aspect_ratio max_num_patches min_num_patches mm_hidden_size "
            "mm_projector_lr mm_projector_type mm_vision_tower text_config tokenizer_model_max_length "
            "tokenizer_padding_side tune_mm_mlp_adapter unfreeze_vision_tower use_mm_proj use_s2 "
            "vision_config".split()
        ),
        tower=SIGLIP2,
    ),
)
"""Every kind that is known."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """The language model of a checkpoint.

    Attributes:
        tensors: Its tensors under the names of its family.
        adapters: The checkpoint's own adapters, or the folders of those beside it, by name.
        left_out: What is there beside, a sentence.
    """

    tensors: Mapping[str, Tensor]
    adapters: Mapping[str, Adapter | Path]
    left_out: str


def kind_of(names: list[str], config: Config) -> Multimodal | None:
    """The kind that a config.json names; None for another model.

    Args:
        names: What it has under ``architectures`` and ``model_type``.
        config: config.json, for messages.

    Raises:
        ConfigError: Some of the names are other models'.
    """
    kind = next((kind for kind in KINDS if any(name in kind.names for name in names)), None)
    other = next((name for name in names if kind is not None and name not in kind.names), None)
    if kind is not None and other is not None:
        raise config.error(
            "architectures", f"{names[0]} and {other} are different models", "download config.json again"
        )
    return kind


def text_config(kind: Multimodal, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the language model by itself."""
    own = {key: value for key, value in values.items() if key not in kind.keys}
    return own | {"architectures": [kind.text.classes[0]], "model_type": kind.text.name}


def text_stored(kind: Multimodal, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the language model under the names that the file has for them."""
    return {n: t for n, t in stored.items() if not kind.beside(n) and _factor(kind, n) is None}


def text_part(kind: Multimodal, named: Mapping[str, Tensor], config: Config, path: Path) -> TextPart:
    """Takes the language model out of a checkpoint.

    Args:
        kind: What the checkpoint is.
        named: All of its tensors.
        config: config.json as a whole.
        path: The checkpoint, for messages.

    Raises:
        MalformedFileError: A part that config.json announces has no tensor, a tensor is there twice, or an
            adapter is not whole.
        ConfigError: The keys of an adapter.
    """
    for part, prefixes in kind.parts.items():
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in named):
                raise MalformedFileError(
                    f"config.json is that of a model with a part for {part}, and no such tensor is here",
                    path=path,
                    at=f"tensor {prefix}*",
                    hint="download the checkpoint again, or check its configuration",
                )
    tensors: dict[str, Tensor] = {}
    for name, tensor in text_stored(kind, named).items():
        plain = name.replace(_BASE, ".") if kind.adapters else name
        if tensors.setdefault(plain, tensor) is not tensor:
            raise _malformed(path, name, "is there with .base_layer and without")
    inside = {name: _adapter(kind, name, named, config, path) for name in kind.adapters}
    adapters: dict[str, Adapter | Path] = {name: own for name, own in inside.items() if own.changes}
    folder = path if path.is_dir() else path.parent
    adapters |= {name: folder / own for name, own in kind.folders.items() if (folder / own).is_dir()}
    counts = {part: sum(n.startswith(prefixes) for n in named) for part, prefixes in kind.parts.items()}
    return TextPart(tensors, adapters, _sentence(counts, [*adapters]))


def senses(
    kind: Multimodal,
    named: Mapping[str, Tensor],
    config: Config,
    features: int,
    preprocessor: Mapping[str, Any],
    path: Path,
) -> Senses:
    """The encoders of a checkpoint.

    Args:
        kind: What the checkpoint is.
        named: All of its tensors.
        config: config.json as a whole.
        features: Hidden size of the language model.
        preprocessor: preprocessor_config.json.
        path: The checkpoint, for messages.

    Raises:
        MalformedFileError: Tensors that are missing, misshapen or unknown.
        ConfigError: Numbers that do not fit.
    """
    own = {part: {n: t for n, t in named.items() if n.startswith(p)} for part, p in kind.parts.items()}
    vision = hearing = None
    if kind.tower is not None:
        vision = find_encoder(kind.tower, own["vision"], config, features, path)
    if kind.conformer is not None:
        hearing = find_sound_encoder(kind.conformer, own["audio"], config, features, path)
    return Senses(kind.names[1], config.values, vision, preprocessor, hearing)


_BASE = ".base_layer."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.([^.]+)\.weight")


def _factor(kind: Multimodal, name: str) -> re.Match[str] | None:
    """Module, A or B, and adapter in the name of a tensor; None if it is none of the kind's adapters."""
    match = _FACTOR.fullmatch(name)
    return match if match is not None and match[3] in kind.adapters else None


def _adapter(
    kind: Multimodal, adapter: str, named: Mapping[str, Tensor], config: Config, path: Path
) -> Adapter:
    """One of the adapters inside a checkpoint: an A and a B for each matrix that has ``.base_layer``."""
    section = config.section(kind.adapters[adapter])
    if section is None:
        raise config.error(kind.adapters[adapter], "missing", "config.json must say what this adapter is")
    rank, alpha = section.integer("r"), section.number("lora_alpha")
    matches = [match for name in named if (match := _factor(kind, name)) is not None]
    stored = {match[0]: named[match[0]] for match in matches if match[3] == adapter}
    factors = dict(stored)
    end = f"{_BASE}weight"
    modules = [name.removesuffix(end) for name in named if name.endswith(end) and not kind.beside(name)]
    changes = {}
    for module in modules:
        a, b = (_taken(factors, f"{module}.lora_{part}.{adapter}.weight", path) for part in "AB")
        if len(a.shape) != 2 or len(b.shape) != 2 or {a.shape[0], b.shape[1]} != {rank}:
            message = f"A of {list(a.shape)} and B of {list(b.shape)} are not of rank {rank}"
            raise _malformed(path, f"{module}.lora_A.{adapter}.weight", message)
        changes[module] = LowRank(a, b, alpha / rank)
    if factors:
        raise _malformed(path, next(iter(factors)), "changes a matrix that is not there as .base_layer")
    return Adapter(Path(adapter), path, stored, changes, alpha=alpha, config=section.values)


def _taken(factors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    tensor = factors.pop(name, None)
    if tensor is None:
        raise _malformed(path, name, "this tensor is missing")
    if not isinstance(tensor.encoding, FloatEncoding):
        raise _malformed(path, name, f"is stored as {tensor.encoding.name}, and not in floats")
    return tensor


def _sentence(counts: Mapping[str, int], adapters: list[str]) -> str:
    """What is beside the language model, for people."""
    parts = " and ".join(f"{count} tensors for {part}" for part, count in counts.items())
    more = f"; its adapters, {' and '.join(adapters)}, are merged only by --lora" if adapters else ""
    return f"only the text part of this model is taken: {parts} are left out{more}"


def _malformed(path: Path, name: str, message: str) -> MalformedFileError:
    return MalformedFileError(
        message, path=path, at=f"tensor {printable(name)}", hint="download the checkpoint again"
    )
