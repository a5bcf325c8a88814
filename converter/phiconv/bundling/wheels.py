"""Wheels: phiconv's own, made of the files that run, and what others say of themselves.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import MissingFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Requirement", "Wheel", "canonical", "documents", "own_wheel", "read_wheel"]

_NAME = "phiconv"
_HERE = Path(__file__).resolve().parents[1]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a ZIP can hold
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^]]*)\])?[^;]*(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


class Requirement(NamedTuple):
    """Something that a distribution needs.

    Attributes:
        name: Of the other distribution, in the form of `canonical`.
        extras: Of it.
        extra: Of the one that needs it; "" where it always does.
    """

    name: str
    extras: tuple[str, ...]
    extra: str


class Wheel(NamedTuple):
    """What a wheel says of itself."""

    path: Path
    name: str
    version: str
    license: str
    summary: str
    requirements: tuple[Requirement, ...]
    sha256: str


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wheel(path: Path) -> Wheel:
    """Reads the metadata of a wheel."""
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        text = archive.read(name).decode()
    found = Parser().parsestr(text, headersonly=True)
    classifiers = [
        c.rpartition(" :: ")[2] for c in found.get_all("Classifier", []) if c.startswith("License ::")
    ]
    stated = found.get("License", "")
    licence = found.get("License-Expression") or ", ".join(classifiers)
    return Wheel(
        path,
        canonical(found["Name"]),
        found["Version"],
        licence or (stated if len(stated) < 80 and "\n" not in stated else ""),
        found.get("Summary", ""),
        tuple(map(_requirement, found.get_all("Requires-Dist", []))),
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _requirement(text: str) -> Requirement:
    match = _REQUIREMENT.fullmatch(text.strip())
    assert match is not None  # noqa: S101 - pip has read it before
    extras = tuple(canonical(extra.strip()) for extra in (match[2] or "").split(",") if extra.strip())
    extra = _EXTRA.search(match[3] or "")
    return Requirement(canonical(match[1]), extras, canonical(extra[1]) if extra else "")


def own_wheel(folder: Path) -> Path:
    """Writes a wheel of the phiconv that runs this into a folder, the same bytes every time.

    An installation has all that a wheel had, whether it is a copy or points to a source tree.

    Raises:
        MissingFileError: This phiconv has not been installed.
    """
    try:
        installed = distribution(_NAME)
    except PackageNotFoundError:
        raise MissingFileError(
            "phiconv runs from a source tree and is not installed",
            path=_HERE,
            hint="pip install it first",
        ) from None
    stem = f"{_NAME}-{installed.version}"
    files = {**_sources(), **_data(f"{stem}.data"), **_information(installed, f"{stem}.dist-info")}
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{name},{_record_hash(data)},{len(data)}" for name, data in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # on Windows too
            archive.writestr(entry, data)
    return path


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _sources() -> dict[str, bytes]:
    """The modules and data of both packages."""
    formats = find_spec("phiconv_formats")
    assert formats is not None  # noqa: S101 - half of phiconv
    roots = (_HERE, Path(formats.origin or "").parent)
    return {
        f"{root.name}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def documents() -> Iterator[tuple[str, bytes]]:
    """The documentation that came with phiconv: from an installation, or from a source tree."""
    candidates = (
        Path(sys.prefix, "share", "doc", _NAME),
        _HERE.parents[1] / "docs",
    )
    folder = next((path for path in candidates if path.is_dir()), None)
    for path in sorted(folder.rglob("*.md")) if folder else ():
        yield path.relative_to(folder or path).as_posix(), path.read_bytes()


def _data(prefix: str) -> dict[str, bytes]:
    return {f"{prefix}/data/share/doc/{_NAME}/{name}": data for name, data in documents()}


def _information(installed: Distribution, prefix: str) -> dict[str, bytes]:
    """What dist-info holds, but for what is about this installation."""
    wheel = "Wheel-Version: 1.0\nGenerator: phiconv bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    found: dict[str, bytes] = {}
    for name in ("METADATA", "entry_points.txt"):
        found[f"{prefix}/{name}"] = (installed.read_text(name) or "").encode()
    found[f"{prefix}/WHEEL"] = wheel.encode()
    licences: Mapping[str, Path] = {
        file.name: Path(str(file.locate())) for file in installed.files or () if "licenses" in file.parts
    }
    for name, path in sorted(licences.items()):
        found[f"{prefix}/licenses/{name}"] = path.read_bytes()
    return found
