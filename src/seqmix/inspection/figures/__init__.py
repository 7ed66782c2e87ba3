"""Figures for papers: matplotlib figures of what seqmix.inspection finds out, written as PNG or SVG.

from seqmix.inspection.figures import matrix_figure, save

save(matrix_figure(matrix, tokens=tokens), "matrix.svg")
"""

from __future__ import annotations

from seqmix.inspection.figures.links import draw_links, links_figure
from seqmix.inspection.figures.matrix import add_scale, color_scale, draw_matrix, matrix_figure
from seqmix.inspection.figures.style import new_figure, rendered, save, styled

__all__ = [
    "add_scale",
    "color_scale",
    "draw_links",
    "draw_matrix",
    "links_figure",
    "matrix_figure",
    "new_figure",
    "rendered",
    "save",
    "styled",
]
