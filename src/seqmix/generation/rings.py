"""The rings of convolutions in compiled code: tables of operations over the arrays of a `StepStates`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqmix.export.program import Ring
from seqmix.generation.states import StepStates
from seqmix.kernels.step_program import PANEL, WEIGHT_TYPES, Group, Kind, Operation, StepRunner


def pack_taps(ring: Ring) -> tuple[NDArray[np.float32], list[int]]:
    """The taps of all groups in panels of 16 channels, (taps, 16) each and padded; and where each group begins."""
    parts, starts, size = [], [], 0
    taps = ring.taps.numpy()
    for group in ring.dilations.groups:
        own = np.pad(taps[:, group.first : group.last], ((0, 0), (0, -group.width % PANEL)))
        parts.append(own.reshape(len(taps), -1, PANEL).swapaxes(0, 1).ravel())
        starts.append(size)
        size += parts[-1].size
    return np.concatenate(parts), starts


def ring_operation(
    ring: Ring, packed: tuple[NDArray[np.float32], list[int]], past: NDArray[Any], kept: list[Any], **fields: Any
) -> Operation:
    """The table's entry for one convolution with its packed taps; what must stay in memory is added to `kept`."""
    weight, starts = packed
    groups = [
        Group(group.first, group.last, group.dilation, group.length, group.offset, start)
        for group, start in zip(ring.dilations.groups, starts, strict=True)
    ]
    table = (Group * len(groups))(*groups)
    kept += [table, weight, past, ring]
    return Operation(
        kind=Kind.CONVOLVE,
        weight=weight.ctypes.data,
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
        summing, entering = [], []
        for ring, past, total, inputs in zip(states.program.rings, states.rings, sums, new, strict=True):
            packed = pack_taps(ring)
            summing.append(ring_operation(ring, packed, past, self._kept, out=total.ctypes.data))
            entering.append(ring_operation(ring, packed, past, self._kept, a=inputs.ctypes.data))
        self.sum = StepRunner(summing, threads)
        self.enter = StepRunner(entering, threads)
