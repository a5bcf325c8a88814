"""The receipt of an output: what it was made of, and how, so that anybody can make it again and compare.

It is an in-toto Statement v1 with the SLSA provenance v1 predicate, both as their specifications have them
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance),
and says nothing of when or where. All but the sums is known before a weight is read, and all sums are equally
long: so the receipt is laid out like any other file of the output, and its size is part of the plan.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiconv.conversion.builder import own_sources, versions
from phiconv.conversion.digests import Digests, length_of
from phiconv.conversion.names import receipt_name
from phiconv.ir.model import name_of
from phiconv.recipes import Choices
from phiconv.recipes.peers import PEERS
from phiconv_formats.shared.output import OutputFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from phiconv.conversion.plans import Plan, TensorPlan
    from phiconv_formats.shared.files import InputFile
    from phiconv_formats.shared.output import Package, Stream

__all__ = [
    "BUILD_TYPE",
    "CHOICES",
    "OPTIONS",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "Receipt",
    "Request",
    "options_of",
    "receipt_text",
    "with_receipt",
]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "pkg:pypi/phiconv#docs/receipts.md"
_BUILDER = "pkg:pypi/phiconv"
_NO_SUM = "0" * 64
_SINGLE_FILES = ("imatrix", "ranges")  # others may lie beside them

OPTIONS: dict[str, type] = {
    "quant": str, "split_max_size": int, "adapter_only": bool, "repack_only": bool,
}  # fmt: skip
"""Arguments of `phiconv.convert` that a receipt may have, and what they are."""

CHOICES: dict[str, type] = {
    "pure": bool, "output_tensor_type": str, "token_embedding_type": str, "leave_output_tensor": bool,
    "tensor_types": list, "allow_requantize": bool, "effort": str, "dtype": str, "match_runtime": bool,
    "short_context": bool, "long_context": bool, "target": str, "context": int, "layout": str,
    "attention": str, "accuracy_level": int, "ratio": float, "all_layers": bool, "plain": bool,
    "target_size": int, "bits_per_weight": float,
}  # fmt: skip
"""The same of `phiconv.recipes.Choices`, but for what is a file: those are among the sources."""


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
            value = [f"{pattern.pattern}={type_name}" for pattern, type_name in value]
        if value != getattr(usual, name) and value != []:
            found[name] = value
    return found


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt that lacks nothing but the sums.

    Attributes:
        name: Its file.
        outputs: The files that it is for.
        sources: The files that are read, under names that say what each is for.
        tensors: What it says of each tensor beside its sum.
        parameters: ``externalParameters`` and ``internalParameters``.
        builder: ``runDetails`` but for the tensors.
    """

    name: str
    outputs: tuple[str, ...]
    sources: tuple[tuple[str, InputFile], ...]
    tensors: tuple[dict[str, Any], ...]
    parameters: dict[str, Any]
    builder: dict[str, Any]

    def statement(self, digests: Digests) -> dict[str, Any]:
        """The receipt as an object of JSON."""
        files = [_resource(name, digests.files[name]) for name in self.outputs]
        sources = zip((name for name, _ in self.sources), digests.sources, strict=True)
        tensors = zip(self.tensors, digests.tensors, strict=True)
        definition = {
            "buildType": BUILD_TYPE,
            **self.parameters,
            "resolvedDependencies": [_resource(name, digest) for name, digest in sources],
        }
        byproducts = [
            {**_resource(said["name"], digest), "annotations": said["annotations"]}
            for said, digest in tensors
        ]
        return {
            "_type": STATEMENT_TYPE,
            "subject": files,
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": definition,
                "runDetails": {**self.builder, "byproducts": byproducts},
            },
        }

    def file(self) -> OutputFile:
        """Its place in the output, with the room that it needs."""
        nothing = Digests(
            dict.fromkeys(self.outputs, _NO_SUM), [_NO_SUM] * len(self.tensors), [_NO_SUM] * len(self.sources)
        )
        return OutputFile(self.name, len(receipt_text(self.statement(nothing))), ())


def receipt_text(statement: Mapping[str, Any]) -> bytes:
    """A receipt as it is written; whatever else means the same is not phiconv's."""
    return json.dumps(statement, indent=1).encode() + b"\n"


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
    return replace(plan, package=replace(package, files=(*package.files, receipt.file())), receipt=receipt)


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


def _resource(name: str, digest: str) -> dict[str, Any]:
    """What in-toto calls a ResourceDescriptor."""
    return {"name": name, "digest": {"sha256": digest}}


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
