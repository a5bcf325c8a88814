"""Options of the same meaning in the commands of all modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.conversion.adapters import Lora

F = TypeVar("F", bound="Callable[..., Any]")

__all__ = [
    "BASE",
    "CONFIG",
    "FOLLOW_LINKS",
    "FORCE_HTML",
    "HTML",
    "JOBS",
    "JSON",
    "LORA",
    "PATH",
    "QUIET",
    "SCHEDULER",
    "adapter_paths",
    "check_page",
    "lora_option",
]


_ELSEWHERE = "phiconv.elsewhere"
"""Whether other machines work, in the context's data: they are in folders of their own."""


class _Path(click.Path):
    """A path; the empty one, which would be the folder that one is in, was not meant.

    It is absolute where other machines are to see it.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("an empty name; a variable of the shell may not be set", param, ctx)
        path: Any = super().convert(value, param, ctx)
        if ctx is None or not ctx.meta.get(_ELSEWHERE):
            return path
        from phiconv.conversion.paths import expanded

        return expanded(path).absolute()


PATH = _Path(path_type=Path, readable=False)  # whether it can be read is said by whoever reads it
CONFIG = click.option(
    "--config",
    type=PATH,
    metavar="FOLDER",
    help="Where config.json and the tokenizer are, if not with the weights.",
)


def _follow_links(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    """Follows links of models until the command ends."""
    from phiconv_formats.shared.links import following_links

    if value:
        ctx.with_resource(following_links())


FOLLOW_LINKS = click.option(
    "--follow-links",
    is_flag=True,
    expose_value=False,
    callback=_follow_links,
    help="Follow links in the model's folder that lead out of it.",
)


def _scheduler(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
    ctx.meta[_ELSEWHERE] = value is not None
    return value


SCHEDULER = click.option(
    "--scheduler",
    metavar="ADDRESS",
    is_eager=True,  # before the paths
    callback=_scheduler,
    help="Work on a Dask cluster, like tcp://host:8786.",
)


def lora_option(names: str, help_text: str) -> Callable[[F], F]:
    """An option for adapters, given as often as there are some."""
    return click.option(
        *names.split(), multiple=True, metavar="ADAPTER[=WEIGHT]", callback=_adapters, help=help_text
    )


def _adapters(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[Path, float]]:
    """Folders and weights; an "=" may also be part of a folder's name."""
    found = []
    for value in values:
        path, equals, number = value.rpartition("=")
        if not equals or Path(value).exists():
            path, number = value, "1"
        try:
            found.append((PATH.convert(path, param, ctx), float(number)))
        except ValueError:
            raise click.BadParameter(f"{number!r} is no weight; write it like adapter=0.5") from None
    return found


def check_page(html: Path | None, scheduler: str | None) -> None:
    """Refuses what does not go together.

    Raises:
        UsageError: A page, and other machines.
    """
    if html is not None and scheduler is not None:
        raise UsageError("--html is made on this machine alone", hint="leave out --scheduler")


def adapter_paths(adapters: Sequence[Lora]) -> list[Path]:
    """Where adapters are."""
    return [Path(each[0] if isinstance(each, tuple) else each) for each in adapters]


LORA = lora_option(
    "--lora --adapter", "An adapter (LoRA) to merge into the model; several, one after the other."
)
BASE = click.option("--base", type=PATH, metavar="MODEL", help="The model, where the source is an adapter.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable results on stdout.")
JOBS = click.option(
    "--jobs", "-j", type=click.IntRange(1, 1024), help="Threads, or processes; by default one per processor."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
HTML = click.option(
    "--html", type=PATH, metavar="FILE", help="Write a page with pictures, too, see 'report'."
)
FORCE_HTML = click.option("--force", "-f", is_flag=True, help="Replace the page if it exists.")
