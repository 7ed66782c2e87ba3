"""The engine in compiled code: the step program runs as a table of operations over memory that stays in place.

Matrices lie in panels of 16 outputs in the order of their use, in one block: a step reads them once, as one stream.
"""

from __future__ import annotations

from functools import singledispatchmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqmix.export.int8 import to_int8
from seqmix.export.program import (
    Add,
    Attend,
    Convolve,
    Embed,
    Linear,
    LSTMCell,
    Memory,
    Multiply,
    Norm,
    Program,
    Rotate,
    Silu,
    Span,
    StateSpace,
    frequencies_of,
    inputs_of,
)
from seqmix.export.program import Operation as ProgramOperation
from seqmix.generation.engine import CannotRunError, Logits
from seqmix.generation.large_pages import empty_block
from seqmix.generation.program_engine import ProgramEngine
from seqmix.generation.rings import pack_taps, ring_operation
from seqmix.generation.states import to_bfloat16
from seqmix.generation.weights import WeightType
from seqmix.kernels.library import library, why_missing
from seqmix.kernels.step_program import HALF_PANEL, PANEL, WEIGHT_TYPES, Kind, Operation, StepRunner
from seqmix.models import SeqmixForCausalLM

ALIGNMENT = 64


def pack_panels(weight: Tensor, weights: WeightType) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """A matrix (out, in) as panels, each (in, 16) and the last (in, 8) where that is enough; and scales for int8."""
    scales = None
    values: NDArray[Any] = weight.numpy()
    if weights == "int8":
        rounded, scale = to_int8(weight)
        values, scales = rounded.numpy(), scale.numpy()
    elif weights == "bf16":
        values = to_bfloat16(np.ascontiguousarray(values))
    out, width = values.shape
    whole, rest = divmod(out, PANEL)
    panels = [values[: whole * PANEL].reshape(whole, PANEL, width).swapaxes(1, 2).ravel()]
    if rest:
        last = np.zeros((width, HALF_PANEL if rest <= HALF_PANEL else PANEL), values.dtype)
        last[:, :rest] = values[whole * PANEL :].T
        panels.append(last.ravel())
    return np.concatenate(panels), scales


class _Weights:
    """All constants of a program, matrices in one block; shared by the branches of an engine.

    kept: everything whose address is in use.
    """

    def __init__(self, program: Program, weights: WeightType) -> None:
        self.kept: list[Any] = []
        self._known: dict[tuple[int, bool], int] = {}
        self.taps = {ring.name: pack_taps(ring) for ring in program.rings}
        self.matrices: dict[int, tuple[int, int | None]] = {}
        packed = [
            (operation, *pack_panels(operation.weight, weights))
            for operation in program.operations
            if isinstance(operation, Linear)
        ]
        sizes = [-(-values.nbytes // ALIGNMENT) * ALIGNMENT for _, values, _ in packed]
        block = empty_block(sum(sizes))
        self.kept.append(block)
        begin = 0
        for (operation, values, scales), size in zip(packed, sizes, strict=True):
            block[begin : begin + values.nbytes] = values.view(np.uint8)
            address = None
            if scales is not None:
                self.kept.append(_padded(scales))
                address = self.kept[-1].ctypes.data
            self.matrices[id(operation)] = (block.ctypes.data + begin, address)
            begin += size

    def address(self, tensor: Tensor | None, *, padded: bool = False) -> int | None:
        """The address of a constant, with room for whole panels where it is padded; None for None."""
        if tensor is None:
            return None
        key = (id(tensor), padded)
        if key not in self._known:
            array = tensor.contiguous().numpy()
            array = _padded(array) if padded else array
            self.kept += [tensor, array]
            self._known[key] = array.ctypes.data
        return self._known[key]


def _padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A vector with room for whole panels."""
    return np.pad(array, (0, -len(array) % PANEL))


class NativeEngine(ProgramEngine):
    """Steps in compiled code on the CPU; prompts are read by torch.

    Raises:
        CannotRunError: the compiled kernels are not there.
        CannotLowerError: a mixer for which no operations are known.
    """

    name = "native"

    def __init__(
        self,
        model: SeqmixForCausalLM,
        weights: WeightType = "f32",
        *,
        threads: int | None = None,
        ring_type: str = "f32",
    ) -> None:
        if library() is None:
            raise CannotRunError(f"the engine native cannot run: {why_missing()}, or choose the engine onnx or torch")
        super().__init__(model, weights, ring_type)
        self.threads = threads or torch.get_num_threads()
        self._constants = _Weights(self.program, weights)
        self._place()

    def step(self, token: int) -> Logits:
        if not 0 <= token < self.vocab_size:
            self.check_tokens([token])
        if self._states.make_room():
            self._place()
        self._run(token, self._states.position)
        self._states.position += 1
        return self._logits

    def _place(self) -> None:
        """The table of operations for where the states lie now."""
        program = self.program
        starts, size = {}, 0
        for out in (operation.out for operation in program.operations):
            starts[out.vector] = size
            size += -(-out.width // PANEL) * PANEL
        arena = np.zeros(size + PANEL, np.float32)
        self._addresses = {name: arena.ctypes.data + 4 * start for name, start in starts.items()}
        first = starts[program.logits.vector]
        self._logits = arena[first : first + program.vocab_size]
        for memory, array in zip(program.memories, self._states.memories, strict=True):
            self._addresses[memory.name] = array.ctypes.data
        self._kept: list[Any] = [arena]
        self._angles: list[tuple[int, int]] = []
        self._table: list[Operation] = []
        for one in program.angles:
            pairs = one.width // 2
            cosines, sines = np.zeros(pairs, np.float32), np.zeros(pairs, np.float32)
            frequencies = frequencies_of(one)
            self._kept += [cosines, sines, frequencies]
            self._angles.append((cosines.ctypes.data, sines.ctypes.data))
            self._put(
                Kind.ANGLES,
                n=pairs,
                weight=frequencies.ctypes.data,
                state=cosines.ctypes.data,
                other=sines.ctypes.data,
            )
        written: set[str] = set()
        for operation in program.operations:
            self._append(operation)
            if isinstance(operation, Linear | Convolve):
                independent = bool(written) and not any(span.vector in written for span in inputs_of(operation))
                self._table[-1].independent = independent
                written = {*written, operation.out.vector} if independent else {operation.out.vector}
            else:
                written = set()
        self._run = StepRunner(self._table, self.threads)

    def _put(self, kind: Kind, **fields: Any) -> None:
        self._table.append(Operation(kind=kind, **fields))

    def _at(self, span: Span | None) -> int | None:
        return None if span is None else self._addresses[span.vector] + 4 * span.first

    def _memory(self, memory: Memory) -> int:
        return self._addresses[memory.name]

    @singledispatchmethod
    def _append(self, operation: ProgramOperation) -> None:
        """Appends the entries of an operation to the table."""
        # A gap of ours: an operation was added to the program and not here.
        raise NotImplementedError(f"the table has no entry for {type(operation).__name__}: register it in this file")

    @_append.register
    def _(self, operation: Embed) -> None:
        table = self._constants.address(operation.table)
        self._put(Kind.EMBED, out=self._at(operation.out), n=operation.out.width, weight=table)

    @_append.register
    def _(self, operation: Rotate) -> None:
        cosines, sines = self._angles[self.program.angles.index(operation.angles)]
        width = operation.angles.width
        self._put(
            Kind.ROTATE,
            out=self._at(operation.out),
            a=self._at(operation.x),
            b=cosines,
            c=sines,
            heads=operation.x.width // width,
            size=width,
        )

    @_append.register
    def _(self, operation: Norm) -> None:
        self._put(
            Kind.RMS_NORM if operation.kind == "rms" else Kind.LAYER_NORM,
            out=self._at(operation.out),
            a=self._at(operation.x),
            weight=self._constants.address(operation.weight),
            bias=self._constants.address(operation.bias),
            n=operation.out.width,
            heads=operation.groups,
            eps=operation.eps,
        )

    @_append.register
    def _(self, operation: Linear) -> None:
        weight, scale = self._constants.matrices[id(operation)]
        self._put(
            Kind.LINEAR,
            out=self._at(operation.out),
            a=self._at(operation.x),
            b=self._at(operation.add),
            weight=weight,
            scale=scale,
            bias=self._constants.address(operation.bias, padded=True),
            n=operation.out.width,
            k=operation.x.width,
            type=WEIGHT_TYPES[self.weights],
        )

    @_append.register
    def _(self, operation: Convolve) -> None:
        ring = operation.ring
        index = self.program.rings.index(ring)
        past = self._states.rings[index]
        out, x = self._at(operation.out), self._at(operation.x)
        packed = self._constants.taps[ring.name]
        self._table.append(ring_operation(ring, packed, past, self._kept, out=out, a=x))

    @_append.register
    def _(self, operation: Multiply) -> None:
        self._put(
            Kind.MULTIPLY,
            out=self._at(operation.out),
            a=self._at(operation.a),
            b=self._at(operation.b),
            c=self._at(operation.add),
            n=operation.out.width,
            type=int(operation.silu),
        )

    @_append.register
    def _(self, operation: Add) -> None:
        a, b = self._at(operation.a), self._at(operation.b)
        self._put(Kind.ADD, out=self._at(operation.out), a=a, b=b, n=operation.out.width)

    @_append.register
    def _(self, operation: Silu) -> None:
        self._put(Kind.SILU, out=self._at(operation.out), a=self._at(operation.x), n=operation.out.width)

    @_append.register
    def _(self, operation: Attend) -> None:
        cache = operation.cache
        arrays = self._states.caches[self.program.caches.index(cache)]
        shared = {
            "state": arrays.keys.ctypes.data,
            "other": arrays.values.ctypes.data,
            "n": cache.groups,
            "size": cache.width,
            "slots": arrays.slots,
        }
        self._put(Kind.REMEMBER, b=self._at(operation.k), c=self._at(operation.v), **shared)
        heads = operation.q.width // cache.width
        out, q = self._at(operation.out), self._at(operation.q)
        self._put(Kind.ATTEND, out=out, a=q, heads=heads, low=operation.scale, **shared)

    @_append.register
    def _(self, operation: LSTMCell) -> None:
        self._put(
            Kind.LSTM_CELL,
            out=self._at(operation.out),
            a=self._at(operation.gates),
            state=self._memory(operation.cell),
            other=self._memory(operation.hidden),
            n=operation.out.width,
        )

    @_append.register
    def _(self, operation: StateSpace) -> None:
        heads, width, size = operation.hidden.shape
        low, high = operation.dt_limit or (0.0, float("inf"))
        self._put(
            Kind.STATE_SPACE,
            out=self._at(operation.out),
            a=self._at(operation.x),
            b=self._at(operation.dt),
            c=self._at(operation.B),
            d=self._at(operation.C),
            weight=self._constants.address(operation.A),
            bias=self._constants.address(operation.D),
            scale=self._constants.address(operation.dt_bias),
            state=self._memory(operation.hidden),
            n=operation.groups,
            k=width,
            heads=heads,
            size=size,
            low=low,
            high=high,
        )
