"""The command line as a whole: which command is meant, and one place where every error ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click_default_group import DefaultGroup

from phiconv.cli.signals import ending_signals
from phiconv.cli.streams import guarded_streams
from phiconv.cli.usage import as_usage_error, extra_argument, unknown_command
from phiconv.cli.voice import explained, tell, wants_json
from phiconv.errors import OutputError
from phiconv.spelling import folded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from phiconv.errors import PhiconvError

__all__ = ["Command", "Group"]


class Command(click.Command):
    """A command that says what an argument is that it does not take."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click, but for the error."""
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        if rest and not ctx.resilient_parsing:
            raise extra_argument(rest, ctx)
        return rest


class Group(DefaultGroup):
    """A group whose errors are one line each, in phiconv's words."""

    command_class = Command

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Runs the command line and ends the process, unless the caller wants to see what comes of it."""
        if not extra.get("standalone_mode", True):
            return super().main(args, **extra)
        words = sys.argv[1:] if args is None else list(args)
        with guarded_streams() as lost:
            code = self._run(args if words else ["--help"], words, **extra)
            if not code and (error := lost()) is not None:
                what = f"all is done, but for telling it: {error.strerror}"
                code = _end(OutputError(what, path="standard output", hint="write it elsewhere"), [])
        sys.exit(code)

    def _run(self, args: Sequence[str] | None, words: Sequence[str], **extra: Any) -> int:
        """Runs the command line and tells what went wrong; returns the exit code."""
        try:
            fixed = {"prog_name": "phiconv", "standalone_mode": False}
            with ending_signals():
                code = super().main(args, **extra | fixed)
        except click.ClickException as error:
            return _end(as_usage_error(error, words), words)
        except (Exception, KeyboardInterrupt) as error:
            told = explained(error)
            if told is not error and told.exit_code == 1 and os.environ.get("PHICONV_DEBUG"):
                raise
            return _end(told, words)
        return code if isinstance(code, int) else 0

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; click's own answer to an interrupt has an empty line in it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names, else the default one, whose source it is."""
        args = _command_first(args, self.commands)
        word = args[0]
        if folded(word) in self.commands:
            args = [folded(word), *args[1:]]
        elif not _may_be_path(word):
            known = [name for name, command in self.commands.items() if not command.hidden]
            error = unknown_command(word, known, sure=not self._is_conversion(ctx, args))
            if error is not None:
                raise error
        return super().resolve_command(ctx, args)

    def _is_conversion(self, ctx: click.Context, args: list[str]) -> bool:
        """Whether the default command gets all its arguments, and no other ones."""
        command = self.commands[self.default_cmd_name or ""]
        try:
            own = click.Context(command, parent=ctx)
            values, rest, _ = command.make_parser(own).parse_args(list(args))
        except click.UsageError:  # which the command will say
            return True
        ends = (values.get(name) for name in ("dest", "outfile"))
        return not rest and any(isinstance(end, str) for end in ends)


def _command_first(args: list[str], commands: Collection[str]) -> list[str]:
    """The arguments with the command in front of options that somebody wrote before it."""
    at = next((i for i, word in enumerate(args) if not word.startswith("-")), 0)
    return [args[at], *args[:at], *args[at + 1 :]] if folded(args[at]) in commands else args


def _may_be_path(word: str) -> bool:
    """Whether a first word looks like an option or a path, or is one that is there."""
    if word.startswith(("-", "~")) or not word or set(word) & {"/", "\\", ".", ":"}:
        return True
    try:
        return Path(word).exists()
    except OSError:
        return True


def _end(error: PhiconvError, words: Sequence[str]) -> int:
    tell(error, as_json=wants_json(words))
    return error.exit_code
