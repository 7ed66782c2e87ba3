"""Finds the mixer classes that a user names."""

from __future__ import annotations

from collections.abc import Sequence

from seqmix.errors import InputError
from seqmix.mixer import Mixer
from seqmix.mixers import list_mixers, mixer_class
from seqmix.mixers.user_code import import_place


def find_mixers(names: Sequence[str]) -> dict[str, type[Mixer]]:
    """The classes of registered names, module:Class and file.py:Class; every registered mixer where none is given.

    Raises:
        InputError: nothing is registered under the name, or there is no such file, module or Mixer class.
    """
    return {name: _find(name) for name in names or list_mixers()}


def _find(name: str) -> type[Mixer]:
    if ":" not in name:
        return mixer_class(name)
    place, _, attribute = name.rpartition(":")
    module = import_place(place)
    found = vars(module).get(attribute)
    if not (isinstance(found, type) and issubclass(found, Mixer)):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Mixer)]
        raise InputError(f"{place} has no Mixer class {attribute!r}: it has {', '.join(known) or 'none'}")
    return found
