"""What `phiconv verify` found, for a person or for a program with ``--json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.errors import printable

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.verification.outcome import Verification

__all__ = ["verification_lines", "verification_object"]

_SAYS = {"verified": "verified", "differs": "differs", "unknown": "cannot be judged"}


def verification_object(found: Verification) -> dict[str, Any]:
    """A verification, for ``--json``."""
    return {
        "outcome": found.outcome,
        "receipt": None if found.receipt is None else str(found.receipt),
        "rederived": found.rederived,
        "readers": list(found.readers),
        "signature": None if found.signature is None else str(found.signature),
        "findings": [{"what": f.what, "file": f.file, "at": f.at or None} for f in found.findings],
        "why": found.why or None,
        "notes": list(found.notes),
    }


def verification_lines(found: Verification, output: Path) -> list[str]:
    """A verification, for people."""
    lines = [f"{printable(output, 120)}: {_SAYS[found.outcome]}"]
    for finding in found.findings:
        where = ": ".join(printable(part) for part in (finding.file, finding.at) if part)
        lines.append(f"  {where}: {printable(finding.what, 300)}")
    if found.why:
        lines.append(f"  {printable(found.why, 600)}")
    if found.receipt is not None:
        looked = ["files and tensors by their sums"] + ["every byte, made again"] * found.rederived
        looked += [f"signed by the key, {printable(found.signature.name)}"] if found.signature else []
        looked += [f"opened with {', '.join(found.readers)}"] if found.readers else []
        lines.append(f"looked at: {'; '.join(looked)}")
    return [*lines, *(f"note: {printable(note, 600)}" for note in found.notes)]
