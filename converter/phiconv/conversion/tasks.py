"""Tasks that do not depend on each other: their results in order, wherever they are carried out.

A task is a function that can be pickled, with what it needs: places in files rather than what is in them. As
results come in the order of the tasks, sums of them are the same for any number of workers.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from concurrent.futures import BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from phiconv.errors import WorkerError
from phiconv.forward import threads
from phiconv.forward.rounding import rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Executor

__all__ = ["HERE", "Done", "Workers", "in_order"]

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


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A result; as a task, one that is done.

    It hides what it holds from Dask, which would make plain tuples of named ones.
    """

    value: T

    def __call__(self) -> T:
        """The result."""
        return self.value


def in_order(workers: Workers, tasks: Iterable[Callable[[], T]]) -> Generator[T]:
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
    waiting: deque[Future[Done[T]]] = deque()
    try:
        for task in tasks:
            waiting.append(_submitted(workers.executor, task))
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


def _submitted(executor: Executor, task: Callable[[], T]) -> Future[Done[T]]:
    if not isinstance(task, Done):
        return executor.submit(_alone, task, rounding())
    future: Future[Done[T]] = Future()
    future.set_result(task)
    return future


def _alone(task: Callable[[], T], expected: str) -> Done[T]:
    """A task in one thread, since there are as many workers as there are processors.

    Raises:
        WorkerError: This machine's rounding is not the expected one.
    """
    if rounding() != expected:
        message = f"{platform.node()} rounds otherwise: it has another kind of processor, or another NumPy"
        raise WorkerError(message, hint="let machines of one kind do this, with the same NumPy")
    with threads.alone(), threads.parallel():
        return Done(task())
