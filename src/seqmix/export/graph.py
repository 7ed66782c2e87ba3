"""The ONNX graph of a step, built node by node from its program: standard operators, one sequence, batch 1.

Both forms have the input `token` (1,) int64, the output `logits` (1, vocab), and for each memory M the input M and the
output M.new of its shape. Weights are float32, or int8 with a scale for each output (MatMulNBits of ONNX Runtime).

The form for engines leaves large states to whoever runs it, so that they are never copied:
    for each ring R: R.sums (1, width), the sums over its past and the bias; R.new (1, width), what enters the ring
    for each cache C: C.keys, C.values (groups, slots, width), and C.mask (slots, 1), 0 for a filled slot and a large
    negative number for an empty one; C.new_keys, C.new_values (groups, 1, width)
    for each kind of rotary angles: cosines.N, sines.N (1, width // 2)

The standalone form needs nothing but a runtime; every state S comes out as S.new and goes in again at the next step:
    for each ring R and dilation d of it: R.d (length, channels), its inputs in order of time, zeros at first
    for each cache C: C.keys, C.values (groups, past, width), with past = 0 at first, in order of time
    position (1,) int64, where the model turns anything by its position
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from seqmix.export.program import Memory, Operation, Program, Span, inputs_of

OPSET = 23
IR_VERSION = 11
NBITS_BLOCK = 64
"""Numbers of a row that share a scale in MatMulNBits; all blocks of a row are given the row's one."""
INT8_ACTIVATIONS = 4
"""The accuracy level at which MatMulNBits rounds its input to int8 as well, block by block: 30 times as fast."""


class GraphBuilder:
    """Adds nodes for one operation after another; names of values are those of the program's vectors."""

    def __init__(self, program: Program, *, int8: bool, standalone: bool) -> None:
        self.program = program
        self.int8 = int8
        self.standalone = standalone
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = [_info("token", [1], TensorProto.INT64)]
        self.outputs: list[onnx.ValueInfoProto] = []
        self._parts = _parts_of(program)

    def add(self, kind: str, inputs: Iterable[str], outputs: int | str | list[str] = 1, **attributes: Any) -> Any:
        """Appends a node; gives the name of its output, or the names where there are several."""
        number = len(self.nodes)
        if isinstance(outputs, int):
            outputs = [f"{kind.lower()}{number}.{index}" for index in range(outputs)]
        names = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}{number}", **attributes))
        return names[0] if len(names) == 1 else names

    def constant(self, value: NDArray[Any] | Tensor, hint: str = "constant") -> str:
        """The name of a constant; equal small ones are stored once."""
        array = value.numpy() if isinstance(value, Tensor) else value
        for name, known in self.constants.items():
            if array.size <= 8 and name.startswith(hint) and known.dims == list(array.shape):
                other = numpy_helper.to_array(known)
                if other.dtype == array.dtype and np.array_equal(other, array):
                    return name
        name = f"{hint}.{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def reshape(self, name: str, *shape: int) -> str:
        """A value in another shape."""
        return str(self.add("Reshape", [name, self.constant(np.array(shape, np.int64), "shape")]))

    def of(self, span: Span) -> str:
        """The value of a span, (1, width)."""
        parts = self._parts.get(span.vector, [])
        return span.vector if len(parts) < 2 else _part_name(span)

    def finish(self, operation: Operation) -> None:
        """Cuts what an operation wrote into the parts that later ones read."""
        parts = self._parts.get(operation.out.vector, [])
        if len(parts) < 2:
            return
        sizes = self.constant(np.array([part.width for part in parts], np.int64), "sizes")
        self.add("Split", [operation.out.vector, sizes], [_part_name(part) for part in parts], axis=1)

    def state_input(self, name: str, shape: list[int | str]) -> str:
        """Declares an input of float32."""
        self.inputs.append(_info(name, shape))
        return name

    def state_output(self, name: str, shape: list[int | str]) -> str:
        """Declares an output of float32."""
        self.outputs.append(_info(name, shape))
        return name

    def replace(self, memory: Memory, value: str, shape: list[int]) -> None:
        """Makes a value what comes into a memory's place."""
        self.state_output(f"{memory.name}.new", list(shape))
        self.add("Identity", [value], f"{memory.name}.new")


def _part_name(span: Span) -> str:
    return f"{span.vector}[{span.first}:{span.first + span.width}]"


def _info(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _parts_of(program: Program) -> dict[str, list[Span]]:
    """The spans that are read of each vector, in order and without gaps; nothing for vectors read as a whole."""
    read: dict[str, set[Span]] = {}
    for operation in program.operations:
        for span in inputs_of(operation):
            read.setdefault(span.vector, set()).add(span)
    parts: dict[str, list[Span]] = {}
    for operation in program.operations:
        spans = sorted(read.get(operation.out.vector, ()), key=lambda span: span.first)
        if spans in ([], [operation.out]):
            continue
        first, whole = 0, []
        for span in [*spans, Span(operation.out.vector, operation.out.width, 0)]:
            assert span.first >= first, "parts of a vector do not overlap"
            if span.first > first:
                whole.append(Span(span.vector, first, span.first - first))
            if span.width:
                whole.append(span)
            first = span.first + span.width
        parts[operation.out.vector] = whole
    return parts


def build_graph(program: Program, *, int8: bool = False, standalone: bool = False) -> onnx.ModelProto:
    """The ONNX model of a program's step; see the top of this file for its inputs and outputs."""
    from seqmix.export.nodes import emit, emit_angles

    graph = GraphBuilder(program, int8=int8, standalone=standalone)
    emit_angles(graph)
    for operation in program.operations:
        emit(operation, graph)
        graph.finish(operation)
    graph.outputs.insert(0, _info("logits", [1, program.vocab_size]))
    graph.add("Identity", [program.logits.vector], "logits")
    used = {name for node in graph.nodes for name in node.input}
    constants = [value for name, value in graph.constants.items() if name in used]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "seqmix_step", graph.inputs, graph.outputs, initializer=constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        producer_name="seqmix",
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model
