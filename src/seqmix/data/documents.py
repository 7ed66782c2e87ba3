"""A corpus's documents as one memory-mapped file of bytes, so that reading them again needs no parsing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqmix.data.readers import Document

_PIECE_BYTES = 1 << 18
_CUT_SEARCH_BYTES = 1 << 14
_REPORT_EVERY_BYTES = 1 << 26


class Documents:
    """Documents that lie one after another in a file.

    digests: of each one's content. files, rows: where each came from.
    """

    def __init__(self, path: Path, offsets: list[int], digests: list[bytes], files: list[str], rows: list[int]) -> None:
        self._offsets = offsets
        self.digests = digests
        self._files = files
        self._rows = rows
        self._bytes: NDArray[np.uint8] = (
            np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if offsets[-1] else np.zeros(0, np.uint8)
        )

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self._offsets[-1]

    def size(self, index: int) -> int:
        """Bytes of one."""
        return self._offsets[index + 1] - self._offsets[index]

    def text(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one, as a view."""
        return self._bytes[self._offsets[index] : self._offsets[index + 1]]

    def name(self, index: int) -> str:
        """What messages call it."""
        return self._files[index] + (f", row {self._rows[index]}" if self._rows[index] else "")


def store_documents(documents: Iterable[Document], path: Path, report: Callable[[str], None]) -> Documents:
    """Writes the documents to `path`, without those that are empty."""
    offsets, digests, files, rows = [0], [], [], []
    reported = 0
    with path.open("wb") as out:
        for document in documents:
            digest = hashlib.blake2b(digest_size=16)
            size = 0
            for piece in document.pieces:
                out.write(piece)
                digest.update(piece)
                size += len(piece)
            if size:
                offsets.append(offsets[-1] + size)
                digests.append(digest.digest())
                files.append(document.file)
                rows.append(document.row)
                if offsets[-1] - reported >= _REPORT_EVERY_BYTES:
                    reported = offsets[-1]
                    report(f"reading: {reported / 1e6:.0f} MB so far, {document.file}")
    return Documents(path, offsets, digests, files, rows)


def cut_pieces(text: NDArray[np.uint8]) -> Iterator[bytes]:
    """The bytes of a text in pieces of about 256 KiB that a byte-level tokenizer reads as it reads the whole.

    The usual pre-tokenizers join a space to the word behind it, so a text may be cut before a lone space.
    """
    first = 0
    while len(text) - first > _PIECE_BYTES:
        window = bytes(text[first : first + _PIECE_BYTES])
        cut = _cut_before_space(window)
        yield window[:cut]
        first += cut
    yield bytes(text[first:])


def _cut_before_space(window: bytes) -> int:
    base = len(window) - _CUT_SEARCH_BYTES
    tail = window[base:]
    spaces = [match.start() for match in re.finditer(rb"(?<=\S) (?=\S)", tail)]
    if spaces:
        return base + spaces[-1]
    line = tail.rfind(b"\n")
    if line > 0:
        return base + line
    # Before the last character; at most three continuation bytes belong to one, whatever else the text may be.
    cut = len(window) - 1
    while cut > len(window) - 4 and window[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
