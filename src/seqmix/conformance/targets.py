"""Finds the mixer classes that a user names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from seqmix.errors import InputError
from seqmix.mixer import Mixer
from seqmix.mixers import list_mixers, mixer_class


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
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = vars(module).get(attribute)
    if not (isinstance(found, type) and issubclass(found, Mixer)):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Mixer)]
        raise InputError(f"{place} has no Mixer class {attribute!r}: it has {', '.join(known) or 'none'}")
    return found


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}: give the path of a Python file and a class, file.py:Class")
    name = f"checked_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{str(path)!r} cannot be imported: give a Python file, file.py:Class")
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their own module up by its name while they are made.
    sys.modules[name] = module
    # As for a script, the files beside it can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{str(path)!r} cannot be imported ({type(error).__name__}: {error}): mend it first"
        ) from error
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"module {name!r} cannot be imported ({error}): give module:Class or file.py:Class") from error
