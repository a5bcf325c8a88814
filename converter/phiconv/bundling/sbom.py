"""A list of all that a bundle holds, as CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from phiconv.bundling.wheels import Wheel

__all__ = ["bill_of_materials"]


def bill_of_materials(own: Wheel, wheels: Collection[Wheel], edges: Mapping[str, Collection[str]]) -> bytes:
    """The list. It has no date and no number of its own: the same wheels give the same bytes.

    Args:
        own: phiconv's.
        wheels: The others. Those of one release for several platforms are one component.
        edges: Which distribution needs which, by name.
    """
    releases: dict[tuple[str, str], list[Wheel]] = {}
    for wheel in sorted(wheels, key=lambda each: each.path.name):
        releases.setdefault((wheel.name, wheel.version), []).append(wheel)
    references: dict[str, list[str]] = {own.name: [_reference(own)]}
    for name, version in releases:
        references.setdefault(name, []).append(f"pkg:pypi/{name}@{version}")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component([own], "application")},
        "components": [_component(files, "library") for files in releases.values()],
        "dependencies": [
            {
                "ref": reference,
                "dependsOn": [r for other in sorted(edges.get(name, ())) for r in references.get(other, ())],
            }
            for name, found in references.items()
            for reference in found
        ],
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _reference(wheel: Wheel) -> str:
    """A package URL (https://github.com/package-url/purl-spec)."""
    return f"pkg:pypi/{wheel.name}@{wheel.version}"


def _component(files: list[Wheel], kind: str) -> dict[str, Any]:
    wheel = files[0]
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": _reference(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _reference(wheel),
    }
    if wheel.summary:
        component["description"] = wheel.summary
    if wheel.license:
        component["licenses"] = [{"license": {"name": wheel.license}}]
    component["components"] = [
        {
            "type": "file",
            "bom-ref": file.path.name,
            "name": file.path.name,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        }
        for file in files
    ]
    return component
