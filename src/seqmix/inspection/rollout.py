"""Rollout, the product of the layers' matrices, and the gradient that it is held against.

    A_l = r I + (1 - r) M_l, rows divided by their sums;   A = A_L … A_1         Abnar & Zuidema 2020, arXiv 2005.00928

Shapes: T time, S source, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from seqmix.errors import InputError
from seqmix.inspection.gradients import embed, sizes_at
from seqmix.models.language_model import SeqmixForCausalLM

BLOCKS = 4
"""Forwards that the targets are spread over: each is cut after its last target, which saves backward work."""


@dataclass(frozen=True)
class Rollout:
    """How well rollout and gradient agree.

    spearman: the correlation of their ranks for each target; None where there is nothing to rank. mean: of those that
    are known, None where none is.
    """

    spearman: list[float | None]
    mean: float | None


def rollout(layers: Sequence[NDArray[np.floating]], residual: float = 0.5) -> NDArray[np.float64]:
    """The share of each input in each output, (time, source), as if every layer only averaged.

    Args:
        layers: for each mixer, from the first to the last, |M| (time, time) with rows that sum to 1 (or to 0, where a
            position listens to none), the mean over heads.
        residual: the weight of staying in place; the paper's is a half.

    Raises:
        InputError: no layers, other shapes, negative entries, or a residual outside 0 … 1.
    """
    if not layers:
        raise InputError("there are no layers: a rollout needs the matrix of at least one mixer")
    if not 0 <= residual <= 1:
        raise InputError(f"residual is {residual}: the weight of staying in place must be from 0 to 1")
    time = len(layers[0])
    product = np.eye(time)
    for number, layer in enumerate(layers):
        if layer.shape != (time, time):
            raise InputError(f"layer {number} has shape {layer.shape}: every layer must be (time, time), {time} wide")
        if not (layer >= 0).all():
            raise InputError(f"layer {number} has entries that are not shares: give normalise_rows(matrix)")
        mixed = residual * np.eye(time) + (1 - residual) * layer
        total = mixed.sum(axis=1, keepdims=True)
        product = np.divide(mixed, total, out=np.zeros_like(mixed), where=total > 0) @ product
    return product


def gradient_map(
    model: SeqmixForCausalLM, input_ids: Tensor, targets: Sequence[int], directions: int = 2, seed: int = 0
) -> NDArray[np.float64]:
    """(targets, time): the norms of d(normed last output at t) / d(embedding at s), from random directions.

    With q standard normal E ‖Jᵀ q‖² is the squared Frobenius norm of J; the mean over the directions estimates it, with
    a relative variance of at most 2 / directions.

    Args:
        input_ids: (1, time) of one document.
        seed: of the directions.

    Raises:
        InputError: another shape, a target outside of the text, or no direction.
    """
    if input_ids.dim() != 2 or len(input_ids) != 1:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}: give the tokens of one text, (1, time)")
    time = input_ids.shape[1]
    for target in targets:
        if not 0 <= target < time:
            raise InputError(f"target {target} is not in the text: choose one from 0 to {time - 1}")
    if directions < 1:
        raise InputError(f"directions is {directions}: it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    # Some operators form the gradients of their weights whether or not they are asked for, unless none is needed.
    weights = {name: parameter.detach() for name, parameter in model.model.named_parameters()}
    found = np.zeros((len(targets), time))
    for places in np.array_split(np.argsort(targets, kind="stable"), min(BLOCKS, len(targets)) or 1):
        if not len(places):
            continue
        block = [targets[place] for place in places]
        with torch.enable_grad():
            leaf = embed(model, input_ids[:, : block[-1] + 1])
            options = {"inputs_embeds": leaf, "use_cache": False}
            output = functional_call(model.model, weights, kwargs=options).last_hidden_state
            found[places, : block[-1] + 1] = sizes_at(output, leaf, block, directions, generator).cpu().numpy()
    return found


def agreement(rollout_rows: NDArray[np.floating], gradient_rows: NDArray[np.floating]) -> Rollout:
    """Spearman's correlation of each target's row of both, (targets, source) each; what is zero in both is left out.

    Raises:
        InputError: two shapes.
    """
    if rollout_rows.shape != gradient_rows.shape:
        raise InputError(
            f"the rollout has shape {rollout_rows.shape} and the gradient {gradient_rows.shape}: take the same targets"
        )
    found = [_spearman(*rows) for rows in zip(rollout_rows, gradient_rows, strict=True)]
    known = [value for value in found if value is not None]
    return Rollout(found, sum(known) / len(known) if known else None)


def _spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> float | None:
    """The correlation of ranks over the positions that either sees; None for fewer than two, or equal ranks."""
    seen = (one != 0) | (other != 0)
    first, second = (_ranks(row[seen]) - (seen.sum() - 1) / 2 for row in (one, other))
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / spread) if spread > 0 else None


def _ranks(row: NDArray[np.floating]) -> NDArray[np.float64]:
    """From 0; equal entries share the mean of theirs."""
    _, group, count = np.unique(row, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[group]
