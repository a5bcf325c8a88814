"""Checking outputs and signing them: the functions of the library, see `phiconv.api`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from phiconv.conversion.cancelling import heeding
from phiconv.conversion.paths import expanded
from phiconv.conversion.sequential import sequenced
from phiconv.errors import UsageError
from phiconv.verification.again import planned_again
from phiconv.verification.judging import Again, judge
from phiconv.verification.openssf import PrivateKey, PublicKey
from phiconv.verification.outcome import Finding, Verification
from phiconv.verification.signing import sign_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from phiconv.conversion.adapters import Lora
    from phiconv.conversion.cancelling import Cancel
    from phiconv.conversion.pipeline import Progress
    from phiconv.conversion.plans import Plan
    from phiconv.verification.stated import Stated

__all__ = ["Finding", "Verification", "sign", "verify"]


def verify(
    output: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    receipt: str | PathLike[str] | None = None,
    imatrix: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    ranges: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    lora: Sequence[Lora] = (),
    base: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
    signature: str | PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Verification:
    """Checks an output against its receipt; with the source it is made again, and every byte compared.

    Nothing is written. Without a source and a key the receipt is believed: whoever changes both is not found.

    Args:
        output: A file or a folder that `convert` wrote.
        source: What it was made of. Only its files count, and not where they are.
        receipt: Its receipt, where it is not beside it.
        imatrix: What else `convert` was given; the receipt says the options.
        calibration: Likewise.
        ranges: Likewise.
        config: Likewise.
        lora: Likewise, in the same order; the receipt has their weights.
        base: Likewise.
        key: A public key in PEM: whoever has its private key must have signed the output, see `sign`.
        signature: The signature, where it is not beside the receipt.
        jobs: Number of threads; by default one per processor.
        progress: Is told how far it is.
        cancel: An event; once it is set, the work ends with a CancelledError.

    Raises:
        CancelledError: It was to end.
        MissingFileError: There is no such output.
        InputError: The key cannot be read, or is none.
        UsageError: Something that is for making it again, and no source; a key, and no package to check with.
    """
    given = {"calibration": calibration, "imatrix": imatrix, "ranges": ranges, "config": config}
    if source is None and (lora or any(path is not None for path in (base, *given.values()))):
        raise UsageError("nothing is made again without a source", hint="give --source")
    if signature is not None and key is None:
        raise UsageError("a signature is checked with a key", hint="give --key")

    return judge(
        expanded(output),
        None if receipt is None else expanded(receipt),
        None if source is None else _again(expanded(source), lora, base, given),
        key=None if key is None else PublicKey(expanded(key)),
        signature=None if signature is None else expanded(signature),
        jobs=jobs,
        progress=heeding(progress, cancel),
    )


def _again(
    source: Path,
    lora: Sequence[Lora],
    base: str | PathLike[str] | None,
    others: Mapping[str, str | PathLike[str] | None],
) -> Again:
    """How an output is made again."""

    @contextmanager
    def plan_again(stated: Stated) -> Iterator[Plan]:
        with planned_again(stated, source, lora, base, others) as made, sequenced(made) as done:
            yield done

    roles = {role for role, path in {"base": base, **others}.items() if path is not None}
    return Again(source, {*roles, *(f"lora-{number}" for number in range(len(lora)))}, plan_again)


def sign(
    output: str | PathLike[str],
    key: str | PathLike[str],
    signature: str | PathLike[str] | None = None,
    *,
    password: bytes | None = None,
    force: bool = False,
    jobs: int | None = None,
) -> Path:
    """Signs an output together with its receipt, in the form of OpenSSF Model Signing; `verify` checks it.

    Needs the package model-signing (``phiconv[sign]``), and no network.

    Args:
        output: A file or a folder that `convert` wrote.
        key: A private key in PEM, on one of the elliptic curves P-256, P-384 and P-521.
        signature: Where the signature goes; by default beside the receipt.
        password: What the key is encrypted with.
        force: Replace a signature that is there.
        jobs: Number of threads; by default one per processor.

    Returns:
        Where the signature is.

    Raises:
        InputError: The output is not what its receipt says, or there is none; or the key is none.
        OutputError: The signature cannot be written.
        UsageError: The package is not installed.
    """
    private = PrivateKey(expanded(key), password)
    place = None if signature is None else expanded(signature)
    return sign_output(expanded(output), private, place, force=force, jobs=jobs)
