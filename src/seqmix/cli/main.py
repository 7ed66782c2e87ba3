"""Finds the command, runs it, and turns every error into one sentence and an exit status.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. Only the module of the command that is asked for
is imported, so that `seqmix --help` appears at once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from seqmix import __version__
from seqmix.errors import InputError, SeqmixError, unknown_name


class Command(NamedTuple):
    """Where the function of a command is, as "module:function", and what it does in one line."""

    home: str
    summary: str


COMMANDS = {
    "list": Command("seqmix.cli.list:list_command", "the mixers and models, with their traits"),
    "check": Command("seqmix.cli.check:check", "hold a mixer to its contract"),
    "plan": Command("seqmix.cli.plan:plan", "sizes, FLOPs, memory and money of models, without training"),
    "train": Command("seqmix.cli.train:train", "train one model on your data"),
    "eval": Command("seqmix.cli.eval:eval_command", "bits per byte and perplexity of a trained model"),
    "compare": Command("seqmix.cli.compare:compare", "train several models at a matched budget, and report"),
    "inspect": Command("seqmix.cli.inspect:inspect_command", "a page that shows how a model mixes"),
    "generate": Command("seqmix.cli.generate:generate_command", "text from a trained model"),
    "bench": Command("seqmix.cli.bench:bench", "speed and memory, beside what else is installed"),
}

_HELP = """\
Usage: seqmix [--debug] COMMAND [OPTIONS]

  Convolution, attention or a recurrence: settled by measurement on your own sequences.

Commands:
{commands}

Options:
  --debug    show the traceback of an error
  --version  show the version
  --help     show this text; seqmix COMMAND --help explains a command

Example:
  seqmix compare --data python-stdlib --models transformer,convsamba --params 300k --budget tokens=1M --out runs/first
"""


class _InterruptedError(Exception):
    """Ctrl-C inside a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `seqmix` with the given arguments (those of the process by default) and returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(words)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # The reader of the pipe has gone: the interpreter must not fail once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        message, status = _explain(error)
        print(f"error: {message}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130


def _take_debug(words: list[str]) -> bool:
    """Removes --debug, which may stand before or after the command but not behind a bare --."""
    options = words[: words.index("--")] if "--" in words else words
    count = options.count("--debug")
    for _ in range(count):
        words.remove("--debug")
    return count > 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        width = max(len(name) for name in COMMANDS)
        rows = (f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
        print(_HELP.format(commands="\n".join(rows)), end="")
        return 0 if words else 2
    name, *rest = words
    if name == "--version":
        print(f"seqmix {__version__}")
        return 0
    if name.startswith("-"):
        raise unknown_name("option", name, ["--debug", "--help", "--version"])
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    module, _, attribute = COMMANDS[name].home.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=name, help=_help_text(function))(_without_interrupts(function))
    program = typer.main.get_command(app)
    try:
        status = program.main(args=arguments, prog_name=f"seqmix {name}", standalone_mode=False)
    except _InterruptedError:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        words = error.format_message().strip().rstrip(".")
        if isinstance(error, typer.BadParameter) and error.param is not None:
            words = words.replace("Invalid value for", f"Invalid value{_given(error.param.opts, arguments)} for", 1)
        raise InputError(f"{words[:1].lower()}{words[1:]}; see seqmix {name} --help") from error
    return status if isinstance(status, int) else 0


def _help_text(function: Callable[..., Any]) -> str:
    """The docstring, its examples marked so that they are not wrapped and can be copied."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith("Example") else text for text in paragraphs)


def _given(spellings: Sequence[str], arguments: Sequence[str]) -> str:
    """The value that was given to an option, quoted after a space; typer's own messages leave it out."""
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, has_value, value = word.partition("=")
        if option in spellings:
            return f" {(value if has_value else following)!r}"
    return ""


def _without_interrupts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets Ctrl-C reach `main`: typer would end with 130 and say nothing."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    return wrapped


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit status for an error."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words, 2
    if isinstance(error, SeqmixError):
        return words, 1
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror.lower()}{place}", 1
    return f"{type(error).__name__}: {words or 'no message'}; run again with --debug to see where", 1
