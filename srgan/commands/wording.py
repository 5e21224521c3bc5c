"""What is told of commands, options and numbers that are not understood: one plain line each, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from srgan.errors import UsageError
from srgan.texts import did_you_mean

# click's UsageError, above all that it finds wrong with a line; typer names only those below it.
MisunderstoodError: type[Any] = typer.BadParameter.__mro__[1]

# What makes a number of a text that is none: "2x", "x2" and "80%" lose a mark, "1,5" gets a point.
_MARKS = "x×%"


class Commands(TyperGroup):
    """A group of commands that says of a wrong word what may have been meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name, the command and what is left of `args`; raises UsageError if there is none."""
        first = args[0]
        command = self.get_command(ctx, first)
        if command is None and not ctx.resilient_parsing and not first.startswith("-"):
            raise UsageError(_no_command(ctx.command_path, first, self.list_commands(ctx)))
        if command is not None:
            _refuse_single_dashes(f"{ctx.command_path} {first}", args[1:], _long_options(command))
        return super().resolve_command(ctx, args)


def explained(error: Any) -> str:
    """Return in one line what click's error says; `error`: a MisunderstoodError."""
    command = error.ctx.command_path if error.ctx else "srgan"
    parameter = getattr(error, "param", None)
    name = "/".join(parameter.opts) if parameter is not None and parameter.opts[0].startswith("-") else ""
    if getattr(error, "option_name", None) is not None and hasattr(error, "possibilities"):
        names = [name.lstrip("-") for name in _long_options(error.ctx.command)]
        near = did_you_mean(error.option_name.lstrip("-"), names).replace("'", "'--", 1)
        return f"{command} has no option {error.option_name}{near or f'; {command} --help lists them'}"
    if parameter is not None and hasattr(error, "param_type"):
        what = name or (parameter.metavar or str(parameter.name).upper()).removesuffix("...")
        return f"{command} needs {what}: {(parameter.help or '').rstrip('.')} ({command} --help says more)"
    if parameter is not None:
        return f"{name or parameter.name}: {_wrong_value(error)}"
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; {command} --help says more"


def _no_command(path: str, word: str, commands: Iterable[str]) -> str:
    is_picture = path == "srgan" and (re.search(r"[./\\]", word) or Path(word).exists())
    if is_picture:
        return f"{word} is no command; to make a picture or a folder larger: {path} upscale {word}"
    return f"{path} has no command {word!r}{did_you_mean(word, commands) or f'; {path} --help lists them'}"


def _refuse_single_dashes(path: str, arguments: Sequence[str], options: Sequence[str]) -> None:
    """Refuse -scale, which would be taken for -s with the value "cale"."""
    for argument in arguments:
        if argument == "--":
            return
        if len(argument) > 2 and f"-{argument.partition('=')[0]}" in options:
            raise UsageError(f"{path} has no option {argument}; did you mean '-{argument}'?")


def _long_options(command: Any) -> list[str]:
    """Return the options of a click command that a person may type."""
    visible = (entry for entry in command.params if not getattr(entry, "hidden", False))
    return ["--help", *(name for entry in visible for name in entry.opts if name.startswith("--"))]


def _wrong_value(error: Any) -> str:
    """Return what is wrong with the value of an option: in our own words for numbers, in click's for the rest."""
    problems: list[Any] = getattr(error.__cause__, "errors", list)()  # pydantic's, who reads them for typer
    expected = "a whole number" if problems and "int" in problems[0]["type"] else "a number"
    if not problems or problems[0]["type"] not in ("float_parsing", "int_parsing", "int_from_float"):
        message = str(error.message).rstrip(".")
        return f"{message[:1].lower()}{message[1:]}"
    value = str(problems[0]["input"])
    meant = value.strip(f"{_MARKS}{_MARKS.upper()}= ").replace(",", ".")
    fits = re.fullmatch(r"\d+" if expected == "a whole number" else r"\d+(\.\d+)?", meant, re.ASCII)
    return f"{value!r} is not {expected}" + (f"; did you mean {meant}?" if fits and meant != value else "")
