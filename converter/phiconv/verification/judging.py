"""Judges an output by its receipt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from phiconv.conversion.builder import own_sources, versions
from phiconv.conversion.digests import Digests, sha256_of
from phiconv.conversion.manifest import refuse_half_replaced
from phiconv.conversion.names import receipt_name
from phiconv.errors import InputError, MissingFileError, PhiconvError
from phiconv.verification.opening import open_with_others
from phiconv.verification.outcome import Finding, Verification
from phiconv.verification.rederiving import compare_bytes, compare_receipts, compare_sources
from phiconv.verification.stated import read_receipt
from phiconv.verification.sums import check_sums

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from phiconv.conversion.pipeline import Progress
    from phiconv.conversion.plans import Plan
    from phiconv.verification.outcome import Outcome
    from phiconv.verification.stated import Stated
    from phiconv.verification.sums import Sums

__all__ = ["Again", "find_receipt", "judge"]

_PART = re.compile(r"(.*)-\d{5}-of-\d{5}(\.gguf)", re.DOTALL)

_FLAGS = {"calibration": "--calibration", "imatrix": "--imatrix", "ranges": "--ranges", "config": "--config"}


class Again(Protocol):
    """Plans the conversion that a receipt describes."""

    def __call__(self, stated: Stated) -> AbstractContextManager[Plan]:
        """The plan, for as long as the context lasts."""


def judge(
    output: Path,
    receipt: Path | None,
    again: Again | None,
    given: Collection[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Judges an output; see `phiconv.verify`.

    Args:
        output: A file, or a folder.
        receipt: Its receipt; None for the one beside it.
        again: Plans the conversion once more; None where there is no source to do it with.
        given: What there is beside the source: "imatrix", "lora-0".
        jobs: Number of threads.
        progress: Is told how far it is.

    Raises:
        MissingFileError: There is no such output.
    """
    path = find_receipt(output) if receipt is None else receipt
    if path is None:
        return Verification(
            None, "unknown", why="there is no receipt, which phiconv writes unless told not to"
        )
    try:
        stated = read_receipt(path)
        refuse_half_replaced(output)
        folder = output if output.is_dir() else output.parent
        sums = check_sums(stated, folder, jobs)
    except InputError as error:
        return Verification(path, "unknown", why=str(error))
    findings = [*_name_of_output(output, stated), *sums.findings]
    readers, refused, note = open_with_others(folder, stated.output, [*stated.outputs])
    findings += refused
    notes = [*([note] if note else []), *_maker_notes(stated)]
    rederived, why = False, ""
    if again is not None:
        try:
            found, rederived = _rederive(again, stated, folder, sums, given, jobs, progress)
            findings += found
        except PhiconvError as error:
            why = f"cannot be made again: {error}"
    # Another phiconv, or NumPy, may rightly give other bytes: then the sums speak, and no more can be said.
    if rederived and findings and not sums.findings and not refused and (other := _other_maker(stated)):
        notes += [_text(finding) for finding in findings]
        findings, why = [], f"another {other} has made it, and this one gives other bytes"
    outcome: Outcome = "differs" if findings else "unknown" if why else "verified"
    return Verification(
        path,
        outcome,
        tuple(findings),
        why,
        rederived,
        tuple(readers),
        tuple(notes),
    )


def _text(finding: Finding) -> str:
    return ": ".join(part for part in (finding.file, finding.at, finding.what) if part)


def find_receipt(output: Path) -> Path | None:
    """The receipt of a file or a folder, or of the split file that a file is a part of.

    Raises:
        MissingFileError: There is neither an output nor a receipt.
    """
    part = _PART.fullmatch(output.name)
    names = [output.name, part[1] + part[2]] if part else [output.name]
    places = [output.with_name(receipt_name(name)) for name in names]
    if output.is_dir():
        places = [output / receipt_name(""), *_inner_receipts(output)]
    found = next((place for place in places if place.is_file()), None)
    if found is None and not output.exists():
        raise MissingFileError("there is no such output", path=output)
    return found


def _inner_receipts(folder: Path) -> Iterator[Path]:
    """The receipt of a folder that may hold several outputs, where it is the only one."""
    found = sorted(folder.glob(receipt_name("onnx/*")))
    yield from found if len(found) == 1 else ()


def _name_of_output(output: Path, stated: Stated) -> list[Finding]:
    """Whether a file is called what the receipt calls it."""
    if output.is_dir() or output.name in {stated.output, *(n.rpartition("/")[2] for n in stated.outputs)}:
        return []
    return [Finding(f"is called {stated.output or 'a folder'} in the receipt", output.name)]


def _other_maker(stated: Stated) -> str:
    """What of that which decides on bytes is another one now."""
    if stated.own_sources != own_sources():
        return "phiconv"
    return "NumPy" if stated.versions["numpy"] != versions()["numpy"] else ""


def _maker_notes(stated: Stated) -> list[str]:
    """What made it, where that is not what verifies it."""
    own = versions()
    notes = [
        f"made with {name} {version}, verified with {own[name]}"
        for name, version in stated.versions.items()
        if version != own[name]
    ]
    if stated.own_sources != own_sources():
        notes.append("phiconv's own files are not those that made it")
    return notes


def _rederive(
    again: Again,
    stated: Stated,
    folder: Path,
    sums: Sums,
    given: Collection[str],
    jobs: int | None,
    progress: Progress | None,
) -> tuple[list[Finding], bool]:
    """Makes the output again; returns what differs, and whether it came so far."""
    roles = {name.partition("/")[0] for name in stated.sources} - {"source"}
    missing = sorted(roles - {*given})
    if missing:
        flags = ", ".join(_FLAGS.get(role, f"--{role.partition('-')[0]}") for role in missing)
        raise InputError("other files went into it than the source's", path=stated.path, hint=f"give {flags}")
    with again(stated) as plan:
        assert plan.receipt is not None  # noqa: S101 - it was planned with one
        digests = {name: sha256_of(file) for name, file in plan.receipt.sources}
        if findings := compare_sources(digests, stated):
            return findings, False
        findings = compare_bytes(plan, folder, stated, jobs, progress)
        if not findings and not sums.findings:
            all_sums = Digests(sums.digests.files, sums.digests.tensors, [*digests.values()])
            findings = compare_receipts(plan.receipt, all_sums, stated)
        return findings, True
