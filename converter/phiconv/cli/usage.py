"""What click finds wrong with a command line, in phiconv's words: what it is, and what to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phiconv.errors import UsageError, printable
from phiconv.spelling import did_you_mean, folded, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_usage_error", "extra_argument", "unknown_command"]

_LIKE_AN_OPTION = 0.7  # more than for other words, since the dashes are alike already
_ORDINALS = ("first", "second", "third", "fourth", "fifth")

# What other tools call what these commands do.
_MEANT = {
    "chat": "generate",
    "check": "inspect",
    "define": "explain",
    "describe": "inspect",
    "devices": "choose --for list",
    "diff": "compare",
    "dry-run": "plan",
    "dump": "inspect",
    "export": "convert",
    "imatrix": "calibrate",
    "info": "inspect",
    "list": "formats",
    "ls": "inspect",
    "perplexity": "evaluate",
    "ppl": "evaluate",
    "preview": "plan",
    "quantise": "convert",
    "quantize": "convert",
    "recommend": "choose",
    "run": "generate",
    "show": "inspect",
    "suggest": "choose",
    "types": "formats",
    "version": "--version",
}

_MEANT_OPTIONS = {
    "--bits": "--quant",
    "--device": "--target",
    "--execution-provider": "--target",
    "--format": "--to",
    "--ftype": "--quant",
    "--overwrite": "--force",
    "--quantize": "--quant",
    "--threads": "--jobs",
    "--type": "--quant",
}


def as_usage_error(error: click.ClickException, words: Sequence[str]) -> UsageError:
    """One of click's errors as one of ours.

    Args:
        error: What it says.
        words: The arguments of the command line.
    """
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    ctx = ctx or click.Context(click.Command("phiconv"), info_name="phiconv")
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return _missing(error.param, ctx)
    if isinstance(error, click.NoSuchOption):
        return _no_option(error.option_name, ctx, words)
    if isinstance(error, click.BadOptionUsage):
        return _bad_use(error.option_name, ctx)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_value(error.message.rstrip("."), error.param, ctx)
    return UsageError(error.format_message().rstrip("."), hint=_help(ctx))


def _help(ctx: click.Context) -> str:
    return f"{ctx.command_path} --help says what it takes"


def _name(param: click.Parameter) -> str:
    """An option as people write it, or an argument."""
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name


def _form(ctx: click.Context) -> str:
    """How the command is written, without its options: ``phiconv convert SOURCE DEST``."""
    arguments = (p for p in ctx.command.params if isinstance(p, click.Argument))
    return " ".join([ctx.command_path, *(p.human_readable_name for p in arguments)])


def _missing(param: click.Parameter, ctx: click.Context) -> UsageError:
    if isinstance(param, click.Option):
        return UsageError(f"{_name(param)} is missing", hint=f"give {_name(param)} {_value(param)}")
    return UsageError(f"{_name(param)} is missing", hint=f"write {_form(ctx)}")


def _value(param: click.Parameter) -> str:
    """What stands for an option's value in the help."""
    if isinstance(param.type, click.IntRange | click.FloatRange):
        return "NUMBER"
    return param.metavar or param.type.name.upper()


def _no_option(name: str, ctx: click.Context, words: Sequence[str]) -> UsageError:
    options = _options(ctx)
    written = next((w for w in words if folded(w.partition("=")[0]) == folded(name)), name).partition("=")[0]
    if not name.startswith("--"):  # of -q4 click reads -q and misses -4
        letter = name[1:]
        written = next((w for w in words if w[:1] == "-" and w[:2] != "--" and letter in w), name)
        if f"-{written}" in options:
            return UsageError(f"there is no option {written}", hint=f"did you mean -{written}?")
    meant = _MEANT_OPTIONS.get(folded(written))
    if meant in options:
        hint = f"did you mean {meant}?"
    else:
        near = nearest(written, [*options, "--help", "--version"], _LIKE_AN_OPTION)
        hint = _recipe(written.lstrip("-"), options) or (f"did you mean {near}?" if near else _help(ctx))
    return UsageError(f"there is no option {printable(written, 80)}", hint=hint)


def _options(ctx: click.Context) -> list[str]:
    """Every option that a command shows."""
    shown = (p for p in ctx.command.params if isinstance(p, click.Option) and not p.hidden)
    return [option for param in shown for option in (*param.opts, *param.secondary_opts)]


def _recipe(word: str, options: Sequence[str]) -> str:
    """A hint, where a word is the name of a recipe and the command takes one."""
    if "--quant" not in options:
        return ""
    from phiconv.recipes import TARGETS

    known = any(folded(word) in t.PRESETS or t.RECIPES.find(word) for t in TARGETS.values())
    return f"did you mean --quant {word}?" if known else ""


def _bad_use(name: str, ctx: click.Context) -> UsageError:
    """An option without its value, or a flag with one."""
    param = next((p for p in ctx.command.params if name in (*p.opts, *p.secondary_opts)), None)
    if param is None or getattr(param, "is_flag", False):
        return UsageError(f"{name} takes no value", hint=f"write {name} alone")
    return UsageError(f"{name} needs a value", hint=f"write {name} {_value(param)}")


def _bad_value(message: str, param: click.Parameter, ctx: click.Context) -> UsageError:
    kind = param.type
    message, _, hint = message.partition("; ")
    if isinstance(kind, click.IntRange | click.FloatRange):
        number = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        hint = f"give {number} from {kind.min} to {kind.max}"
    elif isinstance(kind, click.Choice):
        choices = [str(choice) for choice in kind.choices]
        wrong = message.split("'")[1] if "'" in message else ""
        hint = did_you_mean(wrong, choices, f"one of {', '.join(choices)}")
    return UsageError(f"{_name(param)}: {message}", hint=hint or _help(ctx))


def extra_argument(rest: Sequence[str], ctx: click.Context) -> UsageError:
    """Says what the argument is that the command does not take."""
    taken = [p.human_readable_name for p in ctx.command.params if isinstance(p, click.Argument)]
    ordinal = _ORDINALS[min(len(taken), len(_ORDINALS) - 1)]
    what = f"{printable(rest[0], 80)} is a {ordinal} argument, and {ctx.info_name} takes "
    what += " and ".join(taken) if taken else "none"
    hint = _recipe(rest[0], _options(ctx)) or (
        f"write {_form(ctx)}, and names with spaces in quotes" if taken else f"write {_form(ctx)}"
    )
    return UsageError(what, hint=hint)


def unknown_command(word: str, commands: Sequence[str], *, sure: bool) -> UsageError | None:
    """What to say of a first word that is neither a command nor there.

    Args:
        word: The word.
        commands: Names of the commands.
        sure: It cannot be a source either; else only a word that is like a command is taken for one.
    """
    hint = f"did you mean {_MEANT[folded(word)]}?" if folded(word) in _MEANT else did_you_mean(word, commands)
    if not hint and not sure:
        return None
    return UsageError(
        f"unknown command {printable(word, 80)!r}, and no file or folder of this name",
        hint=hint or "phiconv --help lists the commands, and names with spaces need quotes",
    )
