"""A plan for an adapter as a file of its own, for runtimes that add it to a model while they run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.conversion.names import check_names
from phiconv.conversion.paths import expanded
from phiconv.conversion.planning import check_path, check_place, place, tensor_plans
from phiconv.conversion.plans import Plan
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.recipes import Choices, find_recipe
from phiconv.recipes.grammar import FLOATS
from phiconv_formats import find_target
from phiconv_formats.gguf.adapter import adapter_package, adapter_tensors
from phiconv_formats.peft import open_adapter
from phiconv_formats.shared.output import Label

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from phiconv.ir.model import Model

__all__ = ["plan_adapter"]

_TYPES = "give --f32, --f16 or --bf16"


def plan_adapter(
    adapter_path: str | PathLike[str],
    model: Model,
    destination: Path,
    *,
    to: str | None = None,
    quant: str | None = None,
    choices: Choices | None = None,
) -> Plan:
    """Plans an adapter's own file for llama.cpp.

    Args:
        adapter_path: A folder as PEFT saves it.
        model: The model that it is for; no weight of it is read.
        destination: A ``.gguf``, or a folder, with ``to``.
        to: "gguf", which is the only format that has such a file of its own.
        quant: ``f32``, ``f16`` or ``bf16``; by default the type that most of its tensors have.
        choices: None of them means anything here.

    Raises:
        UsageError: Another format, another type, or a choice.
        UnsupportedModelError: An adapter that llama.cpp cannot add while it runs.
    """
    target = find_target(destination, to)
    if target.name != "gguf":
        raise UsageError(
            f"--adapter-only writes an adapter for llama.cpp, and not for {target.name}",
            hint="OpenVINO GenAI takes adapter_model.safetensors as it is; or leave out --adapter-only",
        )
    if choices is not None and choices != Choices():
        raise UsageError("an adapter by itself has no choices but its type", hint=_TYPES)
    if model.architecture is None:
        raise UnsupportedModelError(
            "an adapter is one of a model, and these are plain tensors", path=model.path
        )
    adapter = open_adapter(expanded(adapter_path))
    check_path(destination, adapter.path)
    tensors = adapter_tensors(model, adapter)
    recipe = find_recipe(target.name, quant, [tensor.encoding for tensor in adapter.stored.values()])
    encoding = FLOATS.get(recipe.lower())
    if encoding is None:
        raise UsageError(f"an adapter cannot be {recipe}", hint=_TYPES)
    folder, file_name = place(destination, target, replace(model, path=adapter.path), recipe)
    check_place(model, folder, folder / file_name)
    package = adapter_package(
        model, adapter, tensors, [encoding] * len(tensors), file_name=file_name, recipe=recipe
    )
    check_names(folder / file.name for file in package.files)
    package = replace(package, label=Label(file_name, target.name, recipe))
    return Plan(model, folder, target.name, recipe, package, tensor_plans(tensors, package))
