"""Every error that phiconv raises on purpose, and nothing else.

    PhiconvError
    ├── InputError (ValueError)              something is wrong with what was given to read
    │   ├── MissingFileError (FileNotFoundError)
    │   ├── MalformedFileError               bytes that do not follow their format
    │   │   └── UnsafePickleError            a PyTorch file that asks for more than tensors
    │   ├── ConfigError                      a key of config.json or of a tokenizer file
    │   ├── UnsupportedModelError            understood, but not supported (yet)
    │   └── WeightError                      NaN, infinity, or a value that the target cannot hold
    ├── OutputError (OSError)                something is wrong with where to write
    │   ├── OutputExistsError (FileExistsError)
    │   └── DiskFullError
    ├── UsageError (ValueError)              options that do not go together
    ├── WorkerError                          a process of phiconv's own was ended by somebody else
    └── CancelledError                       the caller did not want it any more

A message says what is wrong, where (file, then tensor, key or byte), and what to do. It is one line: whatever
came out of a file is escaped, so that a hostile tensor name cannot forge a log line or drive a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "CancelledError",
    "ConfigError",
    "DiskFullError",
    "InputError",
    "MalformedFileError",
    "MissingFileError",
    "OutputError",
    "OutputExistsError",
    "PhiconvError",
    "UnsafePickleError",
    "UnsupportedModelError",
    "UsageError",
    "WeightError",
    "WorkerError",
    "printable",
]


def printable(text: object, limit: int = 200) -> str:
    """Returns ``text`` on one line, control characters escaped, cut to about ``limit`` characters."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1]
    )
    return line if len(line) <= limit else line[: limit - 1] + "…"


class PhiconvError(Exception):
    """The root of the tree.

    Args:
        message: What is wrong.
        path: The file it is about.
        at: Where in that file: a tensor, a key, a byte.
        hint: What to do about it.

    Attributes:
        found: What there is of a model all the same, see `phiconv.ir.findings`.
    """

    exit_code: int = 1

    def __init__(
        self, message: str, *, path: str | PathLike[str] | None = None, at: str = "", hint: str = ""
    ) -> None:
        self.message = message
        self.path = path
        self.at = at
        self.hint = hint
        self.found: object = None
        super().__init__(message)

    def __str__(self) -> str:
        where = [printable(part) for part in (self.path, self.at) if part]
        text = ": ".join([*where, printable(self.message, 600)])
        return f"{text}; {printable(self.hint, 300)}" if self.hint else text


class InputError(PhiconvError, ValueError):
    """Something is wrong with what was given to read."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that is needed is not there."""


class MalformedFileError(InputError):
    """Bytes that do not follow their format."""


class UnsafePickleError(MalformedFileError):
    """A PyTorch file asks for something that is no tensor; PyTorch might run it, phiconv runs nothing."""


class ConfigError(InputError):
    """A key of a configuration or tokenizer file is missing, of the wrong type, or does not fit the rest."""


class UnsupportedModelError(InputError):
    """A model that was recognised and that phiconv does not support."""


class WeightError(InputError):
    """A weight is not finite, or the target type cannot hold it."""


class OutputError(PhiconvError, OSError):
    """The output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already and was not to be replaced."""


class DiskFullError(OutputError):
    """There is not enough space for the output."""


class UsageError(PhiconvError, ValueError):
    """Options that do not go together, or that the target does not know."""

    exit_code = 2


class WorkerError(PhiconvError):
    """A process that did a part of the work was ended by somebody else, or is not fit for it."""


class CancelledError(PhiconvError):
    """The event that was given as ``cancel`` is set."""
