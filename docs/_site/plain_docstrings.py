"""Docstrings to reStructuredText: in the source they are plain text, with `code` and indented equations.

A line break, a star, a bar or a trailing underscore means nothing there, so they are escaped; a block that is indented
under a paragraph is shown as it stands. Sections such as Args are left to napoleon, which runs after this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

SECTIONS = {"Args:", "Raises:", "Returns:", "Yields:", "Attributes:", "Note:", "Example:", "Examples:"}
_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_NAMES = re.compile(r"(^|(?<=\. ))([a-z]\w*(?:, [a-z]\w*)*): ")
_SPECIAL = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    result: list[str] = []
    for block, in_section in _blocks(lines):
        indents = [_indent(line) for line in block]
        if not in_section and min(indents) >= 4:
            result += ["::", "", *block, ""]
            continue
        if in_section:
            result += [_escape(line) for line in block]
        else:
            result += _paragraphs(block)
        result.append("")
    return result


def _blocks(lines: list[str]) -> Iterator[tuple[list[str], bool]]:
    """The paragraphs, each with whether it belongs to a section that napoleon reads."""
    block: list[str] = []
    in_section = False
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
            continue
        if block:
            if _indent(block[0]) == 0:
                in_section = block[0].strip() in SECTIONS
            yield block, in_section
        block = []


def _paragraphs(block: list[str]) -> list[str]:
    """A paragraph, in which a deeper line goes on with the one above and a line of `name: what` begins another one.

    The names are shown as code.
    """
    result = [_escape(_named(block[0].strip()))]
    for above, line in pairwise(block):
        is_new = _indent(line) == _indent(block[0]) and bool(_NAMES.match(line.strip())) and above.endswith(".")
        result += ([""] if is_new else []) + [_escape(_named(line.strip()))]
    return result


def _named(line: str) -> str:
    return _NAMES.sub(lambda match: ", ".join(f"`{name}`" for name in match[2].split(", ")) + ": ", line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escape(line: str) -> str:
    pieces = _CODE.split(line)
    return "".join(
        f"``{piece.strip('`')}``" if place % 2 else _SPECIAL.sub(r"\\\1", piece) for place, piece in enumerate(pieces)
    )


def process(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Converts a docstring in place, before napoleon does."""
    lines[:] = convert(lines)


def readable(
    app: Any, what: str, name: str, subject: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature that can be parsed: a field that is made by a factory has a default that is no Python."""
    return None if arguments is None else arguments.replace("<factory>", "..."), returned


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
