"""An output that is complete but for its weights: what a writer hands over, and the pipeline carries out.

Every byte's place is fixed before a weight is read. So a dry run of the writer is the plan, with exact sizes;
the weights can be streamed in any order and from any thread, and the bytes do not depend on either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.brief import Brief
from phiconv.forward.ops import ATTENTION_ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import Effort, Encoded, Encoding, FloatArray, FloatEncoding, Tensor
    from phiconv.ir.model import Model, Role
    from phiconv.ir.moments import Metric, Moments
    from phiconv.ir.ranges import Ranges

__all__ = [
    "Label",
    "OutputFile",
    "OutputTensor",
    "Package",
    "RuntimeSettings",
    "Segment",
    "Stream",
    "joined_roles",
    "roles_of",
]


@dataclass(frozen=True, slots=True, repr=False)
class RuntimeSettings(Brief):
    """What an output tells its runtime beyond the weights; see the fields of `phiconv.recipes.Choices`.

    Attributes:
        target: The kind of processor; None for the runtime's usual one.
        accuracy_level: How precisely it multiplies; None for its usual way.
        layout: Whose folder the files are laid out for; None for the format's usual one.
        attention: Of which operators attention is made; None for the usual ones.
        ranges: What quantized activations are scaled by, where there are any.
        context: How many positions there is room for; None for the format's usual number.
        modelfile: A Modelfile for Ollama stands beside the output.
    """

    target: str | None = None
    accuracy_level: int | None = None
    layout: str | None = None
    attention: str | None = None
    ranges: Ranges | None = None
    context: int | None = None
    modelfile: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class OutputTensor(Brief):
    """A tensor as the runtime wants it stored, before anybody has decided in which encoding.

    Attributes:
        name: Its name in the output.
        tensor: Where its weights come from.
        role: What it is for: the first one's where weights are joined, None in a file of plain tensors.
        required: The encoding that the runtime insists on, or None where a recipe may choose.
    """

    name: str
    tensor: Tensor
    role: Role | None
    required: Encoding | None = None

    @property
    def in_encoder(self) -> bool:
        """Whether it is one of an encoder beside the decoder (see `phiconv.ir.senses`)."""
        return self.role is not None and "." in self.role.name


def roles_of(outputs: Sequence[OutputTensor], model: Model) -> list[Role | None]:
    """What each tensor is for; one that is stored as it will be has the role of its first rows."""
    first_rows = {(t.runs[0].source, t.runs[0].start): role for role, t in model.tensors.items()}
    runs = [output.tensor.runs[0] for output in outputs]
    return [o.role or first_rows.get((run.source, run.start)) for o, run in zip(outputs, runs, strict=True)]


_JOINED = (ATTENTION_ROLES, ("ffn_gate", "ffn_up"), ("experts_gate", "experts_up"))
"""Matrices that a format may store as one."""


def joined_roles(role: Role, tensor: Tensor, model: Model) -> list[Role]:
    """The matrices that are joined in a tensor, the first of which is known."""
    names = next((some[some.index(role.name) :] for some in _JOINED if role.name in some), (role.name,))
    found: list[Role] = []
    rows = 0
    for name in names:
        each = role._replace(name=name)
        if rows < tensor.rows and each in model.tensors:
            found.append(each)
            rows += model.tensors[each].rows
    return found


@dataclass(frozen=True, slots=True, repr=False)
class Segment(Brief):
    """Where the packed rows of a tensor go: row ``i`` at byte ``offset + i // rows * row_bytes`` of a file.

    Where a runtime has the rows as columns, that is their place in the first of several lines, each as long
    as the first; a packer then gives one row of bytes for every line.

    Attributes:
        file: Its name.
        offset: Of the first row.
        row_bytes: Bytes of a row (in a line), or of so many rows together:
        rows: More than 1 where a row alone would end within a byte or have no number of its own; 0 for what
            is there once for the whole tensor, and the same whichever rows are packed.
        lines: How many there are.
    """

    file: str
    offset: int
    row_bytes: int
    rows: int = 1
    lines: int = 1

    def position(self, row: int) -> int:
        """The byte at which a row begins, a multiple of ``rows``."""
        return self.offset + (row // self.rows * self.row_bytes if self.rows else 0)

    def line_bytes(self, rows: int) -> int:
        """Bytes of a line of so many rows."""
        return self.row_bytes * (-(-rows // self.rows) if self.rows else 1)


@dataclass(frozen=True, slots=True, repr=False)
class Stream(Brief):
    """A tensor on its way: rows are read, encoded, packed, and written to each segment.

    Attributes:
        name: Its name in the output.
        tensor: The source.
        encoding: What its rows are encoded to.
        pack: Turns encoded rows into the bytes of each segment.
        segments: Where those bytes go.
        importance: Importance weights, float32 of shape (matrices, columns), one matrix after the other; or
            None.
        effort: How hard to look for good codes, as `phiconv.quantizers.encode` takes it.
        cast: What the weights are rounded to before they are quantized; None for as they are.
        moments: Gives what went into a matrix of the tensor on some text, by the number of the matrix in a
            stack, for `effort` "best"; None where that does not count.
        metrics: What is made of that before the rows are quantized: the error that counts in each matrix.
            None for a matrix that is left to the runtime's own quantizer.
        scaled_with: The tensors whose largest weight a scale of the whole tensor follows from, itself among
            them; the encoding gets it before the rows are quantized. Empty where it has none.
    """

    name: str
    tensor: Tensor
    encoding: Encoding
    pack: Callable[[Encoded], tuple[NDArray, ...]]  # type: ignore[type-arg]
    segments: tuple[Segment, ...]
    importance: FloatArray | None = None
    effort: Effort = "exact"
    cast: FloatEncoding | None = None
    moments: Callable[[int], Moments | None] | None = None
    metrics: tuple[Metric | None, ...] | None = None
    scaled_with: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the output."""
        return sum(s.line_bytes(self.tensor.rows) * s.lines for s in self.segments)

    @property
    def rows_together(self) -> int:
        """Rows that must not be packed apart."""
        return math.lcm(*(s.rows for s in self.segments if s.rows))


@dataclass(frozen=True, slots=True, repr=False)
class OutputFile(Brief):
    """A file of the output: its exact size, and the parts of it that need no weight.

    Attributes:
        name: File name, maybe in a folder inside of the output's: ``onnx/model.onnx``.
        size: Bytes; what no chunk and no stream covers is zero.
        chunks: Offsets and bytes.
        check: Is given the complete file under its temporary name, and raises an `OutputError` if it is not
            what was laid out; None where nobody looks. It runs in the process of the conversion.
    """

    name: str
    size: int
    chunks: tuple[tuple[int, bytes], ...]
    check: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Label(Brief):
    """What an output is called among those of its folder.

    Attributes:
        name: The file that was asked for, whatever else is written with it; "" for a folder as a whole.
        format: The format.
        recipe: The recipe.
    """

    name: str = ""
    format: str = ""
    recipe: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Package(Brief):
    """The whole output.

    Attributes:
        files: The files. The first is the one that a runtime opens; it appears last under its final name.
        streams: The tensors, in the order of the output.
        notes: What the user should know about this output; one line each.
        own_folder: The output is a folder as a whole, which should hold nothing else.
        stale: Patterns of file names that a runtime, or a person, would take for parts of this output; files
            of an older output that have such names are removed when this one replaces it.
        beside: Patterns of names of files that an own folder may hold beside these: the same in another type.
        label: What it is called, once it is known where it goes.
    """

    files: tuple[OutputFile, ...]
    streams: tuple[Stream, ...]
    notes: tuple[str, ...] = ()
    own_folder: bool = False
    stale: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    label: Label = Label()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)
