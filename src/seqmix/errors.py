"""The two errors that seqmix raises on purpose, and the words they share.

Every message is one sentence that names the bad value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeqmixError(Exception):
    """Work that was asked for properly but failed; commands exit with 1."""


class InputError(SeqmixError, ValueError):
    """A value that cannot be used, such as an unknown option or a missing file; commands exit with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: it names the nearest known one, or lists them all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return InputError(f"unknown {kind} {name!r}: did you mean {near[0]!r}?")
    return InputError(f"unknown {kind} {name!r}: choose one of {', '.join(known) or '(none exist)'}")
