"""Files that are either whole or absent, also after a power cut, and errors of the disk in one sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from seqmix.errors import InputError, SeqmixError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an error of the file system while `path` is written into a sentence with the remedy."""
    try:
        yield
    except OSError as error:
        raise _explained(path, error.errno, error.strerror or str(error)) from error
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else None
        raise _explained(path, number, os.strerror(number) if number else str(error)) from error


def _explained(path: Path, number: int | None, reason: str) -> SeqmixError:
    if number in _NO_SPACE:
        return SeqmixError(
            f"the disk of {str(path)!r} is full: free some space, then give the command again (train: with --resume)"
        )
    if number in _NO_PERMISSION:
        return InputError(f"{str(path)!r} cannot be written ({reason}): change its permissions or choose another --out")
    return SeqmixError(f"{str(path)!r} cannot be written: {reason}")


def sync_file(path: Path) -> None:
    """Returns once the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns once the folder's entries are on the disk."""
    if os.name == "posix":
        sync_file(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name beside it, then puts it in place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a JSON document."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, under a temporary name beside `path`; it takes the place of `path` once all is on the disk.

    When filling it fails, it is removed and `path` stays what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                sync_file(file)
            sync_folder(temporary)
            if path.exists():
                remove_folder(path)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_folder(path: Path) -> None:
    """Removes a folder so that it is never seen half empty under its own name."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left under temporary names."""
    for entry in folder.glob(".*"):
        if entry.suffix in (".tmp", ".old"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
