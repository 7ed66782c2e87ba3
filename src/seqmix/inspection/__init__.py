"""How a model mixes: its matrices, its receptive fields, the paths through it, and what its context is worth."""

from __future__ import annotations

from seqmix.inspection.context import ContextWorth, context_worth
from seqmix.inspection.costs import Costs, cost_curves, crossovers
from seqmix.inspection.graph import Hop, reached, steps, strongest_path
from seqmix.inspection.jacobian import jacobian_matrix
from seqmix.inspection.layers import Place, mixer_places
from seqmix.inspection.matrices import LayerMatrix, layer_matrix, mixing_matrices, normalise_rows
from seqmix.inspection.positions import Positions, position_encoding
from seqmix.inspection.receptive_field import ReceptiveField, measured_receptive_field, receptive_fields
from seqmix.inspection.rollout import Rollout, agreement, gradient_map, rollout
from seqmix.inspection.structure import Structure, describe, structures
from seqmix.inspection.subject import Subject, open_subject
from seqmix.inspection.texts import Text

__all__ = [
    "ContextWorth",
    "Costs",
    "Hop",
    "LayerMatrix",
    "Place",
    "Positions",
    "ReceptiveField",
    "Rollout",
    "Structure",
    "Subject",
    "Text",
    "agreement",
    "context_worth",
    "cost_curves",
    "crossovers",
    "describe",
    "gradient_map",
    "jacobian_matrix",
    "layer_matrix",
    "measured_receptive_field",
    "mixer_places",
    "mixing_matrices",
    "normalise_rows",
    "open_subject",
    "position_encoding",
    "reached",
    "receptive_fields",
    "rollout",
    "steps",
    "strongest_path",
    "structures",
]
