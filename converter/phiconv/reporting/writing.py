"""Gathers a report, and writes it as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.conversion.outputs import partial_files
from phiconv.conversion.paths import expanded
from phiconv.conversion.source import open_model
from phiconv.errors import OutputExistsError
from phiconv.ir.model import Model
from phiconv.reporting.gathering import gather
from phiconv.reporting.numbers import Report
from phiconv.reporting.page import page
from phiconv_formats.shared.output import OutputFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import ArrayLike

    from phiconv.conversion.pipeline import Progress

__all__ = ["Report", "report"]


def report(
    original: str | PathLike[str] | Model,
    candidates: Sequence[str | PathLike[str] | Model],
    destination: str | PathLike[str],
    *,
    text: str | ArrayLike | None = None,
    reference_file: str | PathLike[str] | None = None,
    context: int = 512,
    llama: bool = False,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes a page about what became of a model: sizes, memory, errors, and what models make of a text.

    The page is one file of HTML that needs nothing else. The same models and text give the same bytes.

    Args:
        original: The model before, a path, as `open_model` takes it, or an open model.
        candidates: What became of it: 1 to 25 models.
        destination: The file.
        text: A text that all models read, or its token ids; None leaves out what needs one. It is cut into
            windows, and the tail is dropped.
        reference_file: Keeps what was computed of the original for the next time, see `evaluate_all`.
        context: Tokens of a window.
        llama: Score as llama-perplexity does, see `evaluate_all`.
        jobs: Number of threads; by default one per processor.
        force: Replace a file that exists.
        progress: Is told how far it is, with each model anew.

    Returns:
        The numbers: ``original``, ``candidates`` and ``text``.

    Raises:
        InputError: The models do not have the same weights, or one is wrong.
        OutputError: The file cannot be written.
        UsageError: The text is shorter than a window, or there are no candidates.
    """
    path = expanded(destination)
    if not force and path.exists():  # it would be a pity to find it out after an hour
        raise OutputExistsError("exists already", path=path, hint="give --force to replace it")
    opened = [each if isinstance(each, Model) else open_model(each) for each in (original, *candidates)]
    found = gather(
        opened[0],
        opened[1:],
        text=text,
        reference_file=None if reference_file is None else expanded(reference_file),
        context=context,
        llama=llama,
        jobs=jobs,
        progress=progress,
    )
    data = page(found)
    with partial_files(path.parent, (OutputFile(path.name, len(data), ((0, data),)),), force=force):
        return found
