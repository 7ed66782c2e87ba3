"""The endless stream of training rows, whatever the data are: packed text, or the rows of a task."""

from __future__ import annotations

from typing import Protocol

from seqmix.data.batch import Batch
from seqmix.data.packing import PackedStream
from seqmix.data.synthetic import ExampleStore, ExampleStream, is_task, parse_task
from seqmix.data.token_store import TokenStore
from seqmix.errors import InputError

DEFAULT_CONTEXT = 256
"""Tokens in a row of text, where nobody asks for another number."""


class RowStream(Protocol):
    """Row i depends on the data, the seed and i alone."""

    def rows(self, first: int, count: int) -> Batch:
        """Rows first to first + count - 1."""


def open_stream(store: TokenStore | ExampleStore, context: int, seed: int = 0) -> RowStream:
    """The training stream of a store; InputError where its rows are not of this context, or it has too few tokens."""
    if isinstance(store, ExampleStore):
        check_context(store.task.spec(), context)
        return ExampleStream(store, seed)
    return PackedStream(store, context, seed)


def natural_context(data: str) -> int:
    """The tokens in a row that `--data` asks for itself: those of a task's rows, else the default."""
    return parse_task(data).length if is_task(data) else DEFAULT_CONTEXT


def check_context(data: str, context: int) -> None:
    """Raises an InputError for a context that is not the length of a task's rows."""
    if is_task(data) and context != (length := natural_context(data)):
        raise InputError(
            f"the context is {context}, and {data!r} has rows of {length} tokens: "
            f"leave --context out, or give --context {length}"
        )
