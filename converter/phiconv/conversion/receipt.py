"""The receipt of an output: what it was made of, and how, so that anybody can make it again and compare.

It is an in-toto Statement v1 with the SLSA provenance v1 predicate, both as their specifications have them
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance),
and says nothing of when or where. All but the sums is known before a weight is read, and all sums are equally
long: so the receipt is laid out like any other file of the output, and its size is part of the plan.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv.brief import Brief
from phiconv.conversion.digests import Digests
from phiconv_formats.shared.output import OutputFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv_formats.shared.files import InputFile

__all__ = ["BUILD_TYPE", "CHOICES", "OPTIONS", "PREDICATE_TYPE", "STATEMENT_TYPE", "Receipt", "receipt_text"]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "pkg:pypi/phiconv#docs/receipts.md"
_NO_SUM = "0" * 64

OPTIONS: dict[str, type] = {
    "quant": str, "split_max_size": int, "adapter_only": bool, "repack_only": bool,
}  # fmt: skip
"""Arguments of `phiconv.convert` that a receipt may have, and what they are."""

CHOICES: dict[str, type] = {
    "pure": bool, "output_tensor_type": str, "token_embedding_type": str, "leave_output_tensor": bool,
    "tensor_types": list, "allow_requantize": bool, "effort": str, "dtype": str, "match_runtime": bool,
    "short_context": bool, "long_context": bool, "target": str, "context": int, "layout": str,
    "attention": str, "accuracy_level": int, "ratio": float, "all_layers": bool, "text_only": bool,
    "plain": bool, "modelfile": bool, "target_size": int, "bits_per_weight": float,
}  # fmt: skip
"""The same of `phiconv.recipes.Choices`, but for what is a file: those are among the sources."""


@dataclass(frozen=True, slots=True, repr=False)
class Receipt(Brief):
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


def _resource(name: str, digest: str) -> dict[str, Any]:
    """What in-toto calls a ResourceDescriptor."""
    return {"name": name, "digest": {"sha256": digest}}
