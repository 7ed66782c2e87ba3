"""Rollout beside gradient. Shapes: N targets, S source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.figures.matrix import add_scale, checked, color_scale
from seqmix.inspection.figures.style import HALF_PAGE, check_tokens, label_positions, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rollout_figure(
    rollout: np.ndarray,
    gradient: np.ndarray,
    targets: Sequence[int],
    *,
    spearman: Sequence[float | None] | None = None,
    tokens: Sequence[str] | None = None,
    width: float = 2 * HALF_PAGE,
) -> Figure:
    """What the product of the matrices says about some outputs, beside what their gradients say.

    Args:
        rollout: (targets, source), the rows of the product for `targets`.
        gradient: (targets, source), norms of the gradient. Rows of both are divided by their sums.
        targets: the positions of the outputs.
        spearman: the correlation of the ranks of each target's two rows, written beside it; None where it is unknown.
        tokens: labels of the sources.

    Raises:
        InputError: arrays, targets, correlations or tokens of lengths that do not belong together.
    """
    rows = [checked(rollout), checked(gradient)]
    if rows[0].shape != rows[1].shape or len(rows[0]) != len(targets):
        raise InputError(
            f"rollout has shape {rows[0].shape} and gradient {rows[1].shape} for {len(targets)} targets: give both as "
            "(targets, source)"
        )
    if spearman is not None and len(spearman) != len(targets):
        raise InputError(f"spearman has {len(spearman)} numbers for {len(targets)} targets: give one for each")
    check_tokens(tokens, rows[0].shape[1])
    shares = [_shares(part) for part in rows]
    with styled():
        figure = new_figure(width, 0.9 + max(1.0, 0.14 * len(targets)))
        places = figure.subplots(1, 2, sharey=True)
        scale = color_scale(shares, gamma=0.5)
        for axes, share, name in zip(places, shares, ("rollout", "gradient"), strict=True):
            image = axes.imshow(share, aspect="auto", interpolation="none", **scale)
            label_positions(axes.xaxis, tokens, share.shape[1], width * 0.4)
            axes.set_title(name)
            axes.set_xlabel("source")
            axes.tick_params(length=2)
        labels = [str(target) for target in targets]
        if spearman is not None:
            known = ["unknown" if one is None else f"{one:.2f}" for one in spearman]
            labels = [f"{label} ({one})" for label, one in zip(labels, known, strict=True)]
        places[0].set_yticks(range(len(labels)), labels)
        places[0].set_ylabel("target" if spearman is None else "target (rank correlation)")
        add_scale(image, "share of the row")
    return figure


def _shares(rows: np.ndarray) -> np.ndarray:
    """Rows of |x| that sum to 1; a row of zeros stays."""
    sizes = np.abs(rows)
    sums = sizes.sum(axis=1, keepdims=True)
    return np.divide(sizes, sums, out=np.zeros_like(sizes), where=sums > 0)
