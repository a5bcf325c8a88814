"""The folder of a calibration while it is made: ``NAME.partial``, which keeps what is done if a run is ended.

Its ``state.json`` lists finished stages with the SHA-256 of every array, and which measurement it is.
Whatever is not listed there is made again, and what is listed is read and compared before it counts. The
folder gets its final name when all is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.conversion.names import partial_name
from phiconv.conversion.new_folder import remove_leftovers
from phiconv.conversion.outputs import PartialFile
from phiconv.errors import InputError, OutputExistsError
from phiconv_formats.calibration.arrays import ArrayFile, array_header, open_array
from phiconv_formats.calibration.manifest import (
    MANIFEST,
    PARTS,
    arrays_of_part,
    input_from_json,
    input_to_json,
    squares_of,
)
from phiconv_formats.shared.strict_json import load_json_object

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv_formats.calibration.manifest import InputEntry

__all__ = ["Rows", "Workspace", "file_sha256"]

_STATE = "state.json"
_FORMAT = "phiconv calibration, unfinished"
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Rows:
    """An array in a file, whose rows are written by whichever process has them; see `Workspace.rows`.

    Each writing opens and closes the file: so the next one to open it sees all, on another machine, too.

    Attributes:
        path: The file.
        file: What is in it.
    """

    path: Path
    file: ArrayFile

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Writes rows, the first of which is ``start``."""
        if not rows.size:
            return
        data = np.ascontiguousarray(rows, self.file.dtype)
        place = len(array_header(self.file)) + start * (data.nbytes // len(data))
        PartialFile(self.path, self.path, keep_open=False).write(place, data)

    def mapped(self) -> NDArray[Any]:
        """All rows, not to be written to."""
        head = len(array_header(self.file))
        return np.asarray(np.memmap(self.path, self.file.dtype, "r", head, self.file.shape))


class Workspace:
    """What is there of a calibration.

    Attributes:
        folder: Where it is.
        stages: What the finished stages measured.
    """

    def __init__(self, destination: Path, run: str, *, force: bool) -> None:
        self.destination = destination
        self.folder = destination.with_name(destination.name + ".partial")
        self.stages: list[tuple[InputEntry, ...]] = []
        self._run = run
        self._stream: ArrayFile | None = None
        _check_destination(destination, force=force)
        if self.folder.exists() or self.folder.is_symlink():
            self._resume(force=force)
        else:
            self.folder.mkdir(parents=True)
            self._write_state()

    def _resume(self, *, force: bool) -> None:
        """Takes over what is there, if it is whole and of the same measurement."""
        try:
            state = load_json_object(self.folder / _STATE, limit=64 << 20)
        except InputError:
            state = {}
        # What is complete has no list any more: a run that was killed before it got its name left it.
        ours = state.get("format") == _FORMAT or (self.folder / MANIFEST).is_file()
        if not ours and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise OutputExistsError(
                "is in the way, and is no unfinished calibration", path=self.folder, hint="move it away"
            )
        if state.get("run", self._run) != self._run and not force:
            raise OutputExistsError(
                "holds an unfinished calibration of another model, or with other texts or options",
                path=self.folder,
                hint="give the same ones to go on, or --force to start anew",
            )
        if state.get("run") == self._run:
            try:
                self._take(state)
            except (InputError, KeyError, TypeError, ValueError):
                self.stages, self._stream = [], None
        keep = {file.name for stage in self.stages for entry in stage for file in _files(entry)}
        keep |= {self._stream.name} if self._stream else set()
        for path in self.folder.iterdir():
            if path.name not in {*keep, _STATE} and not path.is_dir():
                path.unlink()
        self._write_state()

    def _take(self, state: dict[str, Any]) -> None:
        path = self.folder / _STATE
        self.stages = [tuple(input_from_json(e, path) for e in stage) for stage in state["stages"]]
        for stage in self.stages:
            for file in (file for entry in stage for file in _files(entry)):
                open_array(self.folder, file)
        if state["stream"] is not None:
            name, width, rows, sha256 = state["stream"]
            self._stream = ArrayFile(str(name), "float32", (int(rows), int(width)), str(sha256))
            if (self.folder / self._stream.name).exists():
                open_array(self.folder, self._stream)

    def stream(self) -> Rows | None:
        """What came out of the last finished stage; None at the beginning."""
        return None if self._stream is None else Rows(self.folder / self._stream.name, self._stream)

    def create(self, file: ArrayFile) -> NDArray[Any]:
        """Makes the file of an array, filled with zeros, and maps it."""
        path = self.rows(file).path
        if 0 in file.shape:  # no system maps nothing
            return np.empty(file.shape, file.dtype)
        return np.memmap(path, file.dtype, "r+", len(array_header(file)), file.shape)

    def rows(self, file: ArrayFile) -> Rows:
        """Makes the file of an array, its space reserved and filled with zeros."""
        path, head = self.folder / file.name, array_header(file)
        path.unlink(missing_ok=True)
        partial = PartialFile(path, path)
        try:
            partial.create(file.size)
            partial.write(0, head)
        finally:
            partial.close()
        return Rows(path, file)

    @staticmethod
    def remove(rows: Rows) -> None:
        """Removes a file that is needed no more, or leaves it to `finish_stage` where it is mapped still."""
        with suppress(OSError):
            rows.path.unlink()

    def seal(self, file: ArrayFile) -> str:
        """The SHA-256 of a complete array.

        It is not waited for the disk: bytes that a power cut loses do not have the hash, and do not count.
        """
        return file_sha256(self.folder / file.name)

    def finish_stage(self, entries: tuple[InputEntry, ...], stream: ArrayFile | None) -> None:
        """Notes that a stage is done; ``stream`` is what the next one starts from."""
        before = self._stream
        self.stages.append(entries)
        if stream is not None:
            self._stream = ArrayFile(stream.name, stream.type, stream.shape, self.seal(stream))
        self._write_state()
        if before is not None and before != self._stream:
            (self.folder / before.name).unlink(missing_ok=True)

    def _write_state(self) -> None:
        stream = self._stream and (self._stream.name, *self._stream.shape[::-1], self._stream.sha256)
        stages = [[input_to_json(entry) for entry in stage] for stage in self.stages]
        state = {"format": _FORMAT, "run": self._run, "stages": stages, "stream": stream}
        self.write(_STATE, json.dumps(state).encode())

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file, whole or not at all."""
        path = self.folder / f"{name}.new"
        path.write_bytes(data)
        path.replace(self.folder / name)

    def publish(self) -> None:
        """Gives the folder its final name; the files of the run itself go."""
        if self._stream is not None:
            (self.folder / self._stream.name).unlink(missing_ok=True)
        (self.folder / _STATE).unlink()
        if self.destination.is_dir():
            # A run that is killed between the renamings leaves no calibration, and all for the next one.
            old = partial_name(self.destination)
            self.destination.rename(old)
            self.folder.rename(self.destination)
            shutil.rmtree(old)
        else:
            self.folder.rename(self.destination)
        remove_leftovers(self.destination)


def _files(entry: InputEntry) -> list[ArrayFile]:
    """All arrays of an input, with their hashes."""
    matrices = len(entry.parts["fit"].tokens)
    files = [squares_of(entry.stem, entry.columns, matrices, entry.squares)]
    for name in PARTS:
        part = entry.parts[name]
        found = arrays_of_part(
            entry.stem,
            name,
            entry.columns,
            part.tokens,
            moments="moments" in part.sha256,
            stacked=entry.stacked,
        )
        files += [ArrayFile(f.name, f.type, f.shape, part.sha256[kind]) for kind, f in found.items()]
    return files


def _check_destination(path: Path, *, force: bool) -> None:
    """Refuses to replace anything but a calibration, and that only with ``force``."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise OutputExistsError("exists and is no calibration", path=path, hint="choose another name")
    if not force:
        raise OutputExistsError("exists already", path=path, hint="give --force to replace it")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
