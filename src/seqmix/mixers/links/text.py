"""Patterns of links as text, the form they have in configs: `window(256) | global_(4) | random(3, seed=1)`.

    pattern = call, { "|", call };   call = name, "(", [argument, { ",", argument }], ")"
    argument = [name, "="], value;   value = number | "[", number, { ",", number }, "]"

The names and arguments are those of the functions in `links`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache, reduce
from operator import or_

from seqmix.errors import InputError, unknown_name
from seqmix.mixers.links.pattern import Pattern, bigbird, full, global_, longformer, random, window

_Value = int | list[int]

_FUNCTIONS: dict[str, Callable[..., Pattern]] = {
    function.__name__: function for function in (bigbird, full, global_, longformer, random, window)
}
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>[-+]?\d+)|(?P<sign>[|(),=\[\]]))")
_END = ""


class _Reader:
    """The words of a text, one after another."""

    def __init__(self, text: str) -> None:
        self.text, self.words, place = text, list[str](), 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self.error(f"{text[place:].strip()[0]!r} means nothing there")
            self.words.append(match.group().strip())
            place = match.end()

    def error(self, what: str) -> InputError:
        return InputError(f"pattern {self.text!r} cannot be read: {what}; write it as 'window(256) | global_(4)'")

    @property
    def next(self) -> str:
        return self.words[0] if self.words else _END

    def take(self, word: str | None = None) -> str:
        """The next word, which must be the given one."""
        if word is not None and self.next != word:
            raise self.error(f"{word!r} is missing before {self.next!r}" if self.words else f"{word!r} is missing")
        return self.words.pop(0)

    def number(self) -> int:
        if not re.fullmatch(r"[-+]?\d+", self.next):
            raise self.error(f"a whole number is missing before {self.next!r}" if self.words else "it ends too early")
        return int(self.take())

    def listed(self, close: str, read: Callable[[], None]) -> None:
        """Things with commas between them, up to the closing sign."""
        while self.next != close:
            read()
            if self.next != close:
                self.take(",")
        self.take(close)

    def value(self) -> _Value:
        if self.next != "[":
            return self.number()
        self.take()
        numbers: list[int] = []
        self.listed("]", lambda: numbers.append(self.number()))
        return numbers

    def call(self) -> Pattern:
        if not re.match(r"[A-Za-z_]", self.next):
            raise self.error(f"a name is missing before {self.next!r}" if self.words else "a name is missing")
        name = self.take()
        name = "global_" if name == "global" else name
        if name not in _FUNCTIONS:
            raise unknown_name("links of a pattern", name, _FUNCTIONS)
        parameters = inspect.signature(_FUNCTIONS[name]).parameters
        positional: list[_Value] = []
        named: dict[str, _Value] = {}

        def argument() -> None:
            if not re.match(r"[A-Za-z_]", self.next):
                if named:
                    raise self.error("an argument without a name follows one with a name")
                positional.append(self.value())
                return
            key = self.take()
            if key not in parameters:
                raise unknown_name(f"option of {name}", key, parameters)
            self.take("=")
            if key in named:
                raise self.error(f"{key} is given twice")
            named[key] = self.value()

        self.take("(")
        self.listed(")", argument)
        try:
            inspect.signature(_FUNCTIONS[name]).bind(*positional, **named)
        except TypeError as error:
            raise self.error(f"{name} does not take these arguments ({error})") from None
        return _FUNCTIONS[name](*positional, **named)


@lru_cache(maxsize=64)
def parse_pattern(text: str) -> Pattern:
    """The pattern that a text describes.

    Raises:
        InputError: an unknown name or option (with the nearest known one), or text that is no pattern.
    """
    reader = _Reader(text)
    parts = [reader.call()]
    while reader.words:
        reader.take("|")
        parts.append(reader.call())
    return reduce(or_, parts)
