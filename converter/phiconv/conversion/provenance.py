"""What the receipt of a plan says: of its source, its options, its tensors, and of phiconv."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiconv.conversion.builder import own_sources, versions
from phiconv.conversion.digests import length_of
from phiconv.conversion.names import receipt_name
from phiconv.conversion.receipt import CHOICES, Receipt
from phiconv.ir.model import name_of
from phiconv.recipes import Choices
from phiconv.recipes.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from phiconv.conversion.plans import Plan, TensorPlan
    from phiconv_formats.shared.files import InputFile
    from phiconv_formats.shared.output import Package, Stream

__all__ = ["Request", "options_of", "with_receipt"]

_BUILDER = "pkg:pypi/phiconv"
_SINGLE_FILES = ("imatrix", "ranges")  # others may lie beside them


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked for.

    Attributes:
        options: See `options_of`.
        roots: The paths that were given, by what they are for; what is in none of them is of the last one.
        opened: The files that were read for the plan.
        lora: The weights of the adapters to merge.
    """

    options: Mapping[str, Any]
    roots: Mapping[str, Path]
    opened: tuple[InputFile, ...]
    lora: tuple[float, ...] = ()


def options_of(choices: Choices, **options: object) -> dict[str, Any]:
    """What was asked for other than is usual, as a receipt says it: names of the library, values of JSON."""
    usual = Choices()
    found = {name: value for name, value in options.items() if value not in {None, False}}
    for name in (field.name for field in fields(Choices) if field.name in CHOICES):
        value = getattr(choices, name)
        if name == "tensor_types":
            value = [f"{pattern.pattern}={type_name}" for pattern, type_name in choices.overrides]
        if value != getattr(usual, name) and value != []:
            found[name] = value
    return found


def with_receipt(plan: Plan, request: Request) -> Plan:
    """A plan whose output has a receipt."""
    package = plan.package
    sources = _named(request.opened, request.roots)
    origins = {str(file.path): name for name, file in sources}
    external: dict[str, Any] = {"source": name_of(plan.model.path), "options": dict(request.options)}
    if request.lora:
        external["lora"] = list(request.lora)
    internal = {
        "format": plan.target,
        "recipe": plan.recipe,
        "output": package.label.name,
        "tensor_types": [f"{pattern}={name}" for pattern, name in plan.mixture],
        "bytes_of": PEERS[plan.target],
    }
    receipt = Receipt(
        _name(package),
        tuple(file.name for file in package.files),
        sources,
        tuple(_tensor(t, s, origins) for t, s in zip(plan.tensors, package.streams, strict=True)),
        {"externalParameters": external, "internalParameters": internal},
        _builder(),
    )
    return replace(plan, receipt=receipt)


def _name(package: Package) -> str:
    """A folder that may hold several outputs has a receipt beside the first file of each."""
    return receipt_name(package.label.name or (package.files[0].name if package.beside else ""))


def _builder() -> dict[str, Any]:
    found: dict[str, Any] = {
        "builder": {
            "id": _BUILDER,
            "version": versions(),
            "builderDependencies": [{"name": "phiconv", "digest": {"sha256": own_sources()}}],
        }
    }
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")  # https://reproducible-builds.org/specs/source-date-epoch
    if epoch.isascii() and epoch.isdigit() and len(epoch) < len("99999999999"):
        found["metadata"] = {"finishedOn": f"{datetime.fromtimestamp(int(epoch), UTC):%Y-%m-%dT%H:%M:%SZ}"}
    return found


def _named(opened: Iterable[InputFile], roots: Mapping[str, Path]) -> tuple[tuple[str, InputFile], ...]:
    """The files that were read, each once, under the name of what it is for and its place in that."""
    places = {role: path if path.is_dir() else path.parent for role, path in roots.items()}
    found: dict[str, InputFile] = {}
    for file in opened:
        alone = next((r for r in _SINGLE_FILES if roots.get(r) == file.path), None)
        within = (
            r for r, place in places.items() if r not in _SINGLE_FILES and file.path.is_relative_to(place)
        )
        # What is in none: config.json, say, which is one folder above the graph of a transformers.js folder.
        role = alone or next(within, list(places)[-1])
        inner = Path(os.path.relpath(file.path, places[role])).as_posix()
        found.setdefault(f"{role}/{inner}", file)
    return tuple(sorted(found.items()))


def _tensor(plan: TensorPlan, stream: Stream, origins: Mapping[str, str]) -> dict[str, Any]:
    """What became of a tensor, and where its bytes are: those of each segment, one after the other."""
    labels = dict.fromkeys(run.source.label for run in stream.tensor.runs)
    annotations = {
        "shape": list(plan.shape),
        "stored": plan.stored.name,
        "encoding": plan.encoding.name,
        "action": plan.action,
        "from": [_origin(label, origins) for label in labels],
        "segments": [
            {"file": s.file, "offset": s.offset, "length": length_of(stream, s)} for s in stream.segments
        ],
    }
    return {"name": plan.name, "annotations": annotations}


def _origin(label: str, origins: Mapping[str, str]) -> str:
    """A tensor of the source: the name of its file in the receipt, and its own."""
    found = next((path for path in sorted(origins, reverse=True) if label.startswith(f"{path}: ")), None)
    return label.rpartition(": ")[2] if found is None else f"{origins[found]}: {label[len(found) + 2 :]}"
