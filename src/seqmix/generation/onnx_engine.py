"""The engine of ONNX Runtime: the graph of a step, with all inputs and outputs bound once to arrays that stay.

Sums over the past of the convolutions are formed before the graph runs and its new inputs are written to the rings
after it; recurrent memories have two copies, which are read and written in turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from seqmix.errors import InputError
from seqmix.export.graph import build_graph
from seqmix.export.program import frequencies_of
from seqmix.generation.engine import Logits
from seqmix.generation.program_engine import ProgramEngine
from seqmix.generation.rings import CompiledRings
from seqmix.generation.weights import WeightType
from seqmix.kernels.library import library
from seqmix.models import SeqmixForCausalLM

EMPTY_SLOT = -1e30
"""What is added to the score of a slot that holds nothing: its share is exactly 0."""


def open_session(graph: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session for steps of one token: threads wait by spinning, and nodes run one after another."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxEngine(ProgramEngine):
    """Steps by ONNX Runtime on the CPU; prompts are read by torch."""

    name = "onnx"

    def __init__(
        self,
        model: SeqmixForCausalLM,
        weights: WeightType = "f32",
        *,
        threads: int | None = None,
        ring_type: str = "f32",
    ) -> None:
        if weights == "bf16":
            raise InputError(
                "weights bf16 cannot be used with the engine onnx, which has no such product on a CPU: choose int8, or "
                "the engine torch or native"
            )
        super().__init__(model, weights, ring_type)
        graph = build_graph(self.program, int8=weights == "int8")
        self._session = open_session(graph.SerializeToString(), threads)
        self._rings: CompiledRings | None = None
        self._turn = 0
        self._bindings: list[Any] = []
        self._place()

    def step(self, token: int) -> Logits:
        if not 0 <= token < self.vocab_size:
            self.check_tokens([token])
        states = self._states
        if states.make_room():
            self._place()
        self._token[0] = token
        for index, (cosines, sines) in enumerate(self._angles):
            angles = states.position * self._frequencies[index]
            np.cos(angles, out=cosines, casting="same_kind")
            np.sin(angles, out=sines, casting="same_kind")
        if self._rings is not None:
            self._rings.sum(token, states.position)
        else:
            states.sum_rings(self._sums)
        for mask, arrays in zip(self._masks, states.caches, strict=True):
            # In a window that is full, the slot that is written next holds what has just left the window.
            mask[states.position % arrays.slots] = EMPTY_SLOT
        self._session.run_with_iobinding(self._bindings[self._turn])
        if self._rings is not None:
            self._rings.enter(token, states.position)
        else:
            states.enter_rings(self._new)
        for arrays, entries, mask in zip(states.caches, self._new_entries, self._masks, strict=True):
            slot = states.position % arrays.slots
            arrays.keys[:, slot], arrays.values[:, slot] = (new[:, 0] for new in entries)
            mask[slot] = 0
        if self._memories:
            self._turn = 1 - self._turn
            states.memories = self._memories[self._turn]
        states.position += 1
        return self._logits[0]

    def _place(self) -> None:
        """Ties the graph's inputs and outputs to arrays; again whenever a state's array is another one."""
        program, states = self.program, self._states
        self._token = np.zeros(1, np.int64)
        self._logits = np.zeros((1, program.vocab_size), np.float32)
        self._frequencies = [frequencies_of(one) for one in program.angles]
        self._angles = [(_zeros(1, len(f))[0], _zeros(1, len(f))[0]) for f in self._frequencies]
        self._sums = [_zeros(1, ring.width)[0] for ring in program.rings]
        self._new = [_zeros(1, ring.width)[0] for ring in program.rings]
        self._rings = None
        if program.rings and library() is not None:
            self._rings = CompiledRings(states, self._sums, self._new, threads=1)
        self._new_entries = [(_zeros(c.groups, 1, c.width), _zeros(c.groups, 1, c.width)) for c in program.caches]
        self._masks = [self._mask(arrays.slots) for arrays in states.caches]
        self._memories = [states.memories, [np.zeros_like(one) for one in states.memories]] if states.memories else []
        self._turn = 0
        self._bindings = [self._binding(turn) for turn in range(2 if self._memories else 1)]

    def _mask(self, slots: int) -> NDArray[np.float32]:
        mask = np.full((slots, 1), EMPTY_SLOT, np.float32)
        mask[: min(self.position, slots)] = 0
        return mask

    def _binding(self, turn: int) -> Any:
        """The binding in which memories are read from copy `turn` and written to the other one."""
        binding = self._session.io_binding()
        program = self.program
        declared = {entry.name: entry for entry in (*self._session.get_inputs(), *self._session.get_outputs())}

        def tie(bind: Any, name: str, array: NDArray) -> None:
            shape = [
                given if isinstance(given, int) else array.shape[axis]
                for axis, given in enumerate(declared[name].shape)
            ]
            bind(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

        tie(binding.bind_input, "token", self._token)
        tie(binding.bind_output, "logits", self._logits)
        for index, (cosines, sines) in enumerate(self._angles):
            tie(binding.bind_input, f"cosines.{index}", cosines)
            tie(binding.bind_input, f"sines.{index}", sines)
        for index, ring in enumerate(program.rings):
            tie(binding.bind_input, f"{ring.name}.sums", self._sums[index])
            tie(binding.bind_output, f"{ring.name}.new", self._new[index])
        for index, cache in enumerate(program.caches):
            arrays = self._states.caches[index]
            tie(binding.bind_input, f"{cache.name}.keys", arrays.keys)
            tie(binding.bind_input, f"{cache.name}.values", arrays.values)
            tie(binding.bind_input, f"{cache.name}.mask", self._masks[index])
            tie(binding.bind_output, f"{cache.name}.new_keys", self._new_entries[index][0])
            tie(binding.bind_output, f"{cache.name}.new_values", self._new_entries[index][1])
        for index, memory in enumerate(program.memories):
            tie(binding.bind_input, memory.name, self._memories[turn][index])
            tie(binding.bind_output, f"{memory.name}.new", self._memories[1 - turn][index])
        return binding


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)
