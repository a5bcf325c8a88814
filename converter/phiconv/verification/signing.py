"""Signs an output together with its receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.conversion.digests import sha256_of
from phiconv.conversion.manifest import MANIFEST, refuse_half_replaced
from phiconv.conversion.outputs import partial_files
from phiconv.errors import InputError, MissingFileError
from phiconv.verification.judging import find_receipt
from phiconv.verification.outcome import finding_text
from phiconv.verification.signature import FOLDER_SIGNATURE, signature_path
from phiconv.verification.stated import read_receipt
from phiconv.verification.sums import check_sums
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.output import OutputFile

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.verification.openssf import PrivateKey

__all__ = ["sign_output"]

_NEVER_SIGNED = (".git", ".gitattributes", ".github", ".gitignore", MANIFEST)
"""What the specification leaves out, and phiconv's list of what it may replace."""


def sign_output(
    output: Path, key: PrivateKey, signature: Path | None, *, force: bool, jobs: int | None
) -> Path:
    """Signs an output; see `phiconv.sign`."""
    key.check()
    receipt = find_receipt(output)
    if receipt is None:
        raise MissingFileError(
            "has no receipt, which is signed with it", path=output, hint="convert it without --no-receipt"
        )
    refuse_half_replaced(output)
    stated = read_receipt(receipt)
    folder = output if output.is_dir() else output.parent
    path = signature_path(receipt) if signature is None else signature
    sums = check_sums(stated, folder, jobs, {FOLDER_SIGNATURE, path.name})
    if sums.findings:
        raise InputError(
            f"is not what its receipt says: {finding_text(sums.findings[0])}",
            path=output,
            hint="convert it again: only what phiconv verify accepts is signed",
        )
    within = {path.relative_to(folder).as_posix()} if path.is_relative_to(folder) else set()
    files = {**sums.digests.files, receipt.relative_to(folder).as_posix(): sha256_of(InputFile(receipt))}
    called = stated.output or folder.name or folder.resolve().name
    for name in (called, *files):
        if not _is_utf8(name):
            raise InputError("has a name that is no UTF-8, which no signature can hold", path=folder / name)
    data = key.sign(called, files, {*_NEVER_SIGNED, *within})
    with partial_files(path.parent, [OutputFile(path.name, len(data), ((0, data),))], force=force):
        return path


def _is_utf8(name: str) -> bool:
    """Whether a name has none of the bytes that Python keeps as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
