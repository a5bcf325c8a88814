"""The sums of an output's files and tensors, against those of its receipt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.conversion.digests import Digests, sha256_of, sha256_of_parts
from phiconv.conversion.names import receipt_name
from phiconv.conversion.replacing import strangers
from phiconv.errors import InputError, MalformedFileError, MissingFileError
from phiconv.verification.outcome import Finding
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from phiconv.verification.stated import Stated, StatedTensor

__all__ = ["Sums", "check_sums"]

_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums that there are, and what differs.

    Attributes:
        digests: Of files and tensors; "" for what cannot be read.
        findings: What is not as the receipt says.
    """

    digests: Digests
    findings: tuple[Finding, ...]


def check_sums(stated: Stated, folder: Path, jobs: int | None, beside: Collection[str] = ()) -> Sums:
    """Takes all sums of an output.

    Args:
        stated: The receipt.
        folder: Where the files are.
        jobs: Number of threads; by default one per processor.
        beside: Names of other files that may be in a folder: its signature.
    """
    files, findings = _files(stated, folder)
    _check_amount(stated, files)
    with ThreadPoolExecutor(jobs, thread_name_prefix="phiconv") as pool:
        found = [pool.submit(sha256_of, file) for file in files.values()]
        sums = {name: task.result() for name, task in zip(files, found, strict=True)}
        tensors = [*pool.map(lambda tensor: _tensor(tensor, files), stated.tensors)]
    wrong = [t for t, digest in zip(stated.tensors, tensors, strict=True) if digest != t.digest]
    holding = {part.file for tensor in stated.tensors for part in tensor.parts}
    for name in (n for n in stated.outputs if n in sums and sums[n] != stated.outputs[n]):
        within = [t for t in wrong if any(part.file == name for part in t.parts)]
        findings += [_changed(name, t) for t in within[:_MOST_NAMED]] or [
            Finding("is not as the receipt says, but all tensors in it are", name, "what is no weight")
            if name in holding
            else Finding("is not as the receipt says", name)
        ]
    whole = {name for name in stated.outputs if sums.get(name) == stated.outputs[name]}
    findings += [
        Finding("the sum of a tensor is not that of its bytes", stated.path.name, f"tensor {tensor.name}")
        for tensor in wrong
        if {part.file for part in tensor.parts} <= whole
    ][:_MOST_NAMED]
    if not stated.output and stated.path.name == receipt_name(""):
        known = {*stated.outputs, receipt_name(""), *beside}
        findings += [Finding("is not of this output", name) for name in sorted(strangers(folder, known))]
    digests = Digests({name: sums.get(name, "") for name in stated.outputs}, tensors, ())
    return Sums(digests, tuple(findings))


def _check_amount(stated: Stated, files: dict[str, InputFile]) -> None:
    """Refuses tensors that lie over each other: they might be any number of times the size of the files."""
    total = sum(file.size for file in files.values())
    parts = [part for tensor in stated.tensors for part in tensor.parts if part.file in files]
    inside = (part.length for part in parts if part.offset + part.length <= files[part.file].size)
    if sum(inside) > total:
        raise MalformedFileError("tensors that lie over each other", path=stated.path)


def _changed(name: str, tensor: StatedTensor) -> Finding:
    part = next(part for part in tensor.parts if part.file == name)
    where = f"tensor {tensor.name}, bytes {part.offset} to {part.offset + part.length}"
    return Finding("is not as the receipt says", name, where)


def _files(stated: Stated, folder: Path) -> tuple[dict[str, InputFile], list[Finding]]:
    """The files that are there."""
    files, findings = {}, []
    for name in stated.outputs:
        file = InputFile(folder / name, within=folder)
        try:
            with file:
                files[name] = file
        except MissingFileError:
            findings.append(Finding("is missing", name))
        except InputError as error:
            findings.append(Finding(error.message, name))
    return files, findings


def _tensor(tensor: StatedTensor, files: dict[str, InputFile]) -> str:
    """The sum of a tensor's bytes; "" where some are not there."""
    parts = [(files[p.file], p.offset, p.length) for p in tensor.parts if p.file in files]
    inside = all(offset + length <= file.size for file, offset, length in parts)
    return sha256_of_parts(parts) if inside and len(parts) == len(tensor.parts) else ""
