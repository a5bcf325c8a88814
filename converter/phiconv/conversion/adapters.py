"""A model with adapters merged into it, while its weights stay unread."""

from __future__ import annotations

import math
from dataclasses import replace
from os import fspath
from typing import TYPE_CHECKING, TypeAlias

from phiconv import architectures
from phiconv.architectures.adapters import apply_adapter
from phiconv.conversion.paths import expanded
from phiconv.errors import UnsupportedModelError, UsageError, printable
from phiconv.ir.adapter import Adapter
from phiconv_formats.peft import open_adapter
from phiconv_formats.shared.files import noting_files

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized
    from os import PathLike

    from phiconv.ir.model import Model

__all__ = ["Lora", "merge"]

Lora: TypeAlias = "str | PathLike[str] | tuple[str | PathLike[str], float]"
"""An adapter's folder; with a number that its scale is multiplied with."""

_MERGED = "safetensors"
"""The format of a model that is stored in no file: one that nothing but its weights is taken from."""


def merge(model: Model, adapters: Sequence[Lora]) -> Model:
    """Merges adapters into a model, one after the other: ``W + scale * (B @ A)`` when a weight is read.

    Args:
        model: An open model of a known architecture; it may be quantized.
        adapters: Folders as PEFT saves them, or pairs of a folder and a weight, by which the scale is
            multiplied. Adapters that come with the model have names instead, which count before folders.

    Returns:
        The same model with other weights. Those that an adapter changes are read as float32.

    Raises:
        InputError: Something is wrong with an adapter, or it is one of another model.
        UnsupportedModelError: What cannot be merged exactly, by its key.
        UsageError: A weight that an adapter cannot have, or two that replace the same tensor.
    """
    with noting_files() as noted:
        for each in adapters:
            path, weight = each if isinstance(each, tuple) else (each, 1.0)
            own = model.own_adapters.get(fspath(path))
            adapter = own if isinstance(own, Adapter) else open_adapter(expanded(own or path))
            model = _with(model, _weighted(adapter, weight))
    return replace(model, opened=(*model.opened, *noted))


def _with(model: Model, adapter: Adapter) -> Model:
    if model.architecture is None or model.hyperparameters is None:
        raise UnsupportedModelError(
            "an adapter is merged into a model, and these are plain tensors", path=model.path
        )
    architecture = architectures.ARCHITECTURES[model.architecture]
    twice = {name for other in model.adapters for name in other.replaced} & {*adapter.replaced}
    if twice:
        raise UsageError(
            f"two adapters replace {printable(min(twice))}", path=adapter.file, hint="merge one of them"
        )
    hp, tensors = apply_adapter(architecture, model.hyperparameters, model.tensors, adapter)
    return replace(
        model,
        format=_MERGED if model.format == "gguf" else model.format,
        hyperparameters=hp,
        tensors=tensors,
        hub=architectures.hub_tensors(architecture, hp, tensors),
        merged=(*model.merged, _sentence(adapter)),
        adapters=(*model.adapters, adapter),
    )


def _weighted(adapter: Adapter, weight: float) -> Adapter:
    """An adapter whose scales are multiplied with a weight."""
    if weight == 1:
        return adapter
    if not math.isfinite(weight):
        raise UsageError(f"a weight of {weight}", path=adapter.path, hint="give a number")
    kinds = {"DoRA": any(c.magnitude for c in adapter.changes.values()), "modules_to_save": adapter.replaced}
    for kind, there in kinds.items():
        if there:
            raise UsageError(
                f"{kind} cannot have a weight of {weight:g}", path=adapter.path, hint="leave the weight out"
            )
    changes = {n: replace(c, scale=c.scale * weight) for n, c in adapter.changes.items()}
    return replace(adapter, changes=changes)


def _sentence(adapter: Adapter) -> str:
    """What was merged, for people."""
    ranks = sorted({change.rank for change in adapter.changes.values()})
    scales = sorted({change.scale for change in adapter.changes.values()})
    parts = []
    if ranks:
        what = (
            f"{_count(adapter.changes, 'matrix', 'matrices')} of rank {_range(ranks)}, scale {_range(scales)}"
        )
        parts.append(what + (", DoRA" if any(c.magnitude for c in adapter.changes.values()) else ""))
    if adapter.replaced:
        parts.append(f"{_count(adapter.replaced, 'tensor', 'tensors')} replaced")
    return f"the adapter {printable(adapter.path, 120)} is merged: {'; '.join(parts)}"


def _count(things: Sized, one: str, several: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else several}"


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
