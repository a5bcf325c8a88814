"""What comes of a verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from phiconv.brief import Brief

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXIT_CODES", "Finding", "Outcome", "Verification", "finding_text"]

Outcome: TypeAlias = Literal["verified", "differs", "unknown"]
"""What is known of an output.

    verified  all that was looked at is as the receipt says
    differs   something is not
    unknown   it cannot be judged: there is no receipt, or something is missing that it takes to make it again
"""

EXIT_CODES: dict[Outcome, int] = {"verified": 0, "differs": 3, "unknown": 4}


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Brief):
    """Something that is not as it should be.

    Attributes:
        what: What is wrong.
        file: In which file.
        at: Where in it: a tensor and a row, a byte, a key of the receipt; "" for all of it.
    """

    what: str
    file: str
    at: str = ""


def finding_text(finding: Finding) -> str:
    """A finding in one line."""
    return ": ".join(part for part in (finding.file, finding.at, finding.what) if part)


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Brief):
    """What was looked at, and what was found.

    Attributes:
        receipt: The receipt; None where there is none.
        outcome: See `Outcome`.
        findings: What differs.
        why: Why it cannot be judged, a sentence; else "".
        rederived: It was made again from the source, and every byte compared.
        readers: The libraries that opened it.
        signature: The signature that the given key has made; None where there is none, or no key.
        notes: What else there is to know.
    """

    receipt: Path | None
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    why: str = ""
    rederived: bool = False
    readers: tuple[str, ...] = ()
    signature: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return EXIT_CODES[self.outcome]
