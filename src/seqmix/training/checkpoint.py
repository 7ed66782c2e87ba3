"""Checkpoints that are whole or do not count: checkpoints/step-00001234/ with a manifest of hashes, written last.

A checkpoint is filled under a temporary name, brought to the disk, and renamed; only then are older ones
removed. So at any moment the newest one that verifies is a complete state of the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from seqmix.files import disk_errors, new_folder, remove_folder, remove_leftovers, write_json

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], Mapping[str, str] | None]) -> Path:
        """Makes a checkpoint: `write` puts files into the folder it is given.

        It may return hashes of files by name, where others have computed them; the rest is hashed here.

        Raises:
            SeqmixError: it cannot be written; the older checkpoints stay.
        """
        path = self.path_of(step)
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        with new_folder(path) as temporary:
            hashes = write(temporary) or {}
            files = {file.name: hashes.get(file.name) or hash_file(file) for file in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"format": FORMAT, "step": step, "files": files})
        self._remove_older(step)
        return path

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def newest(self, message: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that verifies, or None. `message` is told about each one that does not."""
        if self.folder.is_dir():
            with disk_errors(self.folder):
                remove_leftovers(self.folder)
        for _, path in sorted(self._all(), reverse=True):
            fault = find_fault(path)
            if fault is None:
                return path
            message(f"skipping the checkpoint {str(path)!r}: {fault}")
        return None

    def _all(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in self.folder.iterdir())
        return [(int(match[1]), path) for match, path in found if match]

    def _remove_older(self, step: int) -> None:
        """Removes all but the newest `keep`; what is later than this step was found damaged when the run went on."""
        found = sorted(self._all(), reverse=True)
        kept = [path for number, path in found if number <= step][: self.keep]
        with disk_errors(self.folder):
            for _, path in found:
                if path not in kept:
                    remove_folder(path)


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file has the hash that the manifest holds."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']}, this version reads format {FORMAT}"
        for name, expected in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if hash_file(path / name) != expected:
                return f"{name} is truncated or altered"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
