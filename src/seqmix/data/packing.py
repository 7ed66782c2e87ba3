"""Rows for training and evaluation, read from a token store by index.

The training stream is epoch after epoch of all documents, each epoch in an order of its own. It is cut into rows of
`context` tokens, whatever document or epoch they fall in, and the rows that begin in one epoch are shuffled among
themselves, so that a corpus of one long document is not read from front to back. Row i depends on (store, context,
seed, i) alone: batches of any size read the same rows, and a run resumes by its count of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from seqmix.data.batch import IGNORED, Batch, permutation
from seqmix.data.token_store import TokenStore
from seqmix.errors import InputError


@dataclass(frozen=True, eq=False)
class _Layout:
    """An order of documents: where document j of the order begins in the store and in the stream.

    borders has one more entry, the end of the stream.
    """

    starts: NDArray[np.int64]
    borders: NDArray[np.int64]

    def read(self, store: TokenStore, positions: NDArray[np.int64], length: int) -> tuple[NDArray, NDArray, bool]:
        """(tokens, document's place in the order) of `length` neighbours from each position, both (rows, length).

        The last result says whether a border lies between the first length - 1 tokens of a row.
        """
        first = np.searchsorted(self.borders, positions, side="right") - 1
        last = np.searchsorted(self.borders, positions + length - 1, side="right") - 1
        if np.array_equal(first, last):
            index = (self.starts[first] - self.borders[first] + positions)[:, None] + np.arange(length)
            return store.tokens[index], np.broadcast_to(first[:, None], index.shape), False
        counts = last - first + 1
        ends = np.cumsum(counts)
        # One entry for each stretch of a document in a row.
        row = np.repeat(np.arange(len(positions)), counts)
        document = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + first[row]
        begin = np.maximum(self.borders[document], positions[row])
        lengths = np.minimum(self.borders[document + 1], positions[row] + length) - begin
        source = self.starts[document] + begin - self.borders[document]
        out = np.cumsum(lengths) - lengths
        index = np.repeat(source - out, lengths) + np.arange(len(positions) * length)
        inside = np.searchsorted(self.borders, positions + length - 2, side="right") - 1
        shape = (len(positions), length)
        tokens = store.tokens[index].reshape(shape)
        return tokens, np.repeat(document, lengths).reshape(shape), bool((inside > first).any())


class PackedStream:
    """The endless training stream of a store, row by row.

    Every epoch holds every token once as an input and once as a target. Raises InputError when the store holds fewer
    than context + 1 tokens.
    """

    def __init__(self, store: TokenStore, context: int, seed: int = 0) -> None:
        if context < 1:
            raise InputError(f"the context is {context}: it must be at least 1")
        if seed < 0:
            raise InputError(f"the seed is {seed}: it must not be negative")
        if len(store) <= context:
            raise InputError(
                f"the training part holds {len(store)} tokens, too few for a context of {context}: "
                f"give more text or a context below {len(store)}"
            )
        self.store = store
        self.context = context
        self.seed = seed
        self._epochs: dict[int, tuple[_Layout, NDArray[np.int64]]] = {}

    def epoch_of(self, row: int) -> int:
        """The epoch that row `row` begins in, from 0."""
        return row * self.context // len(self.store)

    def rows(self, first: int, count: int) -> Batch:
        """Rows first to first + count - 1."""
        if first < 0 or count < 1:
            raise InputError(f"rows({first}, {count}): rows are counted from 0 and at least one is read")
        tokens, documents, borders = [], [], False
        row = first
        while row < first + count:
            epoch = self.epoch_of(row)
            begin, end = self._first_row(epoch), self._first_row(epoch + 1)
            layout, order = self._epoch(epoch)
            until = min(first + count, end)
            positions = order[row - begin : until - begin] * self.context - epoch * len(self.store)
            ids, places, inside = layout.read(self.store, positions, self.context + 1)
            tokens.append(ids)
            documents.append(places + epoch * self.store.num_documents)
            borders |= inside
            row = until
        ids = np.concatenate(tokens) if len(tokens) > 1 else tokens[0]
        return _batch(ids, np.concatenate(documents)[:, :-1] if borders else None)

    def _first_row(self, epoch: int) -> int:
        return -(-epoch * len(self.store) // self.context)

    def _epoch(self, epoch: int) -> tuple[_Layout, NDArray[np.int64]]:
        """The layout of an epoch and the order of its rows; the last one that was used is kept, and its neighbour."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs, key=lambda known: -abs(known - epoch)))
            self._epochs[epoch] = self._layout(epoch), self._row_order(epoch)
        return self._epochs[epoch]

    def _layout(self, epoch: int) -> _Layout:
        offsets = self.store.documents
        order = self._document_order(epoch)
        # A row that begins in this epoch may end in the next: the documents that it can reach are put behind.
        following = self._document_order(epoch + 1)
        reach = np.searchsorted(np.cumsum(np.diff(offsets)[following]), self.context + 1) + 1
        order = np.concatenate([order, following[:reach]])
        borders = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])])
        return _Layout(offsets[order], borders)

    def _document_order(self, epoch: int) -> NDArray[np.int64]:
        return permutation((self.seed, epoch, 0), self.store.num_documents)

    def _row_order(self, epoch: int) -> NDArray[np.int64]:
        begin = self._first_row(epoch)
        return begin + permutation((self.seed, epoch, 1), self._first_row(epoch + 1) - begin)


def held_out_rows(
    store: TokenStore, context: int, batch_size: int = 16, *, max_tokens: int | None = None
) -> Iterator[Batch]:
    """The held-out part in order, in batches of up to `batch_size` rows: every token but the first is a target once.

    The last row is filled up with targets -100, as a document of its own. With `max_tokens` below the number of
    targets: only as many whole rows as it allows (at least one), spread evenly over the part.
    """
    if context < 1 or batch_size < 1:
        raise InputError(f"context {context} and batch size {batch_size}: both must be at least 1")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}: it must be at least 1")
    if len(store) < 2:
        raise InputError(f"the held-out part holds {len(store)} tokens: give at least a byte of text")
    layout = _Layout(store.documents[:-1], store.documents)
    targets = len(store) - 1
    full = targets // context
    places_of_rows = np.arange(full, dtype=np.int64)
    is_part = full > 0 and max_tokens is not None and max_tokens < targets
    if is_part and max_tokens is not None:
        count = max(1, min(full, max_tokens // context))
        places_of_rows = np.arange(count, dtype=np.int64) * full // count
    for row in range(0, len(places_of_rows), batch_size):
        positions = places_of_rows[row : row + batch_size] * context
        ids, places, inside = layout.read(store, positions, context + 1)
        yield _batch(ids, places[:, :-1] if inside else None)
    if is_part:
        return
    rest = targets - full * context
    if rest:
        ids, places, _ = layout.read(store, np.array([full * context], dtype=np.int64), rest + 1)
        batch = _batch(ids, places[:, :-1])
        assert batch.document_ids is not None
        padding = (0, context - rest)
        yield Batch(
            torch.nn.functional.pad(batch.input_ids, padding, value=int(store.tokens[0])),
            torch.nn.functional.pad(batch.targets, padding, value=IGNORED),
            torch.nn.functional.pad(batch.document_ids, padding, value=store.num_documents),
        )


def _batch(ids: NDArray, documents: NDArray | None) -> Batch:
    wide = torch.from_numpy(ids.astype(np.int64))
    return Batch(
        wide[:, :-1].contiguous(),
        wide[:, 1:].contiguous(),
        None if documents is None else torch.from_numpy(np.array(documents, dtype=np.int64)),
    )
