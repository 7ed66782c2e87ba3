"""How a model tells positions apart: its encoding as curves over the distance, from the model's own tensors.

    rope         the cosine between a pair of channels and itself turned by d more positions; their mean is the cosine
                 between a vector of equal pairs and itself d positions on                     arXiv 2104.09864
    sinusoidal   the same of the pairs of the encoding that is added                           arXiv 1706.03762
    learned      the cosine between the vectors of two positions d apart
    alibi        what a head adds to a score at distance d, in nats                            arXiv 2108.12409

What the division by the square root of the head's width does to the scores is in `scores.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seqmix.inspection.scores import Scores, softmax_scores
from seqmix.mixers.attention import Attention
from seqmix.mixers.attention.sparse import alibi, alibi_slopes
from seqmix.mixers.retention import RetNet
from seqmix.mixers.rotary import rotation
from seqmix.models.language_model import SeqmixForCausalLM

Kind = Literal["rope", "alibi", "sinusoidal", "learned", "none"]

LONGEST = 512
"""Distances that curves reach at most: more cannot be told apart in a picture."""

SHOWN = 8
"""Pairs of channels, or heads, that get a curve of their own at most, evenly spread."""

_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value at each distance, to six decimals."""

    name: str
    values: list[float]


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The encoding of a model and, where it has attention, its scores.

    kind: the first of rope, alibi, learned and sinusoidal that the model has; the note names the others.
    """

    kind: Kind
    distances: list[int]
    curves: list[Curve]
    note: str
    scores: Scores | None


def position_encoding(model: SeqmixForCausalLM, input_ids: Tensor) -> Positions:
    """How the model tells positions apart, and its scores on one document, input_ids (1, T)."""
    count = min(model.config.max_position_embeddings, LONGEST)
    found = _encodings(model, count)
    scores = softmax_scores(model, input_ids)
    if not found:
        names = ", ".join(dict.fromkeys(entry["name"] for entry in model.config.mixers or []))
        note = f"No position is added anywhere: this model knows the order of tokens from its mixers alone ({names})."
        return Positions(kind="none", distances=[], curves=[], note=note, scores=scores)
    (kind, curves, note), *others = found
    if others:
        note += " Besides: " + " ".join(words for _, _, words in others)
    return Positions(kind=kind, distances=list(range(count)), curves=curves, note=note, scores=scores)


def _encodings(model: SeqmixForCausalLM, count: int) -> list[tuple[Kind, list[Curve], str]]:
    """Every encoding of the model: its kind, its curves, and what it does in a sentence."""
    config, found = model.config, list[tuple[Kind, list[Curve], str]]()
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    turned = [module for module in attention if module.config.rope]
    retentions = [module for module in model.modules() if isinstance(module, RetNet)]
    for what, mixers in (("attention", turned), ("retention", retentions)):
        for width, theta in dict.fromkeys((mixer.head_dim, mixer.config.rope_theta) for mixer in mixers):
            alike = sum((mixer.head_dim, mixer.config.rope_theta) == (width, theta) for mixer in mixers)
            layers = f"{alike} of {config.num_hidden_layers} layers ({what})"
            where = f"Queries and keys turn with their position in {layers}"
            found.append(("rope", rotary_curves(width, theta, count), _turning(where, width, theta, count)))
    if config.embedding_position == "rope":
        width, theta = config.hidden_size, config.rope_theta
        words = _turning("The embedding turns with its position", width, theta, count)
        found.append(("rope", rotary_curves(width, theta, count), words))
    biased = [module for module in attention if module.config.alibi]
    for heads in dict.fromkeys(mixer.heads for mixer in biased):
        slopes = alibi_slopes(heads)
        words = (
            f"The scores of attention fall with the distance, by {slopes.max():.3g} nats a token in the steepest of "
            f"{heads} heads and by {slopes.min():.3g} in the flattest."
        )
        found.append(("alibi", alibi_curves(heads, count), words))
    if config.embedding_position in ("learned", "sinusoidal"):
        found.append(_of_embedding(model, count))
    return found


def rotary_curves(width: int, theta: float, count: int) -> list[Curve]:
    """The cosines of pairs of channels turned by 0 ... count - 1 positions, after the mean over all pairs."""
    pairs = width // 2
    cosines = rotation(torch.arange(count), width, theta, torch.float64)[0].T
    mean = [_curve(f"mean of all {pairs} pairs", cosines.mean(dim=0))] if pairs else []
    return mean + [
        _curve(f"pair {pair}: a turn in {_count(_turn(pair, pairs, theta))} tokens", cosines[pair])
        for pair in _some(pairs)
    ]


def alibi_curves(heads: int, count: int) -> list[Curve]:
    """What each of some heads adds to a score at distances 0 ... count - 1."""
    slopes = alibi_slopes(heads)
    last, sources = torch.tensor([[count - 1]]), torch.arange(count - 1, -1, -1)[None]
    added = alibi(slopes, last, sources, torch.float64)[0, :, 0]
    return [_curve(f"head {head + 1}: slope {float(slopes[head]):.3g}", added[head]) for head in _some(heads)]


@torch.no_grad()
def _of_embedding(model: SeqmixForCausalLM, count: int) -> tuple[Kind, list[Curve], str]:
    """What is added to the embedding: as it is added to an embedding of zeros."""
    embed, width = model.model.embed_positions, model.config.hidden_size
    added = embed(torch.zeros(1, count, width), torch.arange(count)[None])[0].double()
    if embed.kind == "learned":
        cosines = torch.nn.functional.normalize(added, dim=-1)
        cosines = cosines @ cosines.T
        mean = torch.stack([cosines.diagonal(-distance).mean() for distance in range(count)])
        curves = [
            _curve("mean over all positions", mean),
            _curve("from the first position", cosines[0]),
            _curve("from the last position", cosines[-1].flip(0)),
        ]
        words = (
            f"A vector is learned for each of {model.longest_context:,} positions and added to the embedding; the "
            "curves are cosines between two of them. Drawn at random they are near 0: training makes neighbours alike."
        )
        return "learned", curves, words
    pairs = width // 2
    unit = torch.nn.functional.normalize(added[:, : 2 * pairs].unflatten(-1, (pairs, 2)), dim=-1)
    cosines = (unit * unit[:1]).sum(dim=-1).T
    theta = model.config.rope_theta
    curves = [_curve(f"mean of all {pairs} pairs", cosines.mean(dim=0))]
    period = (width + width % 2) // 2
    curves += [
        _curve(f"pair {pair}: a wave of {_turn(pair, period, theta):,.4g} tokens", cosines[pair])
        for pair in _some(pairs)
    ]
    words = (
        f"Sines and cosines of {pairs} wavelengths, {_count(2 * math.pi)} to "
        f"{_count(_turn(pairs - 1, period, theta))} tokens, are added to the embedding; the curves are cosines between "
        "two positions, pair of channels by pair."
    )
    return "sinusoidal", curves, words


def _turning(where: str, width: int, theta: float, count: int) -> str:
    pairs = width // 2
    slow = sum(_turn(pair, pairs, theta) > count for pair in range(pairs))
    return (
        f"{where}, in {pairs} pairs of channels, with base {theta:,.0f}: the fastest pair is round after "
        f"{_count(2 * math.pi)} tokens, the slowest after {_count(_turn(pairs - 1, pairs, theta))}, and {slow} of them "
        f"do not get round in {count:,} tokens."
    )


def _turn(pair: int, pairs: int, theta: float) -> float:
    """The positions in which a pair of channels gets round once."""
    return 2 * math.pi * theta ** (pair / pairs)


def _count(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.3g}"


def _some(count: int) -> Sequence[int]:
    """At most `SHOWN` of `count` numbers, from the first to the last."""
    if count <= SHOWN:
        return range(count)
    return [round(index * (count - 1) / (SHOWN - 1)) for index in range(SHOWN)]


def _curve(name: str, values: Tensor) -> Curve:
    return Curve(name=name, values=[round(value, _DECIMALS) + 0.0 for value in values.tolist()])
