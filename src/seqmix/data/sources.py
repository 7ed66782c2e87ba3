"""What `--data` may name: files, folders, the datasets hub, built-in corpora; and how a name becomes documents."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seqmix.data.readers import TEXT_FIELD, Document, encode_text, is_text, read_documents, reason_of
from seqmix.data.synthetic import TASKS
from seqmix.errors import InputError, SeqmixError, unknown_name

Role = Literal["train", "valid"]
_ROLE_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
_HUB_PREFIX = "hf:"


class Source(ABC):
    """Where documents come from.

    name: in messages. notes: what a user should know, such as files that were skipped.
    """

    name: str
    notes: Sequence[str]

    @property
    @abstractmethod
    def has_valid(self) -> bool:
        """Whether the source itself says what is held out."""

    @abstractmethod
    def documents(self, role: Role) -> Iterator[Document]:
        """The documents of a part; "train" is everything when the source has no held-out part."""

    @abstractmethod
    def content_hash(self) -> str:
        """A digest of everything that `documents` depends on, without a path of this machine."""


@dataclass(frozen=True)
class FileSource(Source):
    """Files in a fixed order, each with the name that stands for it in messages and in the hash."""

    name: str
    files: Mapping[Role, Sequence[tuple[str, Path]]]
    notes: Sequence[str] = ()

    @property
    def has_valid(self) -> bool:
        return bool(self.files.get("valid"))

    def documents(self, role: Role) -> Iterator[Document]:
        for name, path in self.files.get(role, ()):
            yield from read_documents(path, name)

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for role in sorted(self.files):
            for name, path in self.files[role]:
                try:
                    with path.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
                digest.update(f"{role}\0{Path(name).name}\0{content}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class HubSource(Source):
    """The splits of a data set that the datasets library has loaded, by the part they belong to."""

    name: str
    splits: Mapping[Role, Sequence[Any]]
    notes: Sequence[str] = ()

    @property
    def has_valid(self) -> bool:
        return bool(self.splits.get("valid"))

    def documents(self, role: Role) -> Iterator[Document]:
        for split in self.splits.get(role, ()):
            name = f"{self.name}[{split.split or role}]"
            for number, content in enumerate(split.select_columns([TEXT_FIELD]), start=1):
                text = content[TEXT_FIELD]
                if text is not None:
                    yield Document(name, number, [encode_text(text, f"{name}, row {number}")])

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for role in sorted(self.splits):
            for document in self.documents(role):
                content = b"".join(document.pieces)
                digest.update(f"{role}\0{len(content)}\n".encode() + content)
        return digest.hexdigest()


def open_source(spec: str | os.PathLike[str]) -> Source:
    """The source that a name stands for: a built-in corpus, `hf:NAME[/CONFIG]`, a file or a folder.

    Raises InputError for a name that is none of them, and for a file or folder with nothing in it.
    """
    name = os.fspath(spec)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name.startswith(_HUB_PREFIX):
        return _hub_source(name)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _folder_source(path, name)
        if path.is_file() or path.exists():
            return _file_source(path, name)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    if os.sep in name or "." in name.partition(":")[0]:
        raise InputError(f"there is no file or folder {name!r}: check the path")
    # A colon stands between the name of a task and its options.
    known = name.partition(":")[0]
    raise unknown_name(
        "data source (neither a file, a folder, a built-in corpus nor a task)", known, [*BUILT_IN, *TASKS]
    )


def role_of(name: str) -> str | None:
    """The part that a file's or split's name speaks of ("train", "valid", "test"), or None.

    Whole words count, so that "latest.txt" and "validator.py" speak of none; the last one decides.
    """
    words = re.findall(r"[a-z]+", name.lower())
    return next((_ROLE_WORDS[word] for word in reversed(words) if word in _ROLE_WORDS), None)


def _file_source(path: Path, name: str) -> FileSource:
    if not path.is_file():
        raise InputError(f"{name} is neither a file nor a folder: give one of them")
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty: give a file that holds text")
    return FileSource(name, {"train": [(name, path)]})


def _folder_source(folder: Path, name: str) -> FileSource:
    """Every text file below a folder, by sorted name; hidden files are left out, binary ones reported."""
    files: list[tuple[str, Path]] = []
    skipped: list[str] = []
    for path in _walk(folder, name):
        label = path.relative_to(folder).as_posix()
        if is_text(path, str(path)):
            files.append((label, path))
        else:
            skipped.append(label)
    files.sort()
    notes = [f"skipped {_listed(sorted(skipped), 'binary file')}"] if skipped else []
    files = [(label, path) for label, path in files if path.stat().st_size]
    if not files:
        raise InputError(
            f"the folder {name} holds no text ({'; '.join(notes) or 'no file at all'}): give one that does"
        )
    return _split_by_name(name, files, notes)


def _split_by_name(name: str, files: list[tuple[str, Path]], notes: list[str]) -> FileSource:
    """Takes the folder's own splits when files named train and valid (or test) hold most of its bytes."""
    by_role: dict[str | None, list[tuple[str, Path]]] = {}
    sizes: dict[str | None, int] = {}
    for label, path in files:
        role = role_of(label)
        by_role.setdefault(role, []).append((label, path))
        sizes[role] = sizes.get(role, 0) + path.stat().st_size
    own_splits = "train" in by_role and ("valid" in by_role or "test" in by_role)
    # A code folder may hold a train.py and a test_x.py beside much else: those are no splits.
    if not own_splits or sizes.get(None, 0) * 2 > sum(sizes.values()):
        return FileSource(name, {"train": files}, notes)
    left_out = sorted(label for role in ("test", None) for label, _ in by_role.get(role, ()))
    if left_out:
        notes = [*notes, f"left out {_listed(left_out, 'file')} that the names train and valid do not cover"]
    splits: dict[Role, Sequence[tuple[str, Path]]] = {"train": by_role["train"]}
    if "valid" in by_role:
        splits["valid"] = by_role["valid"]
    return FileSource(name, splits, notes)


def _walk(folder: Path, name: str) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"the folder {error.filename or name} cannot be read: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(entry for entry in folders if not entry.startswith(".") and entry != "__pycache__")
        for entry in names:
            path = Path(root, entry)
            if not entry.startswith(".") and path.is_file():
                yield path


def _listed(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({shown})"


def _hub_source(spec: str) -> HubSource:
    """`hf:NAME`, `hf:NAME/CONFIG`, `hf:OWNER/NAME` or `hf:OWNER/NAME/CONFIG`."""
    parts = spec.removeprefix(_HUB_PREFIX).split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError(f"{spec!r} names no data set: write hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/CONFIG")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError(f"{spec} needs the datasets library: pip install 'seqmix[data]'") from error
    # Two parts are an owner and a name, or a name and a config.
    attempts = [["/".join(parts[:2]), *parts[2:]], *([parts] if len(parts) == 2 else [])]
    failures: list[Exception] = []
    for arguments in attempts:
        try:
            return _hub_splits(spec, datasets.load_dataset(*arguments))
        except (DatasetsError, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            failures.append(error)
    kind = InputError if all(isinstance(error, (DatasetsError, ValueError)) for error in failures) else SeqmixError
    raise kind(
        f"{spec} could not be loaded ({reason_of(failures[0])}): check the name, the config and the network"
    ) from failures[0]


def _hub_splits(spec: str, loaded: Mapping[str, Any]) -> HubSource:
    for split, rows in loaded.items():
        if TEXT_FIELD not in rows.column_names:
            columns = ", ".join(map(repr, rows.column_names))
            raise InputError(
                f"{spec} has no column `text` in {split!r} (its columns are {columns}): choose another data set"
            )
    by_role: dict[str, list[Any]] = {}
    for split, rows in loaded.items():
        by_role.setdefault(role_of(split) or "other", []).append(rows)
    splits: dict[Role, Sequence[Any]] = {"train": by_role.get("train") or list(loaded.values())}
    if "train" in by_role and "valid" in by_role:
        splits["valid"] = by_role["valid"]
    return HubSource(spec, splits)


# Parts that some systems ship apart (Debian does) or that are no prose of the library: tests and generated files.
_STDLIB_FOLDERS_LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "distutils",
    "ensurepip",
    "idlelib",
    "idle_test",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
_STDLIB_FILES_LEFT_OUT = re.compile(r"_sysconfigdata.*|sitecustomize|usercustomize|_distutils_system_mod|turtle")


def python_stdlib() -> FileSource:
    """The .py files of the running Python's standard library, by sorted name, without tests and generated files."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            entry for entry in folders if entry not in _STDLIB_FOLDERS_LEFT_OUT and not entry.startswith("config-")
        ]
        for entry in names:
            path = Path(folder, entry)
            if path.suffix == ".py" and not _STDLIB_FILES_LEFT_OUT.fullmatch(path.stem) and path.is_file():
                files.append((path.relative_to(root).as_posix(), path))
    if not files:
        raise SeqmixError(
            f"python-stdlib: {root} holds no .py file; install the library's source or give a file or folder"
        )
    files.sort()
    megabytes = sum(path.stat().st_size for _, path in files) / 1e6
    return FileSource(
        "python-stdlib", {"train": files}, [f"{len(files)} files of Python's library, {megabytes:.1f} MB"]
    )


BUILT_IN: dict[str, Callable[[], Source]] = {"python-stdlib": python_stdlib}
"""The corpora that need no file: name -> what makes the source."""
