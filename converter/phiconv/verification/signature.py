"""A signature in the form of OpenSSF Model Signing: where it is, what it says, and whether the files are so.

A Sigstore bundle holds a DSSE envelope, and this an in-toto statement with the sum of each file
(https://github.com/ossf/model-signing-spec/blob/main/spec/v1.0.md). Whether a key made it is not asked here,
see `openssf`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from phiconv.conversion.digests import sha256_of
from phiconv.conversion.manifest import MANIFEST, is_plain_name
from phiconv.conversion.names import receipt_name
from phiconv.errors import InputError, MalformedFileError, MissingFileError, UnsupportedModelError, printable
from phiconv.verification.outcome import Finding
from phiconv_formats.shared.files import InputFile, read_small_file
from phiconv_formats.shared.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.verification.stated import Stated

__all__ = ["FOLDER_SIGNATURE", "Signed", "compare_signed", "read_signature", "signature_path"]

FOLDER_SIGNATURE = "model.sig"
"""What the signature of a folder is called in it, by custom of OpenSSF's own tool."""

Maker: TypeAlias = Literal["a key", "a certificate", "Sigstore's servers"]
"""What a signature was made with."""

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_ALONE = "."
"""What OpenSSF's tool calls a file that is signed by itself; by the specification it has its own name."""

_LIMIT = 64 << 20
_SUM = re.compile(r"[0-9a-f]{64}")
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature says.

    Attributes:
        path: The file.
        data: All of it.
        by: What it was made with.
        hint: The SHA-256 sum of the public key in PEM; "" where it is not said.
        name: What the model was called.
        sums: SHA-256 sums of the files that are signed, by name; that of a file by itself may be `_ALONE`.
    """

    path: Path
    data: bytes
    by: Maker
    hint: str
    name: str
    sums: dict[str, str]


def signature_path(receipt: Path) -> Path:
    """Where the signature of an output is: beside its receipt."""
    if receipt.name == receipt_name(""):
        return receipt.with_name(FOLDER_SIGNATURE)
    return receipt.with_name(f"{receipt.name.removesuffix('.receipt.json')}.sig")


def read_signature(path: Path) -> Signed:
    """Reads a signature, without asking who made it.

    Raises:
        InputError: It cannot be read.
        MalformedFileError: It is none.
        UnsupportedModelError: It has sums of parts of files, or other sums than SHA-256.
    """
    data = read_small_file(path, _LIMIT)
    return _Reader(path).read(data)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads values of JSON; keys that others may have added are let be, as the specification wants it."""

    path: Path

    def read(self, data: bytes) -> Signed:
        bundle = parse_json(data, path=self.path)
        self.same(self.value(bundle, "mediaType", str), _BUNDLE, "mediaType")
        material = self.value(bundle, "verificationMaterial", dict)
        envelope = self.value(bundle, "dsseEnvelope", dict)
        self.same(self.value(envelope, "payloadType", str), _PAYLOAD, "payloadType")
        signatures = self.value(envelope, "signatures", list)
        if len(signatures) != 1:
            self.fail("signatures", "must be one")
        self.base64(self.value(signatures[0], "sig", str), "sig")
        payload = self.base64(self.value(envelope, "payload", str), "payload")
        statement = parse_json(payload, path=self.path, at="payload")
        self.same(self.value(statement, "_type", str), _STATEMENT, "_type")
        self.same(self.value(statement, "predicateType", str), _PREDICATE, "predicateType")
        subjects = self.value(statement, "subject", list)
        if len(subjects) != 1:
            self.fail("subject", "must be one")
        name = self.value(subjects[0], "name", str)
        by, hint = self.maker(material)
        return Signed(self.path, data, by, hint, name, self.sums(self.value(statement, "predicate", dict)))

    def maker(
        self, material: dict[str, Any]
    ) -> tuple[Literal["a key", "a certificate", "Sigstore's servers"], str]:
        if "x509CertificateChain" in material:
            return "a certificate", ""
        if "certificate" in material:
            self.value(material, "tlogEntries", list)
            return "Sigstore's servers", ""
        key = self.value(material, "publicKey", dict)
        hint = key.get("hint")
        return "a key", hint if isinstance(hint, str) else ""

    def sums(self, predicate: dict[str, Any]) -> dict[str, str]:
        """Names and sums of the files."""
        how = self.value(predicate, "serialization", dict)
        if (how.get("method"), how.get("hash_type")) != ("files", "sha256"):
            kind = f"{printable(how.get('method'), 20)} and {printable(how.get('hash_type'), 20)}"
            raise UnsupportedModelError(
                f"signs {kind}, and phiconv checks SHA-256 sums of whole files",
                path=self.path,
                hint="check it with OpenSSF's model_signing",
            )
        found: dict[str, str] = {}
        for number, each in enumerate(self.value(predicate, "resources", list)):
            at = f"resources[{number}]"
            name, digest = self.value(each, "name", str, at), self.value(each, "digest", str, at)
            if name not in {_ALONE, MANIFEST} and not is_plain_name(name):
                self.fail(at, f"{printable(name, 60)} is no name of a file in a folder")
            if name in found:
                self.fail(at, f"{printable(name, 60)} is there twice")
            if self.value(each, "algorithm", str, at) != "sha256" or not _SUM.fullmatch(digest):
                self.fail(at, "has no SHA-256 sum")
            found[name] = digest
        if not found or (_ALONE in found and len(found) > 1):
            self.fail("resources", "must be files in a folder, or one file")
        return found

    def value(self, holder: Any, key: str, kind: type, at: str = "") -> Any:
        """What an object has for a key."""
        found = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(found, kind):
            self.fail(f"{at}.{key}" if at else key, "is missing, or of another type")
        return found

    def base64(self, text: str, at: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            self.fail(at, "is no base64")

    def same(self, value: str, expected: str, at: str) -> None:
        if value != expected:
            self.fail(at, f"is {printable(value, 80)}, where a signature of a model has {expected}")

    def fail(self, at: str, message: str) -> NoReturn:
        raise MalformedFileError(message, path=self.path, at=at)


def compare_signed(
    signed: Signed, stated: Stated, folder: Path, digests: Mapping[str, str]
) -> tuple[list[Finding], list[str]]:
    """Compares the files of an output, and its receipt, with what a signature says of them.

    Args:
        signed: The signature, which the right key has made.
        stated: The receipt.
        folder: Where the files are.
        digests: The sums of the files of the output, "" for those that cannot be read.

    Returns:
        What differs, and what else there is to know.
    """
    sums, notes, receipt = dict(signed.sums), list[str](), _name_of_receipt(stated, folder)
    needed = {*stated.outputs, receipt}
    if len(stated.outputs) == 1 and stated.output and sums.keys() <= {_ALONE, *stated.outputs}:
        needed = {*stated.outputs}  # signed by itself
        sums = dict.fromkeys(needed, next(iter(sums.values())))
        notes = [f"{receipt} is not signed: the signature is of the file alone, and phiconv sign signs both"]
    if not needed & sums.keys():
        names = ", ".join(printable(name, 60) for name in sorted(sums)[:_MOST_NAMED])
        what = f"is of other files ({names}); give --signature the one of this output"
        return [Finding(what, signed.path.name)], []
    findings = [
        Finding("is not signed: it came later, or somebody has to sign the output again", name)
        for name in sorted(needed - sums.keys())
    ]
    for name, digest in sums.items():
        if digests.get(name) == "":
            continue  # which has been said
        try:
            found = digests.get(name) or sha256_of(
                InputFile(stated.path) if name == receipt else InputFile(folder / name, within=folder)
            )
        except MissingFileError:
            findings.append(Finding("is signed, and missing; get it again", name))
            continue
        except InputError as error:
            findings.append(Finding(error.message, name))
            continue
        if found != digest:
            findings.append(Finding("is not as it was signed; get it again", name))
    return findings, notes


def _name_of_receipt(stated: Stated, folder: Path) -> str:
    """What a receipt is called in the folder of its output, wherever it is now."""
    try:
        return stated.path.relative_to(folder).as_posix()
    except ValueError:
        return receipt_name(stated.output)
