"""What phiconv wrote into a folder: `MANIFEST`, one small file beside outputs of more than one file.

    {"phiconv": 1, "outputs": [{"output": "", "format": "mlx", "recipe": "4bit", "state": "complete",
                                "files": {"config.json": 1234, ...}}]}

An output is a folder as a whole (""), or a file with what belongs to it, by the name that was asked for. The
state is "replacing", and "old" lists what was there, from before the first file gets its name until after the
last one has. Names that are no UTF-8 are there with their bytes as halves of surrogate pairs, as Python has
them. Nothing but what was written counts: the same output has the same manifest.

The file may come from a stranger, with a folder. One that is not exactly like this is no manifest at all, and
no name in it leads out of the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phiconv.conversion.names import partial_name
from phiconv.errors import InputError, MalformedFileError
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.output import Label
from phiconv_formats.shared.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["MANIFEST", "Entry", "is_plain_name", "read_manifest", "refuse_half_replaced", "write_manifest"]

MANIFEST = ".phiconv.json"
"""Its name. It begins with a dot, and no runtime looks for it."""

_VERSION = 1
_LIMIT = 16 << 20  # bytes; 99,999 shards take half of it
_MOST_VALUES = 500_000
_MOST_LEVELS = 2  # folders above a file of an output in which its manifest may be
_STATES = ("complete", "replacing")


@dataclass(frozen=True, slots=True)
class Entry:
    """An output in a folder.

    Attributes:
        label: What it is called.
        files: Names and sizes; the first is the one that a runtime opens.
        old: Names and sizes of what it replaces, as long as it does; None when it is complete.
    """

    label: Label
    files: Mapping[str, int] = field(default_factory=dict)
    old: Mapping[str, int] | None = None


def read_manifest(folder: Path) -> list[Entry]:
    """The outputs that a folder is known to hold; [] without a manifest.

    Raises:
        InputError: There is a file, or whatever else, of that name, which is no manifest.
    """
    path = folder / MANIFEST
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    if not stat.S_ISREG(status.st_mode):
        raise MalformedFileError("not a regular file", path=path)
    data = read_small_file(path, _LIMIT)
    value = parse_json(data, path=path, max_values=_MOST_VALUES, surrogates=True)
    entries = _entries(value)
    if entries is None:
        raise MalformedFileError("not a list of outputs as this version of phiconv writes it", path=path)
    return entries


def write_manifest(folder: Path, entries: Iterable[Entry]) -> None:
    """Replaces the manifest of a folder, at once; where there is nothing to list it is removed."""
    path = folder / MANIFEST
    listed = [_object(entry) for entry in sorted(entries, key=lambda e: e.label.name) if entry.files]
    if not listed:
        path.unlink(missing_ok=True)
        return
    data = json.dumps({"phiconv": _VERSION, "outputs": listed}, indent=1).encode() + b"\n"
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # noqa: PTH105 - says what it does
    finally:
        with contextlib.suppress(OSError):  # the reason is another
            partial.unlink(missing_ok=True)


def refuse_half_replaced(path: Path) -> None:
    """Refuses a source that a run was replacing when it was ended: it may be of two models.

    Raises:
        MalformedFileError: It is such a folder, or a file in one.
    """
    for folder in (path, *path.parents[:_MOST_LEVELS]):
        try:
            entries = read_manifest(folder)
        except InputError:  # a stranger's file of that name says nothing
            continue
        own = path.relative_to(folder).as_posix()
        for entry in entries:
            names = {*entry.files, *(entry.old or ())}
            within = own == "." or any(f"{name}/".startswith(f"{own}/") for name in names)
            if entry.old is not None and within:
                raise MalformedFileError(
                    "a run of phiconv was ended while it wrote this: it may be of two models by halves",
                    path=folder / entry.label.name,
                    hint="convert to it again, with --force",
                )


def _object(entry: Entry) -> dict[str, Any]:
    label = entry.label
    state = _STATES[entry.old is not None]
    result = {"output": label.name, "format": label.format, "recipe": label.recipe, "state": state}
    return result | {"files": {**entry.files}} | ({} if entry.old is None else {"old": {**entry.old}})


def _entries(value: Any) -> list[Entry] | None:
    """The outputs of a manifest; None if anything in it is not as it must be."""
    if not isinstance(value, dict) or value.get("phiconv") != _VERSION:
        return None
    outputs = value.get("outputs")
    if not isinstance(outputs, list):
        return None
    entries = [_entry(output) for output in outputs]
    found = [entry for entry in entries if entry is not None]
    names = {entry.label.name for entry in found}
    return found if len(names) == len(outputs) else None


def _entry(value: Any) -> Entry | None:
    if not isinstance(value, dict):
        return None
    texts = [value.get(key) for key in ("output", "format", "recipe")]
    state, files, old = value.get("state"), value.get("files"), value.get("old")
    if not all(isinstance(text, str) for text in texts) or state not in _STATES or not _are_files(files):
        return None
    if (texts[0] and (not is_plain_name(texts[0]) or "/" in texts[0])) or (state == "complete") != (
        old is None
    ):
        return None
    if old is not None and not _are_files(old):
        return None
    return Entry(Label(*map(str, texts)), dict(files or {}), old)


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_plain_name(name) and type(size) is int and size >= 0 for name, size in value.items()
    )


def is_plain_name(name: str) -> bool:
    """Whether a text names a file in a folder, or below it, and not the manifest itself."""
    foreign = "\0\\:" if os.name == "nt" else "\0"
    parts = name.split("/")
    return name != MANIFEST and not {*parts} & {"", ".", ".."} and not {*name} & {*foreign}
