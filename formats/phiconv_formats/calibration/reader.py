"""Calibration folders, opened: what went into a matrix, by its role."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import MalformedFileError
from phiconv.ir.moments import Moments, Sample
from phiconv_formats.calibration.arrays import ArrayFile, open_array
from phiconv_formats.calibration.manifest import (
    IMATRIX,
    MANIFEST,
    arrays_of_part,
    read_manifest,
    squares_of,
    windows_of,
)
from phiconv_formats.gguf.imatrix import read_imatrix
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Role
    from phiconv_formats.calibration.manifest import InputEntry, Manifest, PartName

__all__ = ["Calibration", "open_calibration"]


_LARGEST_MATRIX = 1 << 30
_LEAST_DIVERGENCE = 1e-12


class Calibration:
    """A calibration folder. Arrays are mapped, and compared with their hashes when they are first used.

    Attributes:
        path: The folder.
        manifest: What its ``calibration.json`` says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._entries = {(e.layer, name): e for e in manifest.inputs for name in e.roles}
        self._open: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> tuple[Path, Manifest]:
        return self.path, self.manifest

    def __setstate__(self, state: tuple[Path, Manifest]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def of(self, role: Role, expert: int | None = None) -> Moments | None:
        """What went into a matrix.

        Args:
            role: The matrix. A tied output matrix is found under both of its names.
            expert: Which one of a stack.

        Returns:
            None where nothing was measured: it is no matrix of the model, or no token chose the expert.

        Raises:
            MissingFileError: An array is not there.
            MalformedFileError: An array is not what was measured.
        """
        entry = self._entries.get((role.layer, role.name)) if role.part == "weight" else None
        if entry is None or entry.stacked != (expert is not None):
            return None
        number = expert or 0
        counts = [part.tokens for part in entry.parts.values()]
        if number >= len(counts[0]) or not any(count[number] for count in counts):
            return None
        squares = self._array(squares_of(entry.stem, entry.columns, len(counts[0]), entry.squares))
        if squares.min(initial=0) < 0:
            raise MalformedFileError(
                "a sum of squares is negative", path=self.path / f"{entry.stem}.squares.npy"
            )
        return Moments(
            squares[number], self._sample(entry, "fit", number), self._sample(entry, "check", number)
        )

    @property
    def windows(self) -> NDArray[np.intp] | None:
        """The tokens that were computed, shape (windows, context); None where they were not kept."""
        manifest = self.manifest
        if not manifest.windows:
            return None
        file = windows_of(manifest.context, manifest.tokens, manifest.windows)
        return self._array(file).astype(np.intp)

    def divergence(self, role: Role) -> float | None:
        """What rounding a matrix coarsely does to the predictions: mean divergence, in nats.

        Between the layers that were tried it is assumed to change evenly, in its logarithm.

        Returns:
            None where no matrix of this name was tried.
        """
        known = {
            s.layer: math.log(max(s.divergence, _LEAST_DIVERGENCE))
            for s in self.manifest.sensitivities
            if s.role == role.name and (s.layer is None) == (role.layer is None)
        }
        if not known:
            return None
        if role.layer is None:
            return math.exp(known[None])
        layers = sorted(layer for layer in known if layer is not None)
        return math.exp(np.interp(role.layer, layers, [known[layer] for layer in layers]))

    def importance(self) -> ImportanceMatrix:
        """The importance matrix in the folder: the diagonals of all second moments.

        Raises:
            MalformedFileError: It is not what was measured.
        """
        path = self.path / IMATRIX
        if hashlib.sha256(read_small_file(path, _LARGEST_MATRIX)).hexdigest() != self.manifest.imatrix:
            raise MalformedFileError("is not what was measured", path=path, hint="make the calibration again")
        return read_imatrix(path)

    def _sample(self, entry: InputEntry, name: PartName, number: int) -> Sample:
        part, stem = entry.parts[name], entry.stem
        files = arrays_of_part(
            stem, name, entry.columns, part.tokens, moments="moments" in part.sha256, stacked=entry.stacked
        )
        arrays = {
            kind: self._array(ArrayFile(f.name, f.type, f.shape, part.sha256[kind]))
            for kind, f in files.items()
        }
        tokens = part.tokens[number]
        if "moments" in arrays:
            matrix = arrays["moments"][number] if entry.stacked else arrays["moments"]
            if np.diagonal(matrix).min(initial=0) < 0:
                raise MalformedFileError("a mean square is negative", path=self.path / files["moments"].name)
            return Sample(tokens, entry.columns, matrix)
        rows = None
        if entry.stacked:
            rows = np.flatnonzero(arrays["experts"] == number)
            if len(rows) != tokens:
                raise MalformedFileError(
                    f"{len(rows)} rows of expert {number}, and there were {tokens} tokens",
                    path=self.path / files["experts"].name,
                )
        return Sample(tokens, entry.columns, None, arrays["inputs"], arrays["scales"], rows)

    def _array(self, file: ArrayFile) -> NDArray[Any]:
        if file.name not in self._open:
            self._open[file.name] = open_array(self.path, file)
        return self._open[file.name]


def open_calibration(path: Path) -> Calibration:
    """Opens a folder; reads no array.

    Raises:
        MissingFileError: It is no such folder.
        MalformedFileError: Its ``calibration.json`` is damaged.
        UnsupportedModelError: Another version of phiconv made it.
    """
    return Calibration(path, read_manifest(path / MANIFEST))
