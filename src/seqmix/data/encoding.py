"""From spans of documents to the token files of one part."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from seqmix.data.documents import Documents, cut_pieces
from seqmix.data.splits import Span
from seqmix.data.token_store import TokenWriter, count_words
from seqmix.data.tokenizers import TextEncoder, decode_text, is_byte_tokenizer

_BATCH_BYTES = 1 << 22
_REPORT_EVERY_BYTES = 1 << 24


class _Piece(NamedTuple):
    """Neighbouring bytes of a document. offset: where they begin in it. begins, ends: whether a span does here."""

    content: bytes
    document: int
    offset: int
    begins: bool
    ends: bool


def write_part(
    folder: Path,
    name: str,
    documents: Documents,
    spans: Sequence[Span],
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], bool]:
    """Writes the token files of one part; returns their header and whether the tokenizer kept the text as it is."""
    encoder = TextEncoder(tokenizer)
    end_id = tokenizer.eos_token_id
    as_bytes = is_byte_tokenizer(tokenizer)
    whole = not as_bytes and not encoder.reads_pieces
    total = sum(span.last - span.first for span in spans)
    lossless: bool | None = True if as_bytes else None
    done = reported = 0
    with TokenWriter(folder, name, encoder.dtype) as writer:
        for batch in _batches(_pieces(documents, spans, whole)):
            if as_bytes:
                ids, starts = _byte_ids(batch, end_id)
            else:
                texts = [decode_text(piece.content, documents.name(piece.document), piece.offset) for piece in batch]
                if lossless is None:
                    lossless = encoder.is_lossless(texts[0])
                ids, starts = _token_ids(batch, encoder.encode(texts), end_id, encoder.dtype)
            size = sum(len(piece.content) for piece in batch)
            writer.write(ids, starts, size, _words(batch))
            done += size
            if done - reported >= _REPORT_EVERY_BYTES:
                reported = done
                report(f"tokenizing the {name} part: {done / total:.0%}")
        return writer.finish(), bool(lossless)


def training_texts(documents: Documents, spans: Sequence[Span]) -> Iterator[str]:
    """The text of spans in pieces, for a tokenizer to be trained on."""
    for piece in _pieces(documents, spans, whole=False):
        yield decode_text(piece.content, documents.name(piece.document), piece.offset)


def _pieces(documents: Documents, spans: Sequence[Span], whole: bool) -> Iterator[_Piece]:
    for span in spans:
        text = documents.text(span.document)[span.first : span.last]
        offset = span.first
        for content in [bytes(text)] if whole else cut_pieces(text):
            end = offset + len(content)
            yield _Piece(content, span.document, offset, offset == span.first, end == span.last)
            offset = end


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that together hold a few MB: enough for many threads, and short documents do not cost a call each."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(batch: Sequence[_Piece]) -> bytes:
    """The bytes with a newline, as a place holder, before each document."""
    return b"".join(part for piece in batch for part in (b"\n" if piece.begins else b"", piece.content))


def _byte_ids(batch: Sequence[_Piece], end_id: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(ids, where documents begin in them): the bytes themselves, and the end token where the place holders are."""
    ids = np.frombuffer(_joined(batch), np.uint8).astype(np.uint16)
    starts = _starts(batch, [len(piece.content) for piece in batch])
    ids[starts] = end_id
    return ids, starts


def _token_ids(
    batch: Sequence[_Piece], encoded: Sequence[NDArray[Any]], end_id: int, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    end, none = np.array([end_id], dtype), np.zeros(0, dtype)
    parts = itertools.chain.from_iterable(
        (end if piece.begins else none, ids) for piece, ids in zip(batch, encoded, strict=True)
    )
    return np.concatenate(list(parts)), _starts(batch, [len(ids) for ids in encoded])


def _starts(batch: Sequence[_Piece], lengths: Sequence[int]) -> NDArray[np.int64]:
    begins = np.array([piece.begins for piece in batch])
    ends = np.cumsum(np.array(lengths, dtype=np.int64) + begins)
    return np.concatenate([[0], ends[:-1]])[begins]


def _words(batch: Sequence[_Piece]) -> int:
    words, newlines = count_words(_joined(batch))
    begun = sum(piece.begins for piece in batch)
    unfinished = sum(piece.ends and not piece.content.endswith(b"\n") for piece in batch)
    return words + newlines - begun + unfinished
