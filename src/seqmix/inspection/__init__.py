"""How a model mixes: its matrices, its receptive fields, the paths through it, and what its context is worth."""

from __future__ import annotations

from seqmix.inspection.layers import Place, mixer_places
from seqmix.inspection.matrices import LayerMatrix, layer_matrix, mixing_matrices, normalise_rows
from seqmix.inspection.subject import Subject, open_subject
from seqmix.inspection.texts import Text

__all__ = [
    "LayerMatrix",
    "Place",
    "Subject",
    "Text",
    "layer_matrix",
    "mixer_places",
    "mixing_matrices",
    "normalise_rows",
    "open_subject",
]
