"""From one file to its documents.

A document is a name (the file and, in a table, the row) and its bytes, in pieces, so that no file has to fit in memory.
A text file is one document; a row of a .jsonl or .parquet file (field `text`) is one; .gz and .xz may wrap any of them.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from seqmix.errors import InputError

TEXT_FIELD = "text"
_READ_BYTES = 1 << 20
_TEXT_TEST_BYTES = 8192
_TABLES = (".jsonl", ".parquet")
_COMPRESSIONS = (".gz", ".xz")


@dataclass(frozen=True)
class Document:
    """file: its name in messages. row: from 1 in a table, 0 for a whole file. pieces: its bytes, read once."""

    file: str
    row: int
    pieces: Iterable[bytes]


def read_documents(path: Path, name: str) -> Iterator[Document]:
    """The documents of one file; `name` is what messages call it.

    Raises InputError for a file that cannot be read or that breaks its own format.
    """
    kind = _kind(path)
    if kind == ".jsonl":
        return _jsonl_documents(path, name)
    if kind == ".parquet":
        return _parquet_documents(path, name)
    return iter([Document(name, 0, _text_pieces(path, name))])


def is_text(path: Path, name: str) -> bool:
    """Whether a file of a folder is taken: a table, or a file without a NUL byte in its first 8 KiB, unpacked."""
    if _kind(path) in _TABLES:
        return True
    with _opened(path, name) as file:
        return b"\0" not in file.read(_TEXT_TEST_BYTES)


def _kind(path: Path) -> str:
    """The suffix that decides the format, in lower case, without a compression's."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file; whatever is wrong with it becomes one InputError."""
    try:
        suffix = path.suffix.lower()
        if suffix == ".gz":
            with gzip.open(path) as file:
                yield cast("IO[bytes]", file)
        elif suffix == ".xz":
            with lzma.open(path) as file:
                yield cast("IO[bytes]", file)
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name} cannot be unpacked ({error}): it is truncated or damaged, copy or download it again"
        ) from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


def _text_pieces(path: Path, name: str) -> Iterator[bytes]:
    with _opened(path, name) as file:
        while piece := file.read(_READ_BYTES):
            yield piece


def _jsonl_documents(path: Path, name: str) -> Iterator[Document]:
    with _opened(path, name) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{where} is not JSON ({error}): give one object with a field `text` a line"
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get(TEXT_FIELD), str):
                found = f"it has {', '.join(map(repr, row)) or 'none'}" if isinstance(row, dict) else "it is no object"
                raise InputError(f"{where} has no string field `text` ({found}): rename the field that holds the text")
            yield Document(name, number, [encode_text(row[TEXT_FIELD], where)])


def _parquet_documents(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow to be read: pip install 'seqmix[data]'") from error
    with _opened(path, name) as file:
        try:
            table = parquet.ParquetFile(file)
            columns = table.schema_arrow.names
            if TEXT_FIELD not in columns:
                raise InputError(
                    f"{name} has no column `text` (its columns are {', '.join(map(repr, columns))}): "
                    "rename the column that holds the text"
                )
            rows = (
                value
                for batch in table.iter_batches(columns=[TEXT_FIELD], batch_size=1024)
                for value in batch.column(0)
            )
            for number, value in enumerate(rows, start=1):
                content: Any = value.as_py()
                if content is not None:
                    yield Document(name, number, [encode_text(content, f"{name}, row {number}")])
        except pa.ArrowException as error:
            raise InputError(
                f"{name} is not a readable parquet file ({reason_of(error)}): write or download it again"
            ) from error


def reason_of(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def encode_text(content: object, where: str) -> bytes:
    """The bytes of a table's text; `where` names the row in the error for anything else."""
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str):
        raise InputError(f"{where} holds {type(content).__name__} in `text`: it must be a string")
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds half a surrogate pair at character {error.start}: it is no Unicode text"
        ) from error
