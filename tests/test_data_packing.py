"""Rows: which tokens they hold, in which order, and that any way of reading them gives the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqmix.data import IGNORED, Batch, PackedStream, TokenStore, held_out_rows, memory_store
from seqmix.errors import InputError

lengths_strategy = st.lists(st.integers(2, 12), min_size=1, max_size=9)


def numbered_store(lengths: list[int]) -> TokenStore:
    """A store whose every token is its own position, so that a row tells what was read."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(np.arange(offsets[-1], dtype=np.uint32), offsets, int(offsets[-1]) - len(lengths), 0)


def document_of(store: TokenStore, tokens: np.ndarray) -> np.ndarray:
    return np.searchsorted(store.documents, tokens, side="right") - 1


def joined(batches: list[Batch], field: str) -> torch.Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])


@given(lengths=lengths_strategy, context=st.integers(1, 8), seed=st.integers(0, 5))
def test_every_token_is_an_input_and_a_target_once_an_epoch(lengths: list[int], context: int, seed: int) -> None:
    # `context` epochs are a whole number of rows, whatever the number of tokens.
    total = sum(lengths)
    if total <= context:
        return
    stream = PackedStream(numbered_store(lengths), context, seed)
    batch = stream.rows(0, total)
    assert np.array_equal(np.bincount(batch.input_ids.flatten(), minlength=total), np.full(total, context))
    targets = np.bincount(batch.targets.flatten(), minlength=total)
    # The first token of all is no target; the first token behind the last epoch is one in its place.
    assert targets.sum() == total * context
    assert np.abs(targets - context).sum() in (0, 2)


@given(lengths=lengths_strategy, context=st.integers(1, 8))
def test_rows_follow_the_documents(lengths: list[int], context: int) -> None:
    store = numbered_store(lengths)
    if len(store) <= context:
        return
    batch = PackedStream(store, context, 3).rows(0, 3 * len(store) // context + 1)
    starts, ends = set(store.documents[:-1].tolist()), set((store.documents[1:] - 1).tolist())
    for inputs, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
        assert inputs[1:] == targets[:-1]
        for here, after in zip(inputs, targets, strict=True):
            assert after == here + 1 if here not in ends else after in starts


@given(
    lengths=lengths_strategy,
    context=st.integers(1, 8),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    first=st.integers(0, 40),
)
def test_rows_do_not_depend_on_the_batch(lengths: list[int], context: int, cuts: list[int], first: int) -> None:
    store = numbered_store(lengths)
    if len(store) <= context:
        return
    whole = PackedStream(store, context, 1).rows(first, sum(cuts))
    # A stream of its own for each piece: nothing is carried from one call to the next.
    at = np.cumsum([first, *cuts])
    pieces = [PackedStream(store, context, 1).rows(int(a), int(b - a)) for a, b in pairwise(at)]
    assert torch.equal(whole.input_ids, joined(pieces, "input_ids"))
    assert torch.equal(whole.targets, joined(pieces, "targets"))


@given(lengths=lengths_strategy, context=st.integers(1, 8), count=st.integers(1, 12))
def test_document_ids_change_exactly_at_borders(lengths: list[int], context: int, count: int) -> None:
    store = numbered_store(lengths)
    if len(store) <= context:
        return
    stream = PackedStream(store, context, 2)
    batch = stream.rows(0, count)
    inputs = batch.input_ids.numpy()
    borders = np.isin(inputs[:, 1:], store.documents[:-1])
    if batch.document_ids is None:
        assert not borders.any()
        return
    assert borders.any()
    ids = batch.document_ids.numpy()
    assert ids.dtype == np.int64
    assert ids.shape == inputs.shape
    assert np.array_equal(ids[:, 1:] != ids[:, :-1], borders)


def test_a_row_across_two_epochs_holds_a_border() -> None:
    # One document: the border at the end of an epoch is the only one, and its row must tell.
    store = numbered_store([10])
    stream = PackedStream(store, 4, 0)
    batch = stream.rows(0, 3)
    row = next(i for i, tokens in enumerate(batch.input_ids.tolist()) if 9 in tokens)
    assert batch.input_ids[row].tolist() == [8, 9, 0, 1]
    assert batch.document_ids is not None
    assert (batch.document_ids[row].diff() != 0).tolist() == [False, True, False]


def test_documents_and_rows_are_reshuffled_each_epoch() -> None:
    store = numbered_store([4] * 30)
    stream = PackedStream(store, 4, 0)
    orders = [stream.rows(epoch * 30, 30).input_ids[:, 0].tolist() for epoch in range(3)]
    assert all(sorted(order) == sorted(store.documents[:-1].tolist()) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != PackedStream(store, 4, 1).rows(0, 30).input_ids[:, 0].tolist()


def test_one_long_document_is_not_read_from_front_to_back() -> None:
    firsts = PackedStream(numbered_store([4001]), 8, 0).rows(0, 64).input_ids[:, 0]
    # Neighbouring rows of a shuffle of 500 are 167 rows apart on average; in order they would be 1.
    assert firsts.diff().abs().float().mean() > 8 * 80


def test_the_order_of_a_seed_is_fixed() -> None:
    # Resuming after an upgrade of numpy relies on these values.
    stream = PackedStream(numbered_store([5, 3, 7, 2, 6]), 6, 11)
    assert stream.rows(0, 3).input_ids.tolist() == [[4, 17, 18, 19, 20, 21], [15, 16, 0, 1, 2, 3], [22, 5, 6, 7, 8, 9]]


def test_tokens_are_int64_and_writable() -> None:
    batch = PackedStream(memory_store([b"some text", b"more"], 256), 4, 0).rows(0, 2)
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.input_ids.is_contiguous()
    assert batch.targets.is_contiguous()
    batch.input_ids.zero_()


@given(lengths=lengths_strategy, context=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_held_out_targets_are_covered_once(lengths: list[int], context: int, batch_size: int) -> None:
    store = numbered_store(lengths)
    batches = list(held_out_rows(store, context, batch_size))
    targets, inputs = joined(batches, "targets"), joined(batches, "input_ids")
    real = targets != IGNORED
    assert targets[real].tolist() == list(range(1, len(store)))
    assert torch.equal(inputs[real] + 1, targets[real])
    assert real.flatten().long().diff().clamp(min=0).sum() == 0  # what is filled up is at the end alone
    assert all(batch.input_ids.shape[1] == context and len(batch.input_ids) <= batch_size for batch in batches)
    assert (~real).sum() < context
    for batch in batches:
        borders = np.isin(batch.input_ids[:, 1:].numpy(), store.documents[1:-1])
        if batch.document_ids is None:
            assert not borders.any()
            assert (batch.targets != IGNORED).all()
        else:
            changes = (batch.document_ids.diff() != 0).numpy()
            padded = (batch.targets[:, 1:] == IGNORED).numpy()
            assert np.array_equal(changes & ~padded, borders & ~padded)


def test_held_out_padding_is_a_document_of_its_own() -> None:
    (batch,) = held_out_rows(numbered_store([4]), 5)
    assert batch.targets.tolist() == [[1, 2, 3, IGNORED, IGNORED]]
    assert batch.document_ids is not None
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1]]


def test_a_corpus_shorter_than_the_context_is_refused() -> None:
    store = memory_store([b"12345"], 256)
    assert PackedStream(store, 5).rows(0, 1).input_ids.shape == (1, 5)
    with pytest.raises(
        InputError, match=r"holds 6 tokens, too few for a context of 6: give more text or a context below 6"
    ):
        PackedStream(store, 6)


@pytest.mark.parametrize(
    "context, seed, message", [(0, 0, "the context is 0"), (2, -1, "the seed is -1: it must not be negative")]
)
def test_impossible_streams_are_refused(context: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PackedStream(memory_store([b"12345"], 256), context, seed)


@pytest.mark.parametrize("first, count", [(-1, 1), (0, 0)])
def test_impossible_rows_are_refused(first: int, count: int) -> None:
    with pytest.raises(InputError, match="rows are counted from 0"):
        PackedStream(memory_store([b"12345"], 256), 2).rows(first, count)


def test_held_out_rows_refuse_nothing_to_predict() -> None:
    with pytest.raises(InputError, match="holds 0 tokens"):
        next(held_out_rows(memory_store([], 256), 4))
    with pytest.raises(InputError, match="context 0"):
        next(held_out_rows(memory_store([b"a"], 256), 0))
