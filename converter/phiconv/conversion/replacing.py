"""What an output may replace: what phiconv wrote, as a whole, and nothing else.

The manifest of the folder says what is phiconv's (see `manifest`). A file that it lists and that has another
size now is not: somebody changed it. Files that the new output has too are replaced when that is asked for,
whoever wrote them. Anything else in a folder that is an output would be mixed with it, so it is refused, but
for what is harmless anywhere.

A single file needs no manifest, whether or not it has a receipt: that is told by its name. It goes before the
file is replaced and comes after, so that no file ever has the receipt of another one.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phiconv.conversion.manifest import MANIFEST, Entry, read_manifest, write_manifest
from phiconv.conversion.names import RECEIPT_HEAD, inner_name, name_within, receipt_name
from phiconv.errors import InputError, OutputError, OutputExistsError, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from phiconv_formats.shared.output import Label, OutputFile

__all__ = ["Destination", "Replacement", "strangers"]

# What lies in folders without being of a model, in lower case. No runtime opens any of it.
_HARMLESS = (
    ".git",
    ".gitattributes",
    ".gitignore",
    ".cache",
    ".huggingface",
    ".ds_store",
    "._*",
    ".nfs*",
    "thumbs.db",
    "desktop.ini",
    "lost+found",
    "license*",
    "licence*",
    "notice*",
    "copying*",
    "*.md",
)

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an output goes, and what it will be.

    Attributes:
        folder: Where the files go.
        files: Names and sizes.
        label: What it is called.
        own_folder: The folder is the output.
        stale: Patterns of names that would be taken for parts of this output.
        beside: Patterns of names of other graphs and the like, which may stay where the output is a folder.
        source: What is converted; it must not be replaced.
        force: What is there may be replaced.
    """

    folder: Path
    files: Sequence[OutputFile]
    label: Label
    own_folder: bool = False
    stale: Sequence[str] = ()
    beside: Sequence[str] = ()
    source: Path | None = None
    force: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Names and sizes of the files."""
        return {file.name: file.size for file in self.files}

    @property
    def receipt(self) -> str:
        """What a receipt of the output is called, whether or not there is one."""
        return receipt_name(self.label.name)

    @property
    def is_alone(self) -> bool:
        """Whether it is a single file, but for its receipt."""
        return not self.own_folder and len({*self.sizes} - {self.receipt}) == 1

    def is_stale(self, name: str) -> bool:
        """Whether a file of this name would be taken for a part of this output."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.stale)

    def may_stay(self, name: str) -> bool:
        """Whether a file of this name may stand beside the output's."""
        found = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.beside)
        return found and not self.is_stale(name) and name not in self.sizes

    @property
    def folders(self) -> set[Path]:
        """Where files of the output are."""
        return {(self.folder / name).parent for name in (MANIFEST, *self.sizes)}

    def is_leftover(self, inner: str) -> bool:
        """Whether a temporary file in the folder was for this output; see `inner_name`."""
        names = {MANIFEST, self.label.name, *(name.rpartition("/")[2] for name in self.sizes)}
        return self.own_folder or inner in map(inner_name, names) or self.is_stale(inner)

    def replacement(self) -> Replacement:
        """What has to be done with what is there now.

        Raises:
            OutputExistsError: Something is there that may not be replaced.
            OutputError: The source would be replaced.
        """
        return _Look(self).replacement()


@dataclass(frozen=True, slots=True)
class Replacement:
    """A change of a folder from one whole output to another.

    Attributes:
        destination: The new output.
        old: Files of the old one that are there and do not stay, and their sizes.
        kept: Those that stay.
        mains: Files of the new one that runtimes open first, in the old output or the new one.
        others: The other outputs of the folder, without what is taken over from them.
        listed: The folder's manifest has, or gets, something to list.
    """

    destination: Destination
    old: Mapping[str, int]
    kept: Mapping[str, int]
    mains: tuple[str, ...]
    others: tuple[Entry, ...]
    listed: bool

    @property
    def removed(self) -> list[str]:
        """The old files that the new output does not have."""
        sizes = self.destination.sizes
        return [name for name in self.old if name not in sizes]

    @property
    def is_one_step(self) -> bool:
        """Whether one renaming does it all, so that there is nothing in between; a receipt does not count."""
        if self.destination.is_alone:
            return not {*self.removed} - {self.destination.receipt}
        return len(self.destination.files) + len(self.removed) == 1

    def announce(self) -> None:
        """Writes down what is about to happen, and takes away what a runtime would open meanwhile."""
        destination = self.destination
        if self.is_one_step:
            if destination.is_alone:
                (destination.folder / destination.receipt).unlink(missing_ok=True)
            return
        self._write(Entry(destination.label, {**destination.sizes, **self.kept}, self.old))
        for name in self.mains:
            (destination.folder / name).unlink(missing_ok=True)

    def may_replace(self, name: str) -> bool:
        """Whether a file of the new output may take the place of what has its name at that moment."""
        return self.destination.force or name in self.old

    def undo(self, done: Iterable[str]) -> None:
        """Takes back files that have their names already; nothing is lost where there was no older output."""
        if self.destination.force or self.old:
            return
        for name in done:
            (self.destination.folder / name).unlink(missing_ok=True)
        if not self.is_one_step:
            write_manifest(self.destination.folder, self.others)

    def settle(self) -> None:
        """Removes what is left of the old output, and writes down what there is now."""
        destination = self.destination
        for name in self.removed:
            path = destination.folder / name
            path.unlink(missing_ok=True)
            if path.parent != destination.folder:
                with contextlib.suppress(OSError):  # other files are there
                    path.parent.rmdir()
        if self.listed or not self.is_one_step:
            files = {} if destination.is_alone else {**destination.sizes, **self.kept}
            self._write(Entry(destination.label, files))

    def _write(self, entry: Entry) -> None:
        write_manifest(self.destination.folder, [*self.others, entry])


class _Look:
    """A look at what is in a folder, for one output that goes there."""

    def __init__(self, destination: Destination) -> None:
        self.to = destination
        self.sizes = destination.sizes
        self.entries = self._manifest()
        label = destination.label
        self.own = next((e for e in self.entries if e.label.name == label.name), Entry(label))
        listed = (self.own.files, self.own.old or {})
        names = {destination.receipt, *self.sizes, *listed[0], *listed[1]}
        self.present = _names(destination.folder, names)
        self.known = {
            name: size
            for name in dict.fromkeys(n for names in listed for n in names)
            if name in self.present
            and (size := _size(destination.folder / name)) is not None
            and size in [names.get(name) for names in listed]
        }
        # A run that was ended while it wrote this for the first time has taken nothing from anybody.
        self.is_fresh_start = self.own.old == {}

    def replacement(self) -> Replacement:
        """See `Destination.replacement`."""
        for name in self.sizes:
            if name in self.present and (self.to.folder / name).is_dir():
                raise OutputExistsError("is a folder", path=self.to.folder / name, hint="choose another name")
        old = self._of_folder() if self.to.own_folder else self._of_file()
        self._check_source(old)
        files = self.to.files
        main = next(iter(self.own.old or self.own.files), "")
        mains = [name for name in (main, files[0].name) if name in self.sizes and name in self.present]
        others = [_without(e, self.sizes) for e in self.entries if e is not self.own]
        listed = not self.to.is_alone or bool(self.own.files)
        kept = {name: size for name, size in old.items() if self.to.may_stay(name)}
        old = {name: size for name, size in old.items() if name not in kept}
        return Replacement(self.to, old, kept, tuple(dict.fromkeys(mains)), tuple(others), listed)

    def _manifest(self) -> list[Entry]:
        """What the folder is known to hold; an output that is not listed does not mind a stranger's file."""
        try:
            return read_manifest(self.to.folder)
        except InputError as error:
            if not self.to.is_alone:
                path = self.to.folder / MANIFEST
                raise OutputExistsError(
                    f"another file has the name of phiconv's list of outputs ({error.message})",
                    path=path,
                    hint="choose another folder, or remove it",
                ) from error
            return []

    def _of_folder(self) -> dict[str, int]:
        folder, there = self.to.folder, {name for name in self.present if not _is_harmless(name)}
        ours = {name for name in self.present if name in self.known or name in self.sizes}
        strangers = {name for name in there - ours if not self.to.may_stay(name)}
        if strangers:
            what = "is not empty, and holds what is not of this output"
            self._refuse(what, strangers, "choose another folder, or remove them")
        if ours and not self.to.force and not (self.is_fresh_start and ours <= {*self.known}):
            kind = (
                f"an output for {printable(self.own.label.format, 40)}" if self.own.files else _listed(ours)
            )
            hint = "choose another folder, or give --force"
            raise OutputExistsError(f"is not empty: {kind}", path=folder, hint=hint)
        return self._with_sizes(ours)

    def _of_file(self) -> dict[str, int]:
        taken = {name for name in (*self.sizes, self.to.receipt) if name in self.present}
        if taken == {self.to.receipt} and _is_receipt(self.to.folder / self.to.receipt):
            taken = set()  # what it was for is gone
        stale = {name for name in self.present if self.to.is_stale(name)} - taken
        may_replace = self.to.force or (self.is_fresh_start and taken | stale <= {*self.known})
        if not may_replace:
            for name in sorted(taken) or sorted(stale & {self.to.label.name}):
                raise OutputExistsError(
                    "exists already", path=self.to.folder / name, hint="give --force to replace it"
                )
            if stale and stale <= {*self.known}:
                self._refuse("holds an older output of this name", stale, "give --force to replace it")
        if strangers := stale - {*self.known, self.to.label.name}:
            what = "holds files that would be taken for parts of this output"
            self._refuse(what, strangers, "choose another name, or remove them")
        for entry in self.entries:
            if not entry.label.name and (shared := taken & {*entry.files, *(entry.old or ())}):
                what = f"is an output for {printable(entry.label.format, 40)} as a whole"
                self._refuse(what, shared, "choose another folder, or give the folder as the destination")
        return self._with_sizes(taken | stale | {*self.known}) if may_replace else {}

    def _refuse(self, what: str, names: Collection[str], hint: str) -> None:
        raise OutputExistsError(f"{what}: {_listed(names)}", path=self.to.folder, hint=hint)

    def _with_sizes(self, names: Collection[str]) -> dict[str, int]:
        """Names with sizes: those of the old output first, in its order."""
        ordered = [*(name for name in self.known if name in names), *sorted({*names} - {*self.known})]
        return {name: self.known.get(name) or _size(self.to.folder / name) or 0 for name in ordered}

    def _check_source(self, old: Mapping[str, int]) -> None:
        source = self.to.source
        if source is None or not source.is_file():
            return
        for name in old:
            path = self.to.folder / name
            if path.exists() and path.samefile(source):
                raise OutputError(
                    "would be replaced, and is the source", path=path, hint="choose another name"
                )


def _names(folder: Path, wanted: Collection[str]) -> frozenset[str]:
    """The names in a folder, and in those within it where wanted ones are, but for what phiconv keeps there.

    Links are not followed. Where a folder cannot be listed, it is the wanted names that are there.
    """
    try:
        found = os.listdir(folder)  # noqa: PTH208 - only the names
    except OSError:
        found = [name for name in wanted if os.path.lexists(folder / name)]
    within: dict[str, list[str]] = {}
    for name in wanted:
        first, slash, rest = name.partition("/")
        if slash:
            within.setdefault(first, []).append(rest)
    names: set[str] = set()
    for name in found:
        path = folder / name
        if name in within and path.is_dir() and not path.is_symlink():
            names |= {f"{name}/{other}" for other in _names(path, within[name])}
        elif name != MANIFEST and not name_within(name):
            names.add(name)
    return frozenset(names)


def _is_receipt(path: Path) -> bool:
    """Whether a file begins as the receipts that phiconv writes."""
    try:
        with path.open("rb") as file:
            return _size(path) is not None and file.read(len(RECEIPT_HEAD)) == RECEIPT_HEAD
    except OSError:
        return False


def strangers(folder: Path, names: Collection[str]) -> set[str]:
    """What lies in the folder of an output, is none of its files, and is not harmless anywhere."""
    return {name for name in _names(folder, names) - {*names} if not _is_harmless(name)}


def _size(path: Path) -> int | None:
    """The size of a regular file; None of anything else, links too."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _listed(names: Collection[str]) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(printable(name, 60) for name in sorted(names)[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _is_harmless(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _HARMLESS)


def _without(entry: Entry, names: Collection[str]) -> Entry:
    """An output without files that have become another's."""
    return replace(entry, files={name: size for name, size in entry.files.items() if name not in names})
