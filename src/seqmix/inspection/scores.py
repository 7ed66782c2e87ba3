"""What the division by the square root of the head's width does to the scores of softmax attention.

    M = softmax(q k^T / sqrt(d) + bias)    so    log M = q k^T / sqrt(d) + bias - a constant of the row

Queries and keys of d independent components of variance 1 have products of variance d (arXiv 1706.03762, section
3.2.1): undivided, the scores spread sqrt(d) times as wide, and the softmax rests on few keys. Both are read off the
model's own matrices, whose logarithm gives the scores back, and off random queries and keys.

Shapes: H heads, T time, S source.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.mixers.attention import Attention
from seqmix.mixers.attention.sparse import alibi, alibi_slopes
from seqmix.models.language_model import SeqmixForCausalLM

HEAD_DIMS = (2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 256
"""Random queries that an entropy is the mean of."""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """Means over heads and rows with at least two links.

    spread: the standard deviation of a row's scores, bias left out. entropy: of a row of the matrix, in bits.
    *_unscaled: the same without the division. uniform_entropy: of a row that listens to all its links alike.
    """

    layer: int
    head_dim: int
    spread: float
    entropy: float
    spread_unscaled: float
    entropy_unscaled: float
    uniform_entropy: float


@dataclass(frozen=True, kw_only=True)
class Theory:
    """The same for random queries and keys of variance 1, by the width of a head: over `keys` keys, in bits."""

    head_dims: list[int]
    spread: list[float]
    spread_unscaled: list[float]
    entropy: list[float]
    entropy_unscaled: list[float]
    keys: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The model's layers of attention, and what random queries and keys give."""

    layers: list[LayerScores]
    theory: Theory


def softmax_scores(model: SeqmixForCausalLM, input_ids: Tensor) -> Scores | None:
    """The scores of every attention of the model on one document, input_ids (1, T), also of one beside other mixers.

    None where there is no attention, or no position has two links.
    """
    layers: list[LayerScores] = []

    def keep(layer: int, mixer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(mixer, Attention)
        found = layer_scores(mixer, arguments[0], layer)
        layers.extend([] if found is None else [found])

    hooks = [
        module.register_forward_pre_hook(partial(keep, layer))
        for layer, block in enumerate(model.model.layers)
        for module in block.modules()
        if isinstance(module, Attention)
    ]
    try:
        with torch.no_grad():
            model.model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Scores(layers=layers, theory=theory(input_ids.shape[1])) if layers else None


@torch.no_grad()
def layer_scores(mixer: Attention, x: Tensor, layer: int = 0) -> LayerScores | None:
    """What one attention makes of x (1, T, D), in float64; None where no position has two links."""
    time, root = x.shape[1], math.sqrt(mixer.head_dim)
    exact = copy.deepcopy(mixer).double()
    (mixing,) = exact.mixing(x.double())
    matrix_HTS = mixing.matrix[0]
    links_TS = mixer.links(time)
    counts_T = links_TS.sum(dim=-1)
    rows = counts_T > 1
    if not bool(rows.any()):
        return None
    bias_HTS = torch.zeros_like(matrix_HTS)
    if mixer.config.alibi:
        steps = torch.arange(time)[None]
        bias_HTS = alibi(alibi_slopes(mixer.heads), steps, steps, torch.float64)[0]
    # A weight too small for a number counts as the smallest one.
    logs_HTS = matrix_HTS.clamp_min(torch.finfo(torch.float64).tiny).log()
    content_HTS = (logs_HTS - bias_HTS)[:, rows]
    bias_HTS, links_TS, counts_T = bias_HTS[:, rows], links_TS[rows], counts_T[rows]
    unscaled_HTS = (content_HTS * root + bias_HTS).masked_fill(~links_TS, -math.inf).softmax(dim=-1)
    spread = float(_spread(content_HTS, links_TS).mean())
    return LayerScores(
        layer=layer,
        head_dim=mixer.head_dim,
        spread=spread,
        entropy=float(_bits(matrix_HTS[:, rows]).mean()),
        spread_unscaled=spread * root,
        entropy_unscaled=float(_bits(unscaled_HTS).mean()),
        uniform_entropy=float(counts_T.double().log2().mean()),
    )


def theory(keys: int, seed: int = 0) -> Theory:
    """The spread by formula; the entropy as the mean of `DRAWS` random queries, each over as many random keys.

    A query's products with independent normal keys are independent and normal, with its length as deviation: so the
    length and the products are drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    products = torch.randn(DRAWS, keys, generator=draw, dtype=torch.float64)
    components = torch.randn(DRAWS, max(HEAD_DIMS), generator=draw, dtype=torch.float64)
    entropy, unscaled = [], []
    for width in HEAD_DIMS:
        scores = components[:, :width].norm(dim=-1, keepdim=True) * products
        entropy.append(float(_bits((scores / math.sqrt(width)).softmax(dim=-1)).mean()))
        unscaled.append(float(_bits(scores.softmax(dim=-1)).mean()))
    return Theory(
        head_dims=list(HEAD_DIMS),
        spread=[1.0 for _ in HEAD_DIMS],
        spread_unscaled=[math.sqrt(width) for width in HEAD_DIMS],
        entropy=entropy,
        entropy_unscaled=unscaled,
        keys=keys,
    )


def _bits(weights: Tensor) -> Tensor:
    """The entropy of each row (..., S) that sums to 1."""
    return torch.special.entr(weights).sum(dim=-1) / math.log(2)


def _spread(scores_HTS: Tensor, links_TS: Tensor) -> Tensor:
    """(H, T): the standard deviation over the links of each row."""
    counts = links_TS.sum(dim=-1)
    kept = scores_HTS.masked_fill(~links_TS, 0)
    centred = (kept - (kept.sum(dim=-1) / counts)[..., None]).masked_fill(~links_TS, 0)
    return (centred.square().sum(dim=-1) / counts).sqrt()
