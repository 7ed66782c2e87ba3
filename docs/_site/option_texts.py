"""What a config's docstring says of each option, so that the options' tables need no text of their own."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any, NamedTuple

COMMON = {
    "causal": "whether an output depends on earlier inputs only",
    "bias": "whether learned constants are added",
}
"""Said once here instead of in the docstring of every config; what a docstring says goes before."""


class Option(NamedTuple):
    """One field of a config: its default as Python writes it, and its description."""

    name: str
    default: str
    text: str


def options_of(config_class: type) -> list[Option]:
    """The fields of a frozen config dataclass, in order, with what the docstrings say of each."""
    texts, others = _texts(config_class)
    return [
        Option(
            field.name,
            _default(field),
            texts.get(field.name) or COMMON.get(field.name) or _mention(field.name, texts, others),
        )
        for field in dataclasses.fields(config_class)
    ]


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _mention(name: str, texts: dict[str, str], others: list[str]) -> str:
    """Where an option is spoken of that no docstring describes by itself: a paragraph, or another option's text."""
    word = re.compile(rf"(?<!\w){name}(?!\w)")
    by = next((other for other, text in texts.items() if word.search(text)), None)
    return f"see `{by}`" if by is not None else next((text for text in others if word.search(text)), "")


def _texts(config_class: type) -> tuple[dict[str, str], list[str]]:
    """The descriptions in its docstring, its bases' and that of the config it says it is like; and other paragraphs."""
    texts: dict[str, str] = {}
    others: list[str] = []
    for base in [cls for cls in config_class.__mro__ if dataclasses.is_dataclass(cls)]:
        doc = inspect.cleandoc(base.__doc__ or "")
        found, more = described(doc, [field.name for field in dataclasses.fields(base)])
        texts, others = found | texts, others + more
        like = re.match(r"As (\w+Config)", doc)
        if like:
            texts = _texts(getattr(sys.modules[base.__module__], like.group(1)))[0] | texts
    return texts, others


def described(doc: str, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """What a text such as `kernel: taps. heads, groups: of channels.` says of options, and its other paragraphs."""
    option = "|".join(sorted(names, key=len, reverse=True))
    start = re.compile(rf"(?:^|(?<=\. ))((?:{option})(?:, (?:{option}))*): ")
    found: dict[str, str] = {}
    others = []
    for paragraph in (" ".join(part.split()) for part in doc.split("\n\n")):
        marks = list(start.finditer(paragraph))
        if not marks:
            others.append(paragraph.removesuffix("."))
            continue
        ends = [*(mark.start() for mark in marks[1:]), len(paragraph)]
        for mark, end in zip(marks, ends, strict=True):
            text = paragraph[mark.end() : end].strip().removesuffix(".")
            found |= dict.fromkeys(mark.group(1).split(", "), text)
    return found, others
