"""The weights of a graph that Google's litert-torch exported: which constants they are.

It keeps no names of weights. What an operation gives it names after the module that computed it, and so it
names a constant that only one operation reads::

    .../transformers.models.llama.modeling_llama.LlamaForCausalLM_model/...LlamaModel_model/
        ...LlamaDecoderLayer_0/...LlamaAttention_self_attn/torch.nn.modules.linear.Linear_q_proj;1

That is the class and the name of each module on the way, without the list that layers are in. Where it has
joined operations there are several such names, with semicolons between them, and not always the right one
first. But of the layers' matrices some have only one, and no module has two: so each that is known leaves
fewer for the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import MalformedFileError, UnsupportedModelError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phiconv_formats.litert.tflite_reader import Call, TfLite

__all__ = ["ExportedWeights", "exported_weights"]

_STEP = re.compile(r"(?:[A-Za-z0-9_]+\.)+([A-Za-z0-9]+)_([A-Za-z0-9_]+)")
"""A module on the way: its class, and what the module above calls it."""

_MODEL = "ForCausalLM"
_HEAD = "lm_head.weight"
_LOGITS = "logits"


class _Use(NamedTuple):
    """An operator that takes a weight.

    Attributes:
        module: What the class of the module's name ends with, or has in it.
        parts: What its inputs are, by their places.
        vector: Whether it takes weights along the last axis only; a single number is none.
    """

    module: str
    parts: Mapping[int, str]
    vector: bool = False


_USES = {
    "FULLY_CONNECTED": _Use("Linear", {1: "weight", 2: "bias"}),
    "EMBEDDING_LOOKUP": _Use("Embedding", {1: "weight"}),
    "GATHER": _Use("Embedding", {0: "weight"}),
    "STABLEHLO_COMPOSITE": _Use("Norm", {1: "weight", 2: "bias"}, vector=True),
    "MUL": _Use("Norm", {0: "weight", 1: "weight"}, vector=True),
    "ADD": _Use("Norm", {0: "bias", 1: "bias"}, vector=True),
}


@dataclass(frozen=True, slots=True)
class ExportedWeights:
    """The weights of a graph.

    Attributes:
        family: The class of the model, as config.json names it.
        constants: Numbers of the constants, by the names of Hugging Face checkpoints.
    """

    family: str
    constants: Mapping[str, int]


def exported_weights(model: TfLite) -> ExportedWeights | None:
    """The weights of a graph; None for one whose names say nothing of modules.

    Raises:
        MalformedFileError: One module has two weights.
        UnsupportedModelError: The graph has no matrix of embeddings, or several models.
    """
    families: set[str] = set()
    found: dict[str, int] = {}
    unclear: list[tuple[int, set[str]]] = []
    for number, names in _candidates(model, families):
        if len(names) > 1:
            unclear.append((number, names))
        elif names:
            _keep(model, found, names.pop(), number)
    while unclear:
        known = [(number, names - found.keys()) for number, names in unclear]
        unclear = [(number, names) for number, names in known if len(names) > 1]
        clear = [(number, names.pop()) for number, names in known if len(names) == 1]
        for number, name in clear:
            _keep(model, found, name, number)
        if not clear:
            break
    if not families or not found:
        return None
    path = model.buffer.file.path
    if len(families) > 1:
        listed = ", ".join(printable(name) for name in sorted(families))
        raise UnsupportedModelError(f"several models in one graph: {listed}", path=path)
    if not any("embed" in name for name in found):
        raise UnsupportedModelError(
            "the embedding is in another graph",
            path=path,
            hint="export the model again, without externalize_embedder",
        )
    return ExportedWeights(families.pop(), found)


def _keep(model: TfLite, found: dict[str, int], name: str, number: int) -> None:
    if found.setdefault(name, number) != number:
        raise MalformedFileError(
            "two constants are this weight", path=model.buffer.file.path, at=f"tensor {printable(name)}"
        )


def _candidates(model: TfLite, families: set[str]) -> Iterator[tuple[int, set[str]]]:
    """Every use of a weight: the number of the constant, and what it may be called."""
    origins = {
        call.result: call.inputs[0] for call in model.calls if call.operator == "DEQUANTIZE" and call.inputs
    }
    tables = {origins.get(n, n) for call in model.calls for n in call.inputs if "EMBEDDING" in call.operator}
    for call in model.calls:
        use = _USES.get(call.operator)
        for place, part in (use.parts if use else {}).items():
            number = call.inputs[place] if place < len(call.inputs) else -1
            number = origins.get(number, number)
            constant = model.constants.get(number)
            if use is None or constant is None or (use.vector and constant.shape[-1:] in {(), (1,)}):
                continue
            names = _names(constant.name, call, use, families)
            if names:
                yield number, {f"{name}.{part}" for name in names}
            elif (
                use.module == "Linear"
                and part == "weight"
                and _LOGITS in call.output
                and number not in tables
            ):
                yield number, {_HEAD}


def _names(constant: str, call: Call, use: _Use, families: set[str]) -> set[str]:
    """The modules that a constant may be of, in its own name or in that of what the operation gives."""
    for text in (constant, call.output):
        names = set()
        for path in text.split(";"):
            family, kind, name = _module(path)
            if family and use.module in kind:
                families.add(family)
                names.add(name)
        if names:
            return names
    return set()


def _module(path: str) -> tuple[str, str, str]:
    """The model's class, the class of the module, and its name in a checkpoint; empty for what is none."""
    family, kind = "", ""
    names: list[str] = []
    for step in path.split("/"):
        match = _STEP.fullmatch(step)
        if match is None:
            continue
        kind, name = match[1], match[2]
        if kind.endswith(_MODEL):
            family, names = kind, []
        else:
            names.append(f"layers.{name}" if name.isdecimal() else name)
    return family, kind, ".".join(names)
