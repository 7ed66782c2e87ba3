"""Token files: one part of a corpus as memory-mapped ids, with where its documents begin."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPACE = np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c"))
_NEWLINE = 10


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The tokens of one part.

    tokens: (tokens,) unsigned ids; every document is <|end|> and its text's tokens, one after another.
    documents: (documents + 1,) int64, where each begins, and the end.
    bytes: of text, without the <|end|>s. words: by WikiText's convention, see `count_words`.
    """

    tokens: NDArray[Any]
    documents: NDArray[np.int64]
    bytes: int
    words: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents in this part."""
        return len(self.documents) - 1


def count_words(text: bytes) -> tuple[int, int]:
    """(words between ASCII white space, newlines).

    Word perplexity divides by their sum: papers on WikiText count the end of a line as a word, <eos>. A last line
    without a newline counts as well; the caller adds it.
    """
    values = np.frombuffer(text, np.uint8)
    if not len(values):
        return 0, 0
    space = _SPACE[values]
    starts = np.count_nonzero(space[:-1] & ~space[1:]) + int(not space[0])
    return int(starts), int(np.count_nonzero(values == _NEWLINE))


class TokenWriter:
    """Writes one part to `folder/name.tokens` and `folder/name.documents`; a context that closes the file."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._file = (folder / f"{name}.tokens").open("wb")
        self._digest = hashlib.sha256()
        self._documents: list[NDArray[np.int64]] = []
        self._tokens = 0
        self._bytes = 0
        self._words = 0

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def write(self, ids: NDArray[Any], starts: NDArray[np.int64], size: int, words: int) -> None:
        """ids, where documents begin in them, and the bytes and words of text that they stand for."""
        data = ids.astype(self._dtype, copy=False).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._documents.append(starts + self._tokens)
        self._tokens += len(ids)
        self._bytes += size
        self._words += words

    def finish(self) -> dict[str, Any]:
        """Flushes the files to the disk and returns what describes them, for the header."""
        self._file.flush()
        os.fsync(self._file.fileno())
        offsets = np.concatenate([*self._documents, [self._tokens]]).astype(np.int64)
        with (self._folder / f"{self._name}.documents").open("wb") as file:
            file.write(offsets.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return {
            "dtype": self._dtype.name,
            "tokens": self._tokens,
            "documents": len(offsets) - 1,
            "bytes": self._bytes,
            "words": self._words,
            "sha256": self._digest.hexdigest(),
            "documents_sha256": hashlib.sha256(offsets.tobytes()).hexdigest(),
        }


def open_store(folder: Path, name: str, header: dict[str, Any]) -> TokenStore | None:
    """The part that a header describes, or None when a file is missing, truncated or altered."""
    dtype = np.dtype(header["dtype"])
    tokens = folder / f"{name}.tokens"
    documents = folder / f"{name}.documents"
    try:
        sizes = tokens.stat().st_size, documents.stat().st_size
        if sizes != (header["tokens"] * dtype.itemsize, (header["documents"] + 1) * 8):
            return None
        for path, key in ((tokens, "sha256"), (documents, "documents_sha256")):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != header[key]:
                    return None
        # A plain view of the mapping: indexing np.memmap itself costs more than the reading.
        ids = np.asarray(np.memmap(tokens, dtype=dtype, mode="r"))
        offsets = np.fromfile(documents, dtype=np.int64)
    except OSError:
        return None
    return TokenStore(ids, offsets, header["bytes"], header["words"])


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Writes corpus.json, with a hash of its own content."""
    header = {**header, "sha256": _header_hash(header)}
    with (folder / "corpus.json").open("w", encoding="utf-8") as file:
        json.dump(header, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_header(folder: Path, version: int) -> dict[str, Any] | None:
    """corpus.json, or None when it is missing, altered, or of another version."""
    try:
        header = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.pop("sha256", None) != _header_hash(header):
        return None
    return header if header.get("format") == version else None


def _header_hash(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def memory_store(documents: Iterable[bytes], end_id: int) -> TokenStore:
    """A part of byte documents that lives in memory, for tests and for text that was never a file."""
    pieces: list[NDArray[Any]] = []
    offsets = [0]
    total = words = 0
    for document in documents:
        pieces += [np.array([end_id], np.uint16), np.frombuffer(document, np.uint8).astype(np.uint16)]
        offsets.append(offsets[-1] + 1 + len(document))
        total += len(document)
        words += sum(count_words(document)) + int(bool(document) and not document.endswith(b"\n"))
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.uint16)
    return TokenStore(tokens, np.array(offsets, np.int64), total, words)
