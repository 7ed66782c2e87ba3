"""Python that a user names on the command line, imported so that what it registers is known."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from seqmix.errors import InputError


def import_all(places: Sequence[str]) -> list[str]:
    """Imports files and modules; returns the same names with files as absolute paths, for another process.

    Raises:
        InputError: as `import_place`.
    """
    for place in places:
        import_place(place)
    return [str(Path(place).resolve()) if place.endswith(".py") else place for place in places]


def import_place(place: str) -> ModuleType:
    """The module of a file (FILE.py) or of a dotted name; a file that was imported already is not run again.

    Raises:
        InputError: it is not there, or it fails; the sentence says how.
    """
    return _import_file(Path(place)) if place.endswith(".py") else _import_module(place)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}: give the path of a Python file")
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{str(path)!r} cannot be imported: give a Python file")
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their own module up by its name while they are made.
    sys.modules[name] = module
    # As for a script, the files beside it can be imported.
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        words = " ".join(str(error).split())
        kind = type(error).__name__
        raise InputError(f"{str(path)!r} cannot be imported ({kind}: {words}): mend it first") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"module {name!r} cannot be imported ({error}): give a module's name or FILE.py") from error
    except Exception as error:
        words = " ".join(str(error).split())
        raise InputError(f"module {name!r} cannot be imported ({type(error).__name__}: {words}): mend it") from error
