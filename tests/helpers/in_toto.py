"""What the published schemas of in-toto Statement v1 and SLSA provenance v1 allow, strictly.

Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and resource_descriptor.md
there; https://slsa.dev/spec/v1.0/provenance with its .proto. Consumers have to ignore keys that they
do not know; phiconv writes none, so here they are refused.

    python in_toto.py RECEIPT     validates one
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

# A field is (kind, required). A kind: a pattern of a text, a dict of fields, a list of one kind, or a type.
URI = re.compile(r"[a-z][a-z0-9+.-]*:\S+")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
TEXT = re.compile(r".+", re.DOTALL)
DIGEST = {"sha256": (re.compile(r"[0-9a-f]{64}"), True)}

RESOURCE = {
    "name": (TEXT, False),
    "uri": (URI, False),
    "digest": (DIGEST, True),  # "name" and one of uri, digest and content; of subjects always the digest
    "downloadLocation": (URI, False),
    "mediaType": (TEXT, False),
    "content": (TEXT, False),
    "annotations": (dict, False),
}
STATEMENT: dict[str, Any] = {
    "_type": (re.compile(r"https://in-toto\.io/Statement/v1"), True),
    "subject": ([RESOURCE], True),
    "predicateType": (re.compile(r"https://slsa\.dev/provenance/v1"), True),
    "predicate": (
        {
            "buildDefinition": (
                {
                    "buildType": (URI, True),
                    "externalParameters": (dict, True),
                    "internalParameters": (dict, False),
                    "resolvedDependencies": ([RESOURCE], False),
                },
                True,
            ),
            "runDetails": (
                {
                    "builder": (
                        {
                            "id": (URI, True),
                            "version": (dict, False),
                            "builderDependencies": ([RESOURCE], False),
                        },
                        True,
                    ),
                    "metadata": (
                        {
                            "invocationId": (TEXT, False),
                            "startedOn": (TIMESTAMP, False),
                            "finishedOn": (TIMESTAMP, False),
                        },
                        False,
                    ),
                    "byproducts": ([RESOURCE], False),
                },
                True,
            ),
        },
        True,
    ),
}


def faults(value: Any, kind: Any = STATEMENT, at: str = "") -> list[str]:
    """What is wrong with a receipt, by place."""
    if isinstance(kind, type):
        return [] if isinstance(value, kind) else [f"{at}: no {kind.__name__}"]
    if isinstance(kind, re.Pattern):
        return [] if isinstance(value, str) and kind.fullmatch(value) else [f"{at}: {value!r}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{at}: no array"]
        return [fault for n, each in enumerate(value) for fault in faults(each, kind[0], f"{at}[{n}]")]
    if not isinstance(value, dict):
        return [f"{at}: no object"]
    wrong = [f"{at}.{key}: unknown" for key in value if key not in kind]
    wrong += [f"{at}.{key}: missing" for key, (_, required) in kind.items() if required and key not in value]
    known = ((key, each) for key, each in value.items() if key in kind)
    return wrong + [fault for key, each in known for fault in faults(each, kind[key][0], f"{at}.{key}")]


def read_as_published(text: str) -> dict[str, Any] | None:
    """A receipt as the protobuf schemas that the projects publish have it; None where they are not installed.

    Raises:
        ValueError: It has a key, a type or an enclosure that these do not have.
    """
    try:
        from google.protobuf import json_format
        from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
        from in_toto_attestation.v1 import statement_pb2
        from in_toto_attestation.v1.statement import Statement
    except ImportError:
        return None
    try:
        statement = json_format.Parse(text, statement_pb2.Statement())
        provenance = json_format.ParseDict(json.loads(text)["predicate"], provenance_pb2.Provenance())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
    Statement.copy_from_pb(statement).validate()
    return json_format.MessageToDict(statement) | {"predicate": json_format.MessageToDict(provenance)}


if __name__ == "__main__":
    found = faults(json.loads(Path(sys.argv[1]).read_bytes()))
    sys.exit("\n".join(found) or 0)
