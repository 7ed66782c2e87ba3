"""How well a model predicts held-out text: bits per byte, perplexity, and the loss by position.

    bits per byte = sum over targets of -log2 p(target | what precedes it in its document) / bytes of text

Documents are isolated. The <|end|> that follows a document is a target like any other, so its bits count, while
bytes and words are those of the text alone; the first <|end|> has nothing before it and is no target.
Perplexity is exp of the mean loss, over tokens or over words (`TokenStore.words`, as papers on WikiText count).

Of a synthetic task the targets are its answers (`answers.py`); there are no bytes and no words then.

Where only a part of the targets is read, its bytes and words are taken as the same share of the whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.data import IGNORED, Batch, ExampleStore, TokenStore, check_context, example_batches, held_out_rows
from seqmix.errors import InputError
from seqmix.evaluation.answers import Answers, AnswerSums, give_answers
from seqmix.models import SeqmixForCausalLM

BLOCKS = 32
"""Consecutive parts of the held-out text whose bits per byte are given one by one."""

EXACT_POSITIONS = 1 << 16
"""Positions beyond this are given in bins alone: a document may have billions."""

MAX_LOGITS = 1 << 26
"""Logits of a batch at most; one of more rows is evaluated in smaller ones, which changes nothing but memory."""

_BINS_PER_OCTAVE = 8

Show = Callable[[float], None]
"""Is told the share that is done, 0 to 1."""


class Part(Protocol):
    """One of several processes that score a text together, batch by batch in turn."""

    @property
    def rank(self) -> int:
        """Its number, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a float64 CPU tensor."""


class LossByPosition(NamedTuple):
    """bits: mean bits a token, by how many tokens of the document the model had read before the target's input.

    positions: 0 is the input <|end|> or the first of a row; only those that occur. In bins they are the mean of a bin.
    """

    positions: list[float]
    bits: list[float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model makes of held-out text, or of a task's held-out rows.

    bits_per_byte: over the text's bytes. loss: nats a token. perplexity, word_perplexity: exp of nats a token, a word.
    tokens: targets that were scored. bytes, words: of text that they stand for. A task has no bytes and no words, so
        bits_per_byte, word_perplexity, bytes and words are None for it.
    loss_by_position: position by position, up to `EXACT_POSITIONS`.
    loss_by_position_bins: all positions, in bins that widen with the position (eight an octave).
    bits_by_block: bits per byte of `BLOCKS` consecutive parts (fewer for a short text), equal in tokens, at the mean
        bytes a token; empty for a task.
    answers: how many of a task's answers are right; None for text.
    """

    bits_per_byte: float | None
    loss: float
    perplexity: float
    word_perplexity: float | None
    tokens: int
    bytes: float | None
    words: float | None
    loss_by_position: LossByPosition
    loss_by_position_bins: LossByPosition
    bits_by_block: list[float]
    answers: Answers | None = None

    @property
    def accuracy(self) -> float | None:
        """The share of a task's answers that are right; None for text."""
        return None if self.answers is None else self.answers.accuracy

    def to_dict(self) -> dict[str, Any]:
        """The measurements as a JSON value; of the positions the bins. Of a task, the accuracies as well."""
        answers = {} if self.answers is None else self.answers.to_dict()
        return {
            **answers,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "word_perplexity": self.word_perplexity,
            "tokens": self.tokens,
            "loss": self.loss,
            "bytes": self.bytes,
            "words": self.words,
            "loss_by_position": {
                "position": self.loss_by_position_bins.positions,
                "bits": self.loss_by_position_bins.bits,
            },
            "bits_by_block": self.bits_by_block,
        }


def evaluate(
    model: nn.Module,
    store: TokenStore | ExampleStore,
    *,
    context: int,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    max_tokens: int | None = None,
    show: Show | None = None,
    part: Part | None = None,
) -> Evaluation:
    """Scores the held-out part in rows of `context` tokens; the result does not depend on the batch size.

    Of a task the answers are scored, and counted.

    Args:
        model: a causal language model, called with input_ids, document_ids and use_cache; in its own precision, the
            loss is taken in float32 or better. It is in training mode afterwards if it was before.
        device: where the model is; None asks its parameters.
        max_tokens: read only about as many targets, in rows spread evenly over the part.
        show: is told the share that is done.
        part: the processes that share the work; all of them get the result. None is this one alone.

    Raises:
        InputError: no text, or sizes below 1.
    """
    device = _device_of(model) if device is None else torch.device(device)
    rows = min(batch_size, max(1, MAX_LOGITS // (context * _vocabulary(model)))) if batch_size > 0 else batch_size
    answers: AnswerSums | None = None
    if isinstance(store, ExampleStore):
        check_context(store.task.spec(), context)
        batches = example_batches(store, rows, max_tokens)
        targets = store.answers if max_tokens is None else min(store.answers, max_tokens)
        answers = AnswerSums(context, targets, BLOCKS)
    else:
        batches = held_out_rows(store, context, rows, max_tokens=max_tokens)
        targets = len(store) - 1
        if max_tokens is not None:
            targets = min(targets, max(context, max_tokens // context * context))
    rank, count = (0, 1) if part is None else (part.rank, part.count)
    sums = LossSums(expected=targets, show=None if show is None else lambda share: show(min(1.0, share * count)))
    with evaluating(model):
        for batch, order in _own_batches(batches, rank, count):
            if answers is None:
                losses = model_losses(model, batch.input_ids, batch.targets, batch.document_ids, device)
            else:
                losses, right = give_answers(model, batch, device)
                answers.add(right, batch, order)
            sums.add(losses, batch.targets, _offsets(batch), order)
    if part is not None:
        add_up(part, [*sums.arrays(), *([] if answers is None else answers.arrays())])
    if answers is None:
        assert isinstance(store, TokenStore)
        return sums.result(store)
    return dataclasses.replace(sums.result(None), answers=answers.result())


def add_up(part: Part, arrays: Iterable[Any]) -> None:
    """Puts the sum over all processes into each array."""
    for values in arrays:
        total = part.sum(torch.from_numpy(values.reshape(-1)).double()).numpy()
        values[...] = total.reshape(values.shape)


def model_losses(
    model: nn.Module, tokens: Tensor, targets: Tensor, document_ids: Tensor | None, device: torch.device
) -> Tensor:
    """-ln p of each target (batch, time), in at least float32; 0 where the target is `IGNORED`."""
    inputs = {
        "input_ids": tokens.to(device),
        "document_ids": None if document_ids is None else document_ids.to(device),
        "use_cache": False,
    }
    targets = targets.to(device)
    if isinstance(model, SeqmixForCausalLM):
        return model(**inputs, shift_labels=targets, return_logits=False, loss_by_token=True).loss
    return token_losses(model(**inputs).logits, targets)


def _own_batches(batches: Iterable[Batch], rank: int, count: int) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of one process, and the place of each target in the text.

    All processes get equally many, since a model in shards needs all of them for each batch: where they do not go
    round, the first is given again without its targets.
    """
    first, remaining = 0, iter(batches)
    while group := list(itertools.islice(remaining, count)):
        orders = []
        for batch in group:
            scored = (batch.targets != IGNORED).flatten().cumsum(0)
            orders.append((first + scored - 1).view(batch.targets.shape))
            first += int(scored[-1])
        if rank < len(group):
            yield group[rank], orders[rank]
        else:
            again = group[0]
            unscored = torch.full_like(again.targets, IGNORED)
            yield dataclasses.replace(again, targets=unscored), orders[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for the length of a with block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p of each target (batch, time), in at least float32; 0 where the target is `IGNORED`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _vocabulary(model: Any) -> int:
    return max(1, int(model.config.vocab_size))


def _offsets(batch: Batch) -> Tensor:
    """(rows, context): how many tokens of its document stand before each input in its row."""
    steps = torch.arange(batch.input_ids.shape[1]).expand(batch.input_ids.shape)
    if batch.document_ids is None:
        return steps
    ids = batch.document_ids
    begins = torch.zeros_like(steps)
    begins[:, 1:] = torch.where(ids[:, 1:] != ids[:, :-1], steps[:, 1:], 0)
    return steps - begins.cummax(dim=1).values


class LossSums:
    """Adds up losses in float64: in all, by position, and by block of the text.

    Args:
        expected: how many targets will come, which decides where blocks end.
        show: is told the share of them that has come.
    """

    def __init__(self, expected: int, show: Show | None = None) -> None:
        self._show = show
        self._blocks = min(BLOCKS, max(1, expected))
        self._expected = max(1, expected)
        self._block_sums = np.zeros(self._blocks)
        self._block_counts = np.zeros(self._blocks, np.int64)
        self._exact_sums = np.zeros(EXACT_POSITIONS)
        self._exact_counts = np.zeros(EXACT_POSITIONS, np.int64)
        self._bin_sums = np.zeros(_BINS_PER_OCTAVE * 64)
        self._bin_positions = np.zeros(_BINS_PER_OCTAVE * 64)
        self._bin_counts = np.zeros(_BINS_PER_OCTAVE * 64, np.int64)
        self.tokens = 0

    def add(self, losses: Tensor, targets: Tensor, offsets: Tensor, order: Tensor | None = None) -> None:
        """Adds losses (rows, time) of targets (rows, time), -100 left out, at offsets (rows, time).

        Args:
            order: (rows, time), the place of each target in the text; None where they come in order.
        """
        kept = (targets != IGNORED).cpu().numpy()
        values = losses.cpu().double().numpy()[kept]
        places = offsets.cpu().numpy()[kept]
        turns = np.arange(self.tokens, self.tokens + len(values)) if order is None else order.cpu().numpy()[kept]
        blocks = np.minimum(turns * self._blocks // self._expected, self._blocks - 1)
        _accumulate(blocks, values, self._block_sums, self._block_counts)
        near = places < EXACT_POSITIONS
        _accumulate(places[near], values[near], self._exact_sums, self._exact_counts)
        bins = np.floor(_BINS_PER_OCTAVE * np.log2(places + 1.0)).astype(np.int64)
        _accumulate(bins, values, self._bin_sums, self._bin_counts)
        self._bin_positions += np.bincount(bins, places, minlength=len(self._bin_positions))
        self.tokens += len(values)
        if self._show is not None:
            self._show(min(1.0, self.tokens / self._expected))

    def arrays(self) -> list[Any]:
        """What is added up over processes."""
        return [
            self._block_sums,
            self._block_counts,
            self._exact_sums,
            self._exact_counts,
            self._bin_sums,
            self._bin_positions,
            self._bin_counts,
        ]

    def result(self, store: TokenStore | None) -> Evaluation:
        """The measurements; `store` is the part that the targets came from, None where it is no text.

        Raises:
            InputError: nothing was added, or the store holds no text.
        """
        tokens = int(self._block_counts.sum())
        if tokens == 0 or (store is not None and store.bytes == 0):
            raise InputError("the held-out part holds no text to score: give at least a byte of text")
        nats = math.fsum(self._block_sums)
        loss = nats / tokens
        exact, bins = self._exact_counts > 0, self._bin_counts > 0
        text_bytes = words = None
        block_bits: list[float] = []
        if store is not None:
            share = tokens / (len(store) - 1)
            text_bytes, words = share * store.bytes, share * max(1, store.words)
            blocks = self._block_counts > 0
            bits = self._block_sums[blocks] / self._block_counts[blocks] / math.log(2)
            block_bits = (bits * (tokens / text_bytes)).tolist()
        return Evaluation(
            bits_per_byte=None if text_bytes is None else nats / math.log(2) / text_bytes,
            loss=loss,
            perplexity=_exp(loss),
            word_perplexity=None if words is None else _exp(nats / words),
            tokens=tokens,
            bytes=text_bytes,
            words=words,
            loss_by_position=LossByPosition(
                np.flatnonzero(exact).astype(float).tolist(),
                (self._exact_sums[exact] / self._exact_counts[exact] / math.log(2)).tolist(),
            ),
            loss_by_position_bins=LossByPosition(
                (self._bin_positions[bins] / self._bin_counts[bins]).tolist(),
                (self._bin_sums[bins] / self._bin_counts[bins] / math.log(2)).tolist(),
            ),
            bits_by_block=block_bits,
        )


def _accumulate(index: Any, values: Any, sums: Any, counts: Any) -> None:
    sums += np.bincount(index, values, minlength=len(sums))
    counts += np.bincount(index, minlength=len(counts))


def _exp(value: float) -> float:
    """e to a power, infinite where that is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
