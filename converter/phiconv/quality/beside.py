"""A calibration that a conversion makes for itself: beside the output, and gone when that is there."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from phiconv.conversion.tasks import HERE
from phiconv.errors import OutputExistsError, UsageError
from phiconv.quantizers import best

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from phiconv.conversion.plans import Plan
    from phiconv.conversion.tasks import Workers
    from phiconv.quality.batches import Progress

__all__ = ["calibrated"]


@contextmanager
def calibrated(
    plan: Plan,
    text: str | Sequence[str] | None,
    tokens: int | None,
    *,
    force: bool,
    workers: Workers = HERE,
    progress: Progress | None,
) -> Iterator[Plan]:
    """Measures the source of a conversion, if anything is to have the best codes and nothing is known.

    What is there of an interrupted conversion is used: a finished measurement, or the beginning of one.

    Args:
        plan: The conversion.
        text: What to measure on; None for the texts that come with phiconv.
        tokens: About how many of them; None for the usual number.
        force: Whether the output may be there.
        workers: Where.
        progress: Is told how far it is.

    Yields:
        The plan to carry out. What was measured for it is removed when that is done.

    Raises:
        InputError: Something is wrong with the source.
        OutputError: The output is there, or nothing can be written beside it.
        UsageError: A text that would not be used.
    """
    if not _is_needed(plan):
        if text is not None or tokens is not None:
            raise UsageError(
                "a text to measure on, and nothing to measure for",
                hint="give it with --effort best, and without a calibration",
            )
        yield plan
        return
    main = plan.folder if plan.package.own_folder else plan.files[0]
    if not force and plan.files[0].exists():  # it would be a pity to find it out after an hour
        raise OutputExistsError("exists already", path=main, hint="give --force to replace it")
    folder = main.with_name(f"{main.name}.calibration")
    main.parent.mkdir(parents=True, exist_ok=True)
    from phiconv.quality.text import calibrate  # most conversions measure nothing

    calibrate(
        plan.model,
        text,
        folder,
        tokens=tokens,
        force=True,
        reuse=True,
        sensitivity=bool(plan.mixture),
        executor=workers.executor,
        jobs=workers.jobs,
        progress=progress,
    )
    assert plan.again is not None  # noqa: S101 - `phiconv.plan` sees to it
    yield plan.again(calibration=folder)
    shutil.rmtree(folder, ignore_errors=True)


def _is_needed(plan: Plan) -> bool:
    """Whether a quantizer would look at moments, and there are none."""
    streams = plan.package.streams
    wanted = any(s.effort == "best" and best.supports(s.encoding) for s in streams)
    return wanted and not any(s.moments for s in streams)
