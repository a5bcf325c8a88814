"""Signs and checks with OpenSSF's own package, which is imported when it is needed and not before.

The package comes with Sigstore's client, and so with an HTTP client. Of all that only keys in files are used,
and these need no connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from phiconv.errors import InputError, UsageError
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from phiconv.verification.signature import Signed

__all__ = ["PrivateKey", "PublicKey"]

_LIMIT = 1 << 20
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_NEW_KEY = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out PRIVATE.pem"
_NEW_PUBLIC_KEY = "get it with: openssl ec -in PRIVATE.pem -pubout -out PUBLIC.pem"


def _package() -> Any:
    """The package.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import model_signing
    except ImportError:
        message = "signatures are made and checked with model-signing, which is not installed"
        raise UsageError(message, hint="pip install 'phiconv[sign]'") from None
    return model_signing


class _Sums:
    """Stands where the package has a `hashing.Config`, for files whose sums are known."""

    def __init__(self, name: str, sums: Mapping[str, str], ignored: Iterable[str] = ()) -> None:
        self._name, self._sums, self._ignored = name, sums, sorted(ignored)

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:  # noqa: ARG002
        """The manifest of the files."""
        from model_signing import manifest
        from model_signing._hashing.hashing import Digest

        how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
        serialization = manifest.SerializationType.from_args({**how, "ignore_paths": self._ignored})
        items = [
            manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(each)))
            for name, each in self._sums.items()
        ]
        return manifest.Manifest(self._name, items, serialization)

    def add_ignored_paths(self, **_: object) -> None:
        """Nothing is looked for, so nothing is ignored."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key on an elliptic curve, in a file.

    Attributes:
        path: The file, in PEM.
        password: What it is encrypted with.
    """

    path: Path
    password: bytes | None = None

    def check(self) -> None:
        """Sees whether it can sign, before any work is done.

        Raises:
            UsageError: The package is not installed.
            InputError: The file cannot be read, or is no such key, or the password is wrong.
        """
        _package()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = read_small_file(self.path, _LIMIT)
        try:
            key = load_pem_private_key(data, self.password)
        except TypeError:
            what, hint = "is encrypted, and there is no password", "give --password-file"
            if self.password is not None:
                what, hint = "is not encrypted", "leave --password-file out"
            raise InputError(what, path=self.path, hint=hint) from None
        except (ValueError, UnsupportedAlgorithm):
            if self.password is not None and b"ENCRYPTED" in data:
                raise InputError("is encrypted with another password", path=self.path) from None
            raise InputError("is no private key in PEM", path=self.path, hint=_NEW_KEY) from None
        if getattr(getattr(key, "curve", None), "name", "") not in _CURVES:
            _refuse_kind(self.path, _NEW_KEY)

    def sign(self, name: str, sums: Mapping[str, str], ignored: Iterable[str]) -> bytes:
        """Signs sums of files; returns what is to be written, other bytes every time.

        Args:
            name: What the model is called.
            sums: SHA-256 sums by the names of the files.
            ignored: Names of what else may be in the folder.

        Raises:
            UsageError, InputError: As `check`.
        """
        self.check()
        signer = _package().signing.Config().set_hashing_config(_Sums(name, sums, ignored))
        with TemporaryDirectory(prefix="phiconv-") as folder:
            made = Path(folder, "signature")
            # The annotation says text, but it is handed on to what takes bytes.
            signer.use_elliptic_key_signer(private_key=self.path, password=self.password).sign(folder, made)
            return made.read_bytes()


class PublicKey:
    """A public key on an elliptic curve, in a file.

    Args:
        path: The file, in PEM.

    Raises:
        UsageError: The package is not installed.
        InputError: The file cannot be read, or is no such key.
    """

    def __init__(self, path: Path) -> None:
        _package()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        self.path = path
        try:
            key = serialization.load_pem_public_key(read_small_file(path, _LIMIT))
        except (ValueError, UnsupportedAlgorithm):
            raise InputError("is no public key in PEM", path=path, hint=_NEW_PUBLIC_KEY) from None
        if getattr(getattr(key, "curve", None), "name", "") not in _CURVES:
            _refuse_kind(path, "ask whoever signed for the right key")
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self._hint = hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, form)).hexdigest()

    def refusal(self, signed: Signed) -> str:
        """Why a signature is not one of this key, and what to do; "" if it is."""
        if signed.hint not in {"", self._hint}:
            return f"is by another key than {self.path.name}; ask whoever signed for the right one"
        from cryptography.exceptions import InvalidSignature

        verifier = _package().verifying.Config().set_hashing_config(_Sums(signed.name, signed.sums))
        with TemporaryDirectory(prefix="phiconv-") as folder, contextlib.redirect_stdout(io.StringIO()):
            there = Path(folder, "signature")
            there.write_bytes(signed.data)  # what has been read, whatever happens to the file meanwhile
            try:
                verifier.use_elliptic_key_verifier(public_key=self.path).verify(Path(folder), there)
            except (InvalidSignature, ValueError, LookupError, TypeError):
                return (
                    f"does not hold with {self.path.name}: it was changed, or another key made it;"
                    " get it again, or the right key"
                )
        return ""


def _refuse_kind(path: Path, hint: str) -> NoReturn:
    raise InputError(f"is no key on one of the curves {', '.join(_CURVES.values())}", path=path, hint=hint)
