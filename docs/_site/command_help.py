"""The directive `command-help NAME`: what `seqmix NAME --help` prints, taken when the site is built."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from seqmix.cli.main import COMMANDS, main

COLUMNS = "100"


def help_text(*words: str) -> str:
    """What `seqmix WORDS --help` prints, at a fixed width and without colours."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=COLUMNS, TERMINAL_WIDTH=COLUMNS, NO_COLOR="1"), redirect_stdout(printed):
        status = main([*words, "--help"])
    if status != 0:
        raise ValueError(f"seqmix {' '.join(words)} --help ended with status {status}")
    return printed.getvalue().rstrip() + "\n"


class CommandHelp(SphinxDirective):
    """Without a name the overview and then every command, each under a heading of its own."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.arguments:
            return [_block(help_text(self.arguments[0]))]
        return [_block(help_text()), *(_section(name) for name in COMMANDS)]


def _block(text: str) -> nodes.Node:
    return nodes.literal_block(text, text, language="none")


def _section(name: str) -> nodes.section:
    title = f"seqmix {name}"
    section = nodes.section("", nodes.title(title, title), _block(help_text(name)), ids=[f"seqmix-{name}"])
    section["names"] = [title]
    return section


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
