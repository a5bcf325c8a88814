"""Tasks that do not depend on each other: their results in order, wherever they are carried out.

A task is a function that can be pickled, with what it needs: places in files rather than what is in them. As
results come in the order of the tasks, sums of them are the same for any number of workers.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from phiconv.errors import WorkerError
from phiconv.forward import threads
from phiconv.forward.rounding import rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["HERE", "Workers", "in_order"]

T = TypeVar("T")


class Workers(NamedTuple):
    """Where to work, as `phiconv.convert` takes it.

    Attributes:
        executor: None for this machine.
        jobs: Tasks that they do at once; None for as many as this machine does.
    """

    executor: Executor | None = None
    jobs: int | None = None


HERE = Workers()
"""No workers: one task after the other, each in all threads of this machine."""


def in_order(workers: Workers, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of tasks, in their order.

    Args:
        workers: Who carries them out. Twice as many as they do at once are under way.
        tasks: Functions, which can be pickled where the workers are other processes.

    Raises:
        WorkerError: A worker rounds otherwise than this machine; or it was lost, and the executor does not
            give its task to another.
        Exception: Of the first task, in order, that raised one.
    """
    if workers.executor is None:
        for task in tasks:
            yield task()
        return
    limit = 2 * (workers.jobs or os.cpu_count() or 1)
    waiting: deque[Future[_Done[T]]] = deque()
    try:
        for task in tasks:
            waiting.append(workers.executor.submit(_alone, task, rounding()))
            if len(waiting) == limit:
                yield waiting.popleft().result().value
        while waiting:
            yield waiting.popleft().result().value
    except BrokenExecutor as error:
        message = "a worker process was ended, as systems do when memory runs out"
        raise WorkerError(message, hint="use fewer workers") from error
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """A result as it is: Dask makes plain tuples of named ones that it sees."""

    value: T


def _alone(task: Callable[[], T], expected: str) -> _Done[T]:
    """A task in one thread, since there are as many workers as there are processors.

    Raises:
        WorkerError: This machine's rounding is not the expected one.
    """
    if rounding() != expected:
        message = f"{platform.node()} rounds otherwise: it has another kind of processor, or another NumPy"
        raise WorkerError(message, hint="let machines of one kind do this, with the same NumPy")
    with threads.alone(), threads.parallel():
        return _Done(task())
