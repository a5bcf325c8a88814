"""What a plan is: the output without its weights, and what becomes of each tensor."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from phiconv.brief import Brief
from phiconv.ir import BF16, F16, F32, F64, FloatEncoding, plain_name
from phiconv.quantizers.repack import repackable
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from phiconv.conversion.receipt import Receipt
    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv_formats.calibration.reader import Calibration
    from phiconv_formats.shared.output import OutputTensor, Package

__all__ = ["LOSSLESS", "Action", "Plan", "TensorPlan", "action_of", "existing"]

Action: TypeAlias = Literal[
    "copied", "repacked", "widened", "merged", "rounded", "quantized", "dequantized", "requantized"
]
"""What happens to the numbers of a tensor.

    copied       they stay as they are stored
    repacked     so do all codes and scales, in the layout of another format
    widened      to a float type that holds each of them
    merged       the sum with an adapter stays as it is computed, in float32
    rounded      to another float type
    quantized    from floats to blocks
    dequantized  from blocks to floats
    requantized  from blocks to other blocks
"""

LOSSLESS: frozenset[Action] = frozenset({"copied", "repacked", "widened"})
"""The actions after which not one number has changed."""


class Planned(Protocol):
    """Makes a plan again."""

    def __call__(self, *, calibration: Path) -> Plan:
        """With what was measured."""


@dataclass(frozen=True, slots=True, repr=False)
class TensorPlan(Brief):
    """What becomes of one tensor.

    Attributes:
        name: Its name in the output.
        shape: Outermost dimension first.
        stored: How the source stores it.
        encoding: How the output will.
        nbytes: Bytes in the output.
        action: What happens to its numbers.
    """

    name: str
    shape: tuple[int, ...]
    stored: Encoding
    encoding: Encoding
    nbytes: int
    action: Action


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Brief):
    """A conversion that has not happened yet.

    Attributes:
        model: The source.
        folder: Where the files go.
        target: Name of the format.
        recipe: Name of the recipe.
        package: The output without its weights.
        tensors: What becomes of each tensor, in the order of the output.
        outputs: What the writer was given, in the same order.
        calibration: What was measured of the model, if anything.
        receipt: What the output's receipt says, but for the sums; None where it has none.
        mixture: The types that were chosen for a size, as ``--tensor-type`` takes them: patterns and names.
        again: Makes the same plan with a calibration; None where nobody needs one.
    """

    SHOWN = ("model", "files", "target", "recipe", "size", "bits_per_weight", "tensors", "mixture", "notes")

    model: Model
    folder: Path
    target: str
    recipe: str
    package: Package
    tensors: tuple[TensorPlan, ...]
    mixture: tuple[tuple[str, str], ...] = ()
    outputs: tuple[OutputTensor, ...] = ()
    calibration: Calibration | None = None
    receipt: Receipt | None = None
    again: Planned | None = field(default=None, compare=False)

    def _rows(self) -> tuple[Iterable[tuple[object, ...]], tuple[str, ...]]:
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.encoding.name] += tensor.nbytes
        return [(name, size_text(size)) for name, size in sizes.most_common()], ("type", "size")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that will be there, but for the receipt."""
        return tuple(self.folder / f.name for f in self.package.files)

    @property
    def receipt_path(self) -> Path | None:
        """The receipt, if there will be one."""
        return None if self.receipt is None else self.folder / self.receipt.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        return self.package.notes

    @property
    def size(self) -> int:
        """Bytes of all files, but for the receipt."""
        return self.package.size

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors."""
        weights = sum(s.tensor.size for s in self.package.streams)
        return 8 * sum(s.nbytes for s in self.package.streams) / weights if weights else 0.0

    @property
    def free_space(self) -> int:
        """Bytes that are free where the output goes."""
        return shutil.disk_usage(existing(self.folder)).free


def action_of(stored: Encoding, encoding: Encoding) -> Action:
    """What turns numbers of one encoding into another."""
    if stored == encoding:
        return "copied"
    if stored.name != plain_name(stored) and isinstance(encoding, FloatEncoding):
        return "merged" if encoding == F32 else "rounded"
    if repackable(stored, encoding):
        return "repacked"
    if isinstance(encoding, FloatEncoding):
        if not isinstance(stored, FloatEncoding):
            return "dequantized"
        return "widened" if encoding == F64 or (stored in {F16, BF16} and encoding == F32) else "rounded"
    return "quantized" if isinstance(stored, FloatEncoding) else "requantized"


def existing(folder: Path) -> Path:
    """The folder, or the one above it that is there: an output's own folder is made when it is needed."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
