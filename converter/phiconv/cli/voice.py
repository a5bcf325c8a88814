"""How errors are told: one line for a person, an object for a program, and an exit code."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import click

from phiconv import errors
from phiconv.cli.signals import Ended
from phiconv.errors import PhiconvError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CODES", "error_object", "explained", "tame", "tell", "wants_json"]


class _InterruptedError(PhiconvError):
    def __init__(self, error: BaseException) -> None:
        asked = error if isinstance(error, Ended) else error.__cause__  # where click has put it
        number = asked.number if isinstance(asked, Ended) else signal.SIGINT
        self.exit_code = 128 + number
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        super().__init__(f"interrupted{by}")


class _OutOfMemoryError(PhiconvError):
    pass


class _SystemError(PhiconvError):
    pass


class _UnexpectedError(PhiconvError):
    pass


CODES: dict[type[PhiconvError], str] = {
    errors.MissingFileError: "missing_file",
    errors.UnsafePickleError: "unsafe_pickle",
    errors.MalformedFileError: "malformed_file",
    errors.ConfigError: "bad_config",
    errors.UnsupportedModelError: "unsupported_model",
    errors.WeightError: "bad_weight",
    errors.InputError: "bad_input",
    errors.OutputExistsError: "output_exists",
    errors.DiskFullError: "disk_full",
    errors.OutputError: "bad_output",
    errors.UsageError: "usage",
    errors.WorkerError: "worker_ended",
    errors.CancelledError: "cancelled",
    _InterruptedError: "interrupted",
    _OutOfMemoryError: "out_of_memory",
    _SystemError: "system",
    _UnexpectedError: "unexpected",
    PhiconvError: "error",
}
"""What programs know the kinds of errors by. These names stay."""


_USUAL_CURES: dict[type[PhiconvError], str] = {
    errors.MissingFileError: "check the name, and the folder that you are in",
    errors.UnsafePickleError: "take the weights as .safetensors",
    errors.MalformedFileError: "it may be damaged: download it, or make it, again",
    errors.ConfigError: "correct that file, or take that of the original model",
    errors.UnsupportedModelError: "'phiconv formats' lists what is supported",
    errors.WeightError: "convert the original checkpoint",
    errors.InputError: "give a model folder, or a file of weights",
    errors.OutputExistsError: "give --force to replace it",
    errors.DiskFullError: "make room, or choose another disk",
    errors.OutputError: "choose another destination",
    errors.UsageError: "'phiconv --help' says what there is",
    errors.WorkerError: "give --jobs 1",
    errors.CancelledError: "start it again",
}
"""What to do where an error itself does not say it."""


def _cure(error: PhiconvError) -> str:
    """What to do about an error."""
    kinds = (kind for kind in type(error).__mro__ if kind in _USUAL_CURES)
    return error.hint or next((_USUAL_CURES[kind] for kind in kinds), "")


def wants_json(words: Sequence[str]) -> bool:
    """Whether ``--json`` is among the arguments, however wrong the others are."""
    return any(word.lower() == "--json" for word in words)


def explained(error: BaseException) -> PhiconvError:
    """The error as one of phiconv's own, with what to do about it."""
    if isinstance(error, PhiconvError):
        return error
    if isinstance(error, (KeyboardInterrupt, EOFError, click.Abort)):
        return _InterruptedError(error)
    if isinstance(error, MemoryError):
        return _OutOfMemoryError("out of memory", hint="give --jobs 1")
    if isinstance(error, OSError) and error.strerror:
        path = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
        named = os.fsdecode(path) if path else None
        return _SystemError(error.strerror, path=named, hint="check its permissions and its disk")
    return _UnexpectedError(
        f"{type(error).__name__}: {printable(error)}",
        hint="set PHICONV_DEBUG=1 to see where, and please report it",
    )


def error_object(error: PhiconvError) -> dict[str, Any]:
    """An error, for ``--json``; null for what it does not say."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    cure = _cure(error)
    return {
        "code": code,
        "message": printable(error.message, 600),
        "path": str(error.path) if error.path else None,
        "at": error.at or None,
        "hint": cure or None,
    }


def tame(text: str) -> str:
    """A text of several lines, its other control characters escaped."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def tell(error: PhiconvError, *, as_json: bool) -> None:
    """The object on stdout for a program that asked for it, and the line on stderr in any case."""
    if as_json:
        click.echo(json.dumps({"error": error_object(error)}, indent=2))
    cure = "" if error.hint or not (usual := _cure(error)) else f"; {usual}"
    click.echo(f"phiconv: {error}{cure}", err=True)
