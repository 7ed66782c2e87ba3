"""One token through a whole model in compiled code: the interface to `native/step_program.h`.

The caller fills a table of operations with addresses of memory that it keeps alive; see
`seqmix.generation.native_engine`, which does so from a model's step program.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum

from seqmix.kernels.library import function

PANEL = 16
"""Outputs of a matrix that lie beside each other; vectors have room for whole panels."""
HALF_PANEL = 8
"""The last panel is this wide where that is enough."""
WEIGHT_TYPES = {"f32": 0, "bf16": 1, "int8": 2}


class Kind(IntEnum):
    """What an operation does; the fields that each one reads are in step_program.h."""

    EMBED = 0
    ANGLES = 1
    ROTATE = 2
    RMS_NORM = 3
    LAYER_NORM = 4
    LINEAR = 5
    CONVOLVE = 6
    MULTIPLY = 7
    ADD = 8
    SILU = 9
    REMEMBER = 10
    ATTEND = 11
    LSTM_CELL = 12
    STATE_SPACE = 13


class Group(ctypes.Structure):
    """Neighbouring channels of one dilation and where their ring begins."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("first", "last", "dilation", "length", "ring", "weight"))


class Operation(ctypes.Structure):
    """One entry of the table; pointers are addresses."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("out", "a", "b", "c", "d", "weight", "scale", "bias", "state", "other")),
        *((name, ctypes.c_int64) for name in ("n", "k", "type", "heads", "size", "slots")),
        ("groups", ctypes.c_void_p),
        ("num_groups", ctypes.c_int64),
        ("independent", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("eps", "low", "high")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("operations", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_operations", "token", "position", "threads")),
    )


class StepRunner:
    """Runs a table of operations.

    Args:
        operations: in order. threads: of the run.
    """

    def __init__(self, operations: Sequence[Operation], threads: int) -> None:
        self.table = (Operation * len(operations))(*operations)
        self._step = _Step(ctypes.addressof(self.table), len(operations), 0, 0, threads)
        self._argument = ctypes.byref(self._step)
        self._run = function("step")

    def __call__(self, token: int, position: int) -> None:
        """One token at a position; reads and writes the memory that the table points to."""
        self._step.token, self._step.position = token, position
        self._run(self._argument)
