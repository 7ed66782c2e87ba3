"""How far back each head of a mixer sees, from its matrix.

Shapes: H heads, N targets, T time, S source.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqmix.inspection.field_widths import Widths, by_distance, widths, widths_of_each
from seqmix.inspection.gradients import seen_from, sizes_at, span_seen
from seqmix.inspection.layers import Place

BEYOND = 3
"""Positions before the reach of values that are read too, to see that nothing comes from there."""


@dataclass(frozen=True)
class HeadField:
    """formula: the head's span (`Mixer.head_spans`), None without a bound. measured: from its matrix on the text, and
    how far back its values look. widths: of |M| over the distance, rows that sum to 1.
    """

    formula: int | None
    measured: int
    widths: Widths


def head_fields(place: Place, targets: Sequence[int], alone: int) -> list[HeadField]:
    """The spans and widths of every head of a mixer on what it reads.

    Args:
        place: of a model in float64, so that what a long decay leaves is not lost.
        targets: the rows that the widths are the mean of.
        alone: the measured span of the mixer, which is that of its one head where the matrix is a Jacobian.
    """
    if place.mixer.traits.matrix == "jacobian":
        return [_jacobian_head(place, targets, alone)]
    mixer = place.mixer
    with torch.no_grad():
        matrices = [part.matrix[0] for part in place.mixing()]
    spans: list[int] = []
    shapes: list[Widths] = []
    for matrix, reach in zip(matrices, _reaches(place), strict=True):
        spans += [min(span + reach - 1, matrix.shape[2]) for span in _spans_of_links(matrix != 0)]
        shapes += widths_of_each(by_distance(matrix[:, list(targets)].abs(), targets))
    formulas = [mixer.receptive_field] * len(spans) if mixer.head_spans is None else mixer.head_spans
    return [HeadField(*fields) for fields in zip(formulas, spans, shapes, strict=True)]


def _jacobian_head(place: Place, targets: Sequence[int], measured: int) -> HeadField:
    """The one head of a mixer without a matrix of its own: the mixer as a whole."""
    mixer = copy.deepcopy(place.mixer).float()
    leaf = place.x.detach().float().repeat(len(targets), 1, 1).requires_grad_()
    with torch.enable_grad():
        sizes = sizes_at(mixer(leaf).y, leaf, targets, 1, torch.Generator().manual_seed(0))
    return HeadField(mixer.receptive_field, measured, widths(by_distance(sizes[None], targets)[0]))


def _reaches(place: Place) -> list[int]:
    """For each matrix how many positions back, their own included, its values depend on what the mixer reads."""
    time = min(place.x.shape[1], place.mixer.traits.reach + BEYOND)
    leaf = place.x[:, :time].detach().requires_grad_()
    shared = None if place.shared is None else place.shared[:, :time]
    with torch.enable_grad():
        parts = Place(place.layer, place.slot, place.name, place.mixer, leaf, shared).mixing()
    found = []
    for part in parts:
        assert part.values is not None
        generator = torch.Generator().manual_seed(0)
        seen = seen_from(part.values.transpose(1, 2).flatten(2), leaf, time - 1, generator)
        found.append(max(1, span_seen(seen, time - 1)))
    return found


def _spans_of_links(links: Tensor) -> list[int]:
    """For each head of bool (H, T, S) the positions from the earliest source to its target, the most of any target."""
    first = torch.where(links.any(dim=2), links.view(torch.uint8).argmax(dim=2), links.shape[2])
    spans = torch.arange(1, links.shape[1] + 1) - first
    return spans.clamp(min=1).amax(dim=1).tolist()
