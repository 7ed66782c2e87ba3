"""What follows from a mixer's contract, computed: order in time, paths, growth of parameters and costs, position.

from seqmix.properties import mixer_properties

row = mixer_properties("gated_conv", kernel=4)
print(row.path, row.parameters, row.product_flops)
"""

from __future__ import annotations

from seqmix.properties.growth import Polynomial
from seqmix.properties.table import (
    Growth,
    MixerProperties,
    StackProperties,
    mixer_of_length,
    mixer_properties,
    stack_properties,
)

__all__ = [
    "Growth",
    "MixerProperties",
    "Polynomial",
    "StackProperties",
    "mixer_of_length",
    "mixer_properties",
    "stack_properties",
]
