"""The rings of convolutions in compiled code: tables of operations over the arrays of a `StepStates`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqmix.export.program import Ring
from seqmix.generation.states import StepStates
from seqmix.kernels.step_program import WEIGHT_TYPES, Group, Kind, Operation, StepRunner


def ring_operation(ring: Ring, past: NDArray[Any], kept: list[Any], **fields: Any) -> Operation:
    """The table's entry for one convolution; what must stay in memory is added to `kept`."""
    groups = [Group(g.first, g.last, g.dilation, g.length, g.offset) for g in ring.dilations.groups]
    table = (Group * len(groups))(*groups)
    kept += [table, past, ring]
    return Operation(
        kind=Kind.CONVOLVE,
        weight=ring.taps.data_ptr(),
        bias=None if ring.bias is None else ring.bias.data_ptr(),
        state=past.ctypes.data,
        n=ring.width,
        size=ring.dilations.kernel,
        type=WEIGHT_TYPES["f32" if past.dtype == np.float32 else "bf16"],
        groups=ctypes.addressof(table),
        num_groups=len(groups),
        **fields,
    )


class CompiledRings:
    """`StepStates.sum_rings` and `enter_rings` for arrays that stay where they are.

    Args:
        states: whose rings are read and written. sums, new: what the two write and read, an array a ring.
    """

    def __init__(
        self, states: StepStates, sums: list[NDArray[np.float32]], new: list[NDArray[np.float32]], threads: int
    ) -> None:
        self._kept: list[Any] = [*sums, *new]
        rings = list(zip(states.program.rings, states.rings, strict=True))
        self.sum = self._runner(
            [
                ring_operation(ring, past, self._kept, out=one.ctypes.data)
                for (ring, past), one in zip(rings, sums, strict=True)
            ],
            threads,
        )
        self.enter = self._runner(
            [
                ring_operation(ring, past, self._kept, a=one.ctypes.data)
                for (ring, past), one in zip(rings, new, strict=True)
            ],
            threads,
        )

    def _runner(self, operations: list[Operation], threads: int) -> StepRunner:
        return StepRunner(operations, threads)
