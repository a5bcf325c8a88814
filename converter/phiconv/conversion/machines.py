"""Work on several machines, by Dask (https://distributed.dask.org/): a scheduler, and workers that it knows.

Tasks are small and say where to read and where to write, so the machines must share a file system: that of
the source and of the destination, under the same paths. This is checked before the work begins.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiconv._version import __version__
from phiconv.conversion.tasks import HERE, Workers
from phiconv.errors import OutputError, UsageError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["machines"]

_RETRIES = 3
"""Times that a task is tried again after its worker was lost: it writes the same bytes to the same place."""

_WAIT = 20  # seconds for the scheduler to answer


@contextmanager
def machines(
    scheduler: str | None,
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    destination: str | PathLike[str] | None = None,
) -> Iterator[Workers]:
    """The workers of a Dask scheduler, while the block lasts.

    They must share a file system with this machine; what works on them is to be given absolute paths.

    Args:
        scheduler: Its address, like ``tcp://host:8786``; None for this machine alone.
        source: A file or folder that will be read, or several.
        destination: A file or folder that will be written, if one is; the folder that it is in must exist.

    Raises:
        UsageError: Dask is not installed, nobody answers, there is no worker, or one has another release.
        OutputError: A worker does not see the same files.
        WorkerError: The scheduler or its workers were lost.
    """
    if scheduler is None:
        yield HERE
        return
    with _client(scheduler) as client:
        _check_workers(client, scheduler)
        sources = [source] if isinstance(source, str | PathLike) else source
        _check_sources(client, [Path(each).absolute() for each in sources])
        if destination is not None:
            _check_destination(client, Path(destination).absolute())
        try:
            yield Workers(client.get_executor(retries=_RETRIES, pure=False), sum(client.nthreads().values()))
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "distributed":
                raise
            message = f"the scheduler at {scheduler} or its workers were lost: {type(error).__name__}"
            raise WorkerError(message, hint="start them again, and try again") from error


def _client(address: str) -> Any:
    try:
        import distributed
    except ImportError:
        message = "--scheduler needs Dask, which is not installed"
        raise UsageError(message, hint="pip install 'phiconv[distributed]'") from None
    try:
        client: Any = distributed.Client  # it has no types
        return client(address, timeout=_WAIT, set_as_default=False)
    except (OSError, ValueError) as error:
        message = f"no scheduler answers at {address}"
        raise UsageError(message, hint="start one with 'dask scheduler', and 'dask worker'") from error


def _check_workers(client: Any, address: str) -> None:
    versions = client.run(_version)
    if not versions:
        raise UsageError(f"the scheduler at {address} has no worker", hint="start one with 'dask worker'")
    for worker, version in versions.items():
        if version != __version__:
            raise UsageError(f"worker {worker} has phiconv {version}, and this is {__version__}")


def _version() -> str:
    return __version__


def _check_sources(client: Any, sources: Sequence[Path]) -> None:
    """Every worker must see the very files that are here."""
    paths = [path for each in sources for path in (sorted(each.iterdir()) if each.is_dir() else [each])]
    stamps = {str(path): _stamp(str(path)) for path in paths}
    for worker, found in client.run(_stamps, list(stamps)).items():
        other = next((path for path, stamp in stamps.items() if found[path] != stamp), None)
        if other is not None:
            hint = "it must have the same file system under the same paths"
            raise OutputError(f"worker {worker} sees another file, or none", path=other, hint=hint)


def _check_destination(client: Any, destination: Path) -> None:
    """Every worker must see what appears in the folder of the destination."""
    folder = destination.parent
    marker = folder / f".{destination.name}.{secrets.token_hex(4)}.shared"
    try:
        marker.write_bytes(b"")
        for worker, there in client.run(os.path.exists, str(marker)).items():
            if not there:
                hint = "it must have the same file system under the same paths"
                raise OutputError(f"worker {worker} does not see this folder", path=folder, hint=hint)
    except OSError as error:
        raise OutputError(f"cannot be written to: {error.strerror}", path=folder) from error
    finally:
        with suppress(OSError):
            marker.unlink()


def _stamps(paths: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of change of a file; a folder has none that all systems agree on."""
    try:
        status = os.stat(path)  # noqa: PTH116 - it runs in workers, on texts
    except OSError:
        return None
    return (0, 0) if os.path.isdir(path) else (status.st_size, status.st_mtime_ns)  # noqa: PTH112
