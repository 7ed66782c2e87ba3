"""Puts a page together as one file: its numbers, its matrices, its style, and its scripts as the modules they are.

The modules stand in the page's import map as data: URLs, so that it opens from the disk without a network.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from seqmix import __version__

_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M1 1v14h14z" fill="#0072b2"/>'
    b'<path d="M1 7v8h8z" fill="#d55e00"/></svg>'
)


def render_page(
    data: Mapping[str, Any], blocks: Mapping[str, str], *, title: str, mark: str, lead: Sequence[str] = ()
) -> str:
    """The whole page as text.

    Args:
        data: what the scripts read; see `payload`. blocks: the packed matrices by id.
        title: the heading. mark: the line above it. lead: sentences below it.
    """
    return string.Template(_read("template.html")).substitute(
        title=html.escape(title),
        mark=html.escape(mark),
        lead="\n  ".join(f'<p class="lead">{html.escape(sentence)}</p>' for sentence in lead),
        icon=base64.b64encode(_ICON).decode("ascii"),
        style=_style(),
        data=embedded_json(data),
        blocks="\n".join(
            f'<script type="text/plain" id="block-{name}">{text}</script>' for name, text in blocks.items()
        ),
        imports=_import_map(),
        footer=html.escape(f"Made by seqmix {__version__}."),
    )


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="block-{name}">{text}</script>'


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (resources.files("seqmix.inspection.page") / name).read_text(encoding="utf-8")


def _files(folder: str, suffix: str) -> list[str]:
    entries = (resources.files("seqmix.inspection.page") / folder).iterdir()
    return sorted(entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix))


@functools.cache
def _style() -> str:
    return "\n".join([_read("page.css"), *(_read(f"css/{name}.css") for name in _files("css", ".css"))])


@functools.cache
def _import_map() -> str:
    modules = {}
    for name in _files("js", ".js"):
        source = base64.b64encode(_read(f"js/{name}.js").encode("utf-8")).decode("ascii")
        modules[f"page/{name}"] = f"data:text/javascript;charset=utf-8;base64,{source}"
    return json.dumps({"imports": modules}, separators=(",", ":"))
