"""What the context is worth: the loss by position, and the loss when all further back than d tokens is cut off.

The cut is exact: a target is predicted from its last d tokens as a document of their own, with states that begin empty
and positions that begin at 0, and it is the same targets at every d. Where no more than d tokens stand before a target,
nothing is cut off, and its loss is the plain one.

The interval is of the paired differences, loss at d minus loss with the whole context, target by target. What follows
one another in a text is alike, so the targets are grouped in order into blocks, and the interval is Student's over the
means of the blocks (batch means; Law and Kelton, Simulation Modeling and Analysis, section 9.5.3).

Shapes: T time, N targets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqmix.data import TokenStore
from seqmix.errors import InputError
from seqmix.evaluation.language import LossSums, evaluating, model_losses, token_losses
from seqmix.evaluation.student import t_quantile
from seqmix.models.language_model import SeqmixForCausalLM

if TYPE_CHECKING:
    from seqmix.inspection.subject import Subject

CONFIDENCE = 0.95
BLOCKS = 16
"""Groups of consecutive targets whose means the interval is taken over; fewer where there are not two targets each."""

FLOPS = 1.5e11
"""What the ablation may take, in product FLOPs: a few seconds of two cores."""

TARGETS = 512
"""At most, however small the model is."""

PIECES = 32
"""Of the held-out part that are read, at most."""

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """bits: mean bits a token at positions, the number of tokens read before the target's input; in widening bins."""

    positions: list[float]
    bits: list[float]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The mean loss of the same targets from their last `distances` tokens alone.

    bits: at each distance. low, high: the interval of `bits` minus `whole`, None where there are too few targets for
    one. whole: with all that stands before. targets: how many. blocks: groups that the interval is taken over.
    """

    distances: list[int]
    bits: list[float]
    low: list[float | None]
    high: list[float | None]
    whole: float
    targets: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class ContextWorth:
    """Both measurements, in `unit`, on the text that `source` names."""

    loss_by_position: PositionLoss
    ablation: Ablation
    unit: str
    source: str


def context_worth(
    model: SeqmixForCausalLM,
    texts: Tensor | Sequence[Tensor],
    *,
    source: str = "the text",
    flops: float = FLOPS,
) -> ContextWorth:
    """How much of the loss the context takes away, and from how far back.

    The targets of the ablation are spread evenly over the second half of each text, where most distances really cut
    something off; their number is what `flops` allows.

    Args:
        texts: documents of token ids, (1, T) each, or (rows, T) of equal length.
        source: says in words where they come from.
        flops: product FLOPs that the ablation may take.

    Raises:
        InputError: no text has two tokens.
    """
    rows = [row[None] for text in ([texts] if isinstance(texts, Tensor) else texts) for row in text]
    rows = [row for row in rows if row.shape[1] > 1]
    if not rows:
        raise InputError("no text has two tokens, so there is nothing to predict: give a longer text")
    plain = [plain_losses(model, row) for row in rows]
    return ContextWorth(
        loss_by_position=_by_position(plain),
        ablation=_ablation(model, rows, plain, flops),
        unit="bits per token",
        source=source,
    )


def worth_to(subject: Subject, *, flops: float = FLOPS) -> ContextWorth:
    """`context_worth` on pieces of the subject's held-out part as long as its texts, or on the texts themselves.

    A text that is another with one token changed is left out: it would be counted twice.
    """
    length = max(text.input_ids.shape[1] for text in subject.texts)
    if subject.held_out is not None:
        pieces = held_out_pieces(subject.held_out, length)
        if pieces:
            source = f"Measured on {len(pieces)} pieces of up to {length} tokens from the held-out part."
            return context_worth(subject.model, pieces, source=source, flops=flops)
    texts: list[Tensor] = []
    for text in subject.texts:
        if not any(_is_variant(text.input_ids, kept) for kept in texts):
            texts.append(text.input_ids)
    which = "the text" if len(texts) == 1 else f"the {len(texts)} texts"
    source = f"Measured on {which} of this page alone: with --data, many held-out documents are read instead."
    return context_worth(subject.model, texts, source=source, flops=flops)


def held_out_pieces(store: TokenStore, length: int, count: int = PIECES) -> list[Tensor]:
    """Documents of the part, (1, T) each: cut into pieces of `length` tokens, at most `count`, evenly spread."""
    borders = []
    for first, last in itertools.pairwise(store.documents.tolist()):
        borders += [(begin, min(begin + length, last)) for begin in range(first, last, length)]
    # A short rest has little context to cut off.
    long_enough = [(begin, end) for begin, end in borders if end - begin >= max(2, length // 2)]
    borders = long_enough or [(begin, end) for begin, end in borders if end - begin > 1]
    return [torch.from_numpy(store.tokens[begin:end].astype(np.int64))[None] for begin, end in _spread(borders, count)]


def _is_variant(ids: Tensor, other: Tensor) -> bool:
    return ids.shape == other.shape and int((ids != other).sum()) <= 1


def plain_losses(model: SeqmixForCausalLM, input_ids: Tensor) -> NDArray[np.float64]:
    """(T - 1,): bits of each token after the first of a document (1, T), from all that stands before it."""
    with evaluating(model):
        losses = model_losses(model, input_ids[:, :-1], input_ids[:, 1:], None, model.device)
    return losses[0].double().cpu().numpy() / math.log(2)


def losses_from_last(
    model: SeqmixForCausalLM, input_ids: Tensor, places: Sequence[int], distance: int
) -> NDArray[np.float64]:
    """(N,): bits of the tokens at `places` of a document (1, T), each from its last `distance` tokens alone.

    Every place must have as many tokens before it.
    """
    return _losses_of_ends(model, torch.stack([input_ids[0, place - distance : place + 1] for place in places]))


def _losses_of_ends(model: SeqmixForCausalLM, windows: Tensor) -> NDArray[np.float64]:
    """(N,): bits of the last token of each window (N, distance + 1), from those before it in the window."""
    found = []
    with evaluating(model):
        for some in windows.split(max(1, _TOKENS_AT_ONCE // windows.shape[1])):
            there = some.to(model.device)
            logits, _ = model.prefill(there[:, :-1])
            found.append(token_losses(logits[:, None], there[:, -1:])[:, 0])
    return torch.cat(found).double().cpu().numpy() / math.log(2)


def _by_position(plain: Sequence[NDArray[np.float64]]) -> PositionLoss:
    sums = LossSums(expected=sum(len(losses) for losses in plain))
    for losses in plain:
        nats = torch.from_numpy(losses * math.log(2))[None]
        sums.add(nats, torch.zeros(nats.shape, dtype=torch.int64), torch.arange(len(losses))[None])
    bins = sums.result(None).loss_by_position_bins
    return PositionLoss(positions=bins.positions, bits=bins.bits)


def _ablation(
    model: SeqmixForCausalLM, rows: Sequence[Tensor], plain: Sequence[NDArray[np.float64]], flops: float
) -> Ablation:
    # A target at place t has t tokens before it; the last one of a row has the most.
    longest = max(row.shape[1] for row in rows) - 1
    distances = [2**power for power in range(longest.bit_length())]
    candidates = [
        (text, place) for text, row in enumerate(rows) for place in range((row.shape[1] + 1) // 2, row.shape[1])
    ]
    chosen = _spread(candidates, _affordable(model, distances, flops))
    whole = np.array([plain[text][place - 1] for text, place in chosen])
    blocks = min(BLOCKS, len(chosen) // 2)
    bits, low, high = [], [], []
    for distance in distances:
        losses = whole.copy()
        cut = [index for index, (_, place) in enumerate(chosen) if place > distance]
        if cut:
            ends = [(rows[text][0], place) for text, place in (chosen[index] for index in cut)]
            # Windows of all texts together: many small passes would cost more than what they compute.
            windows = torch.stack([row[place - distance : place + 1] for row, place in ends])
            losses[cut] = _losses_of_ends(model, windows)
        bits.append(float(losses.mean()))
        interval = interval_of(losses - whole, blocks)
        low.append(interval[0])
        high.append(interval[1])
    return Ablation(
        distances=distances,
        bits=bits,
        low=low,
        high=high,
        whole=float(whole.mean()),
        targets=len(chosen),
        blocks=blocks,
    )


def interval_of(differences: NDArray[np.float64], blocks: int) -> tuple[float, float] | tuple[None, None]:
    """The interval of the mean of differences (N,) in the order of the text; None with fewer than two blocks."""
    if blocks < 2:
        return None, None
    groups = np.array_split(differences, blocks)
    means = np.array([group.mean() for group in groups])
    half = t_quantile((1 + CONFIDENCE) / 2, blocks - 1) * means.std(ddof=1) / math.sqrt(blocks)
    centre = differences.mean()
    return float(centre - half), float(centre + half)


def _affordable(model: SeqmixForCausalLM, distances: Sequence[int], flops: float) -> int:
    """The targets whose windows at all distances take as many FLOPs; two at least."""
    for_one = sum(model.cost(1, distance).product_flops for distance in distances)
    return max(2, min(TARGETS, int(flops / for_one)))


def _spread(candidates: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most `count` of them, evenly spaced, the last one among them."""
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[(index + 1) * len(candidates) // count - 1] for index in range(count)]
