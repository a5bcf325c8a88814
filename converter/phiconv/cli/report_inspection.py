"""What ``phiconv inspect`` shows of a model, and of what is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phiconv.cli.report import shape_text, table
from phiconv.cli.voice import error_object
from phiconv.errors import printable
from phiconv.ir.senses import Vision
from phiconv.units import count_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from phiconv.api import Examination
    from phiconv.ir import Tensor
    from phiconv.ir.adapter import Adapter
    from phiconv.ir.model import Hyperparameters
    from phiconv.ir.senses import Encoder, Senses, SoundEncoder
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["inspection_lines", "inspection_object"]


def inspection_object(seen: Examination, *, tensors: bool = True) -> dict[str, Any]:
    """What was found, for ``--json``."""
    found = seen.found
    result: dict[str, Any] = {
        "path": str(found.path),
        "format": found.format,
        "architecture": seen.architecture,
        "stated_architecture": seen.stated or None,
        "parameters": _size(found.stored.values()),
        "bytes": sum(round(t.size * t.encoding.bits_per_weight / 8) for t in found.stored.values()),
        "types": dict(_types(found.stored.values())),
        "hyperparameters": _hyperparameters(seen.hyperparameters),
        "tokenizer": _tokenizer(seen.tokenizer),
        "metadata": {key: _plain_value(value) for key, value in found.metadata.items()},
    }
    if seen.adapter is not None:
        result["adapter"] = _adapter(seen.adapter)
    if seen.senses is not None:
        result["encoders"] = {name: asdict(encoder.parameters) for name, encoder in _encoders(seen.senses)}
    if seen.error is not None:
        result["config"] = dict(found.config or {})
        result["error"] = error_object(seen.error)
    if tensors:
        result["tensors"] = [
            {
                "name": n,
                "shape": list(t.shape),
                "type": t.encoding.name,
                "bits_per_weight": t.encoding.bits_per_weight,
            }
            for n, t in found.stored.items()
        ]
    return result


def inspection_lines(seen: Examination, *, tensors: bool = True) -> list[str]:
    """What was found, for people; the reason of a refusal is not among it."""
    found = seen.found
    lines = [
        f"{printable(found.path)}: {found.format}, {_architecture(seen)}",
        *_amounts(found.stored.values()),
    ]
    lines += [_encoder_line(name, encoder) for name, encoder in _encoders(seen.senses)]
    shown = _hyperparameters(seen.hyperparameters) or (_adapter(seen.adapter) if seen.adapter else {})
    lines += [f"  {key}: {printable(value)}" for key, value in shown.items()]
    if tokenizer := _tokenizer(seen.tokenizer):
        lines += [f"  tokenizer {key}: {printable(value)}" for key, value in tokenizer.items()]
    values: Mapping[str, Any] = found.metadata
    if seen.error is not None and seen.hyperparameters is None:
        values = {**(found.config or {}), **found.metadata}
    lines += [f"  {printable(key)} = {_value_text(value)}" for key, value in values.items()]
    if tensors:
        rows = [(printable(n), shape_text(t.shape), t.encoding.name) for n, t in found.stored.items()]
        lines += table(rows)
    return lines


def _encoders(senses: Senses | None) -> list[tuple[str, Encoder | SoundEncoder]]:
    """What is beside the language model, by the sense that it serves."""
    if senses is None:
        return []
    named = (("vision", senses.vision), ("audio", senses.hearing))
    return [(name, encoder) for name, encoder in named if encoder is not None]


def _encoder_line(name: str, encoder: Encoder | SoundEncoder) -> str:
    p = encoder.parameters
    weights = sum(tensor.size for tensor in encoder.stored.values())
    crops = f", pictures in crops of {p.crop_size} pixels" if isinstance(p, Vision) and p.crop_size else ""
    return f"  {name}: {p.num_hidden_layers} layers of {p.hidden_size}{crops}; {weights:,} weights"


def _adapter(adapter: Adapter) -> dict[str, Any]:
    """What an adapter does; it is merged by ``--lora``, or added by a runtime."""
    changes = adapter.changes.values()
    base = adapter.config.get("base_model_name_or_path")
    return {
        "base": base if isinstance(base, str) else None,
        "matrices": len(changes),
        "ranks": sorted({change.rank for change in changes}),
        "scales": sorted({change.scale for change in changes}),
        "dora": any(change.magnitude is not None for change in changes),
        "replaced": list(adapter.replaced),
    }


def _architecture(seen: Examination) -> str:
    if seen.adapter is not None:
        return "an adapter (LoRA)"
    if seen.architecture is not None:
        return seen.architecture
    if _plain_value(seen.found.metadata.get("general.type")) == "mmproj":
        kind = _plain_value(seen.found.metadata.get("clip.projector_type"))
        return f"what a model sees or hears with (mmproj, projector {printable(kind, 40)})"
    stated = printable(seen.stated, 60)
    if seen.error is not None:
        return stated or "architecture not stated"
    what = "plain tensors" if seen.found.stored or seen.tokenizer is None else "a vocabulary"
    return f"{what} of {stated}" if stated else what


def _amounts(stored: Iterable[Tensor]) -> list[str]:
    stored = list(stored)
    if not stored:
        return ["  no tensors"]
    size = _size(stored)
    nbytes = sum(t.size * t.encoding.bits_per_weight / 8 for t in stored)
    types = ", ".join(f"{count} {name}" for name, count in _types(stored).most_common())
    return [
        f"  {count_text(size)} parameters in {len(stored)} tensors ({types})",
        f"  {size_text(nbytes)}, {8 * nbytes / size if size else 0:.2f} bits per weight",
    ]


def _size(stored: Iterable[Tensor]) -> int:
    return sum(t.size for t in stored)


def _plain_value(value: Any) -> Any:
    """A value of the file's metadata for ``--json``, long lists by their length."""
    plain = getattr(value, "value", value)
    return f"{len(plain)} items" if isinstance(plain, list) else plain


def _value_text(value: Any) -> str:
    value = getattr(value, "value", value)
    if isinstance(value, list):
        head = ", ".join(printable(repr(v), 30) for v in value[:4])
        return f"[{head}{', …' if len(value) > 4 else ''}] ({len(value)} items)"
    return printable(repr(value), 120)


def _types(tensors: Iterable[Tensor]) -> Counter[str]:
    return Counter(t.encoding.name for t in tensors)


def _hyperparameters(hp: Hyperparameters | None) -> dict[str, Any] | None:
    if hp is None:
        return None
    rope = f"{hp.rope.dimensions} of {hp.head_dim} dimensions, theta {hp.rope.theta:g}"
    if hp.rope.long_factor:
        rope += f", longrope from {hp.rope.original_context} positions, times {hp.rope.short_mscale:.7g}"
    result = {
        "vocab_size": hp.vocab_size,
        "hidden_size": hp.hidden_size,
        "intermediate_size": hp.intermediate_size,
        "num_hidden_layers": hp.num_hidden_layers,
        "num_attention_heads": hp.num_attention_heads,
        "num_key_value_heads": hp.num_key_value_heads,
        "head_dim": hp.head_dim,
        "max_position_embeddings": hp.max_position_embeddings,
        "norm_epsilon": hp.norm_epsilon,
        "rope": rope,
        "sliding_window": hp.sliding_window,
        "tie_word_embeddings": hp.tie_word_embeddings,
    }
    if hp.experts:
        result["experts"] = f"{hp.experts.used} of {hp.experts.count}"
    return result


def _tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    if tokenizer is None:
        return None
    known = len(tokenizer.tokens) - tokenizer.tokens.count(None)
    result: dict[str, Any] = {"kind": tokenizer.kind, "tokens": known, "added": len(tokenizer.added)}
    for role, token in tokenizer.special_ids.items():
        text = tokenizer.tokens[token] if token < len(tokenizer.tokens) else None
        result[role] = f"{token} {text!r}"
    if tokenizer.eos_ids:
        result["ends generation"] = list(tokenizer.eos_ids)
    result["chat templates"] = list(tokenizer.chat_templates)
    return result
