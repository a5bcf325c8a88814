"""A calibration that a conversion makes for itself: beside the output, and gone when that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import OutputExistsError
from phiconv.quality.text import calibrate
from phiconv.quantizers import best

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from phiconv.conversion.planning import Plan
    from phiconv.quality.evaluation import Progress

__all__ = ["calibrate_beside", "needs_calibration"]


def needs_calibration(plan: Plan) -> bool:
    """Whether anything of an output is quantized with an effort that a measurement guides."""
    return any(s.effort == "best" and best.supports(s.encoding) for s in plan.package.streams)


def calibrate_beside(
    plan: Plan,
    text: str | Sequence[str] | None,
    tokens: int | None,
    *,
    force: bool,
    progress: Progress | None,
) -> Path:
    """Measures the source of a conversion.

    What is there of an interrupted conversion is used: a finished measurement, or the beginning of one.

    Args:
        plan: The conversion.
        text: What to measure on; None for the texts that come with phiconv.
        tokens: About how many of them; None for the usual number.
        force: Whether the output may be there.
        progress: Is told how far it is.

    Returns:
        The folder.

    Raises:
        InputError: Something is wrong with the source.
        OutputError: The output is there, or nothing can be written beside it.
    """
    main = plan.folder if plan.package.own_folder else plan.files[0]
    if not force and plan.files[0].exists():  # it would be a pity to find it out after an hour
        raise OutputExistsError("exists already", path=main, hint="give --force to replace it")
    folder = main.with_name(f"{main.name}.calibration")
    main.parent.mkdir(parents=True, exist_ok=True)
    return calibrate(plan.model, text, folder, tokens=tokens, force=True, reuse=True, progress=progress)
