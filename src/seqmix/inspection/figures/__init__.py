"""Figures for papers: matplotlib figures of what seqmix.inspection finds out, written as PNG or SVG.

from seqmix.inspection.figures import matrix_figure, save

save(matrix_figure(matrix, tokens=tokens), "matrix.svg")
"""

from __future__ import annotations

from seqmix.inspection.figures.context import context_figure
from seqmix.inspection.figures.costs import costs_figure
from seqmix.inspection.figures.links import draw_links, links_figure
from seqmix.inspection.figures.matrix import add_scale, color_scale, draw_matrix, matrix_figure
from seqmix.inspection.figures.positions import positions_figure, scores_figure
from seqmix.inspection.figures.receptive_field import receptive_field_figure
from seqmix.inspection.figures.rollout import rollout_figure
from seqmix.inspection.figures.style import new_figure, rendered, save, styled

__all__ = [
    "add_scale",
    "color_scale",
    "context_figure",
    "costs_figure",
    "draw_links",
    "draw_matrix",
    "links_figure",
    "matrix_figure",
    "new_figure",
    "positions_figure",
    "receptive_field_figure",
    "rendered",
    "rollout_figure",
    "save",
    "scores_figure",
    "styled",
]
