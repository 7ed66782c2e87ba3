"""Which documents, or which end of one, are held out: decided by content, before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seqmix.data.documents import Documents
from seqmix.errors import InputError

# Whole documents are held out as long as they come this near to the share that was asked for.
_MOST_OVER = 1.25
_LEAST_UNDER = 0.25
_LARGEST_SHARE = 1 / 3


class Span(NamedTuple):
    """Bytes first to last of a document."""

    document: int
    first: int
    last: int


@dataclass(frozen=True)
class Split:
    """The spans of each part, in the source's order. dropped: training documents that repeat held-out ones."""

    train: Sequence[Span]
    valid: Sequence[Span]
    dropped: int = 0


def split_documents(documents: Documents, *, share: float, seed: int) -> Split:
    """Holds out about `share` of the bytes.

    Documents are taken in the order of a hash of seed and content, so that the choice is stable and copies of one
    document stay together. When whole documents cannot come near the share (there is one, or one is most of the text),
    the end of the largest is held out, cut at a line.
    """
    if not 0 < share < 1:
        raise InputError(f"the held-out share is {share}: it must be between 0 and 1")
    copies: dict[bytes, list[int]] = {}
    for index, digest in enumerate(documents.digests):
        copies.setdefault(digest, []).append(index)
    sizes = {digest: documents.size(same[0]) * len(same) for digest, same in copies.items()}
    target = share * documents.total
    chosen: set[bytes] = set()
    taken = 0
    for digest in sorted(copies, key=lambda digest: hashlib.sha256(f"{seed}\0".encode() + digest).digest()):
        more = taken + sizes[digest]
        if taken < target and more <= _MOST_OVER * target and more < documents.total:
            chosen.add(digest)
            taken = more
    if taken < _LEAST_UNDER * target:
        smallest = min(sizes, key=lambda digest: (sizes[digest], digest))
        if not target <= sizes[smallest] <= _LARGEST_SHARE * documents.total:
            return _cut_largest(documents, copies, target)
        chosen = {smallest}
    train = [_whole(documents, index) for index, digest in enumerate(documents.digests) if digest not in chosen]
    valid = [_whole(documents, index) for index, digest in enumerate(documents.digests) if digest in chosen]
    return Split(train, valid)


def split_as_given(train: Documents, valid: Documents) -> Split:
    """Every document on its side, but training documents that are also held out are dropped."""
    held_out = set(valid.digests)
    kept = [_whole(train, index) for index, digest in enumerate(train.digests) if digest not in held_out]
    if not kept:
        raise InputError("every training document is also held out: give other text as the held-out part")
    return Split(kept, [_whole(valid, index) for index in range(len(valid))], len(train) - len(kept))


def _whole(documents: Documents, index: int) -> Span:
    return Span(index, 0, documents.size(index))


def _cut_largest(documents: Documents, copies: dict[bytes, list[int]], target: float) -> Split:
    largest = max(range(len(documents)), key=lambda index: (documents.size(index), -index))
    size = documents.size(largest)
    if size < 2:
        raise InputError("the corpus holds no document of two bytes: give more text, or a held-out part of its own")
    cut = _line_start(documents, largest, size - max(1, min(size // 2, round(target))))
    same = set(copies[documents.digests[largest]])
    train = [
        Span(index, 0, cut) if index == largest else _whole(documents, index)
        for index in range(len(documents))
        if index == largest or index not in same
    ]
    return Split(train, [Span(largest, cut, size)], len(same) - 1)


def _line_start(documents: Documents, index: int, wanted: int) -> int:
    """The start of the line nearest to `wanted`, at most the held-out size away, else of a character.

    Never the document's own start or end.
    """
    text = documents.text(index)
    window = min(1 << 20, len(text) - wanted)
    before = bytes(text[max(0, wanted - window) : wanted]).rfind(b"\n")
    after = bytes(text[wanted : wanted + window]).find(b"\n")
    starts = []
    if before >= 0:
        starts.append(max(0, wanted - window) + before + 1)
    if after >= 0 and wanted + after + 1 < len(text):
        starts.append(wanted + after + 1)
    if starts:
        return min(starts, key=lambda start: abs(start - wanted))
    while wanted > 1 and text[wanted] & 0xC0 == 0x80:
        wanted -= 1
    return wanted
