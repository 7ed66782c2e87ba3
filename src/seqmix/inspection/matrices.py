"""The mixing matrices of a model on a text: the same `mixing` that the conformance kit holds to forward.

Shapes: H heads, T time (targets), S source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqmix.errors import InputError
from seqmix.evaluation.memory import available_bytes
from seqmix.inspection.jacobian import jacobian_matrix
from seqmix.inspection.layers import Place, Slot, mixer_places
from seqmix.models.language_model import SeqmixForCausalLM

COPIES = 4
"""Tensors of the size of a layer's matrices that are alive at once while one is formed."""


@dataclass(frozen=True)
class LayerMatrix:
    """Who listens to whom in one mixer of a model.

    matrix: (heads, time, source) float32; the channels of a convolution are its heads.
    fixed: it is the same for every input. jacobian: it is the norm of dy/dx, see `Traits.matrix`.
    directions: the number of random directions that an estimated Jacobian was taken along; None where it is exact.
    """

    layer: int
    slot: Slot
    name: str
    matrix: NDArray[np.float32]
    fixed: bool
    jacobian: bool
    directions: int | None = None


def mixing_matrices(model: SeqmixForCausalLM, input_ids: Tensor) -> Iterator[LayerMatrix]:
    """The matrices of every mixer, one mixer at a time, in the order that data passes them.

    Args:
        input_ids: (1, T) of one document.

    Raises:
        InputError: the matrices of one layer do not fit into memory; it names a length that does.
    """
    for place in mixer_places(model, input_ids):
        yield layer_matrix(place)


def layer_matrix(place: Place) -> LayerMatrix:
    """The matrices of one mixer on what it reads; errors as `mixing_matrices`."""
    _check_memory(place)
    traits = place.mixer.traits
    directions = None
    if traits.matrix == "jacobian":
        found, directions = jacobian_matrix(place.mixer, place.x)
        matrix = found.detach()
    else:
        with torch.no_grad():
            parts = [part.matrix[0] for part in place.mixing()]
        matrix = parts[0] if len(parts) == 1 else torch.cat(parts)
    return LayerMatrix(
        layer=place.layer,
        slot=place.slot,
        name=place.name,
        matrix=np.ascontiguousarray(matrix.float().cpu().numpy()),
        fixed=not traits.content_dependent,
        jacobian=traits.matrix == "jacobian",
        directions=directions,
    )


def normalise_rows(matrix: NDArray[Any]) -> NDArray[Any]:
    """|M| (..., time, source) with rows that sum to 1; a row of zeros stays zero."""
    size = np.abs(matrix)
    total = size.sum(axis=-1, keepdims=True)
    return np.divide(size, total, out=np.zeros_like(size), where=total > 0)


def _check_memory(place: Place) -> None:
    """Refuses a length at which the matrices of this mixer would not fit, before they are formed."""
    time = place.x.shape[1]
    free = available_bytes(place.x.device)
    if free is None or place.mixer.traits.matrix == "jacobian":
        return
    short = Place(place.layer, place.slot, place.name, place.mixer, place.x[:, :1], _beginning(place.shared))
    with torch.no_grad():
        heads = sum(part.matrix.shape[1] for part in short.mixing())
    a_pair = COPIES * heads * place.x.element_size()
    if a_pair * time**2 > free:
        fits = max(1, int((free / a_pair) ** 0.5))
        raise InputError(
            f"the {heads} matrices of {place.name} in layer {place.layer} over {time} tokens need "
            f"{a_pair * time**2 / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: inspect at most {fits} tokens"
        )


def _beginning(shared: Tensor | None) -> Tensor | None:
    return None if shared is None else shared[:, :1]
