"""The ONNX nodes of each operation of a program.

Shapes: G groups of heads that share keys and values, R heads of a group, K head width, S slots.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from torch import Tensor

from seqmix.export.graph import INT8_ACTIVATIONS, NBITS_BLOCK, GraphBuilder
from seqmix.export.int8 import packed_blocks
from seqmix.export.program import (
    Add,
    Attend,
    Convolve,
    Embed,
    Linear,
    LSTMCell,
    Multiply,
    Norm,
    Operation,
    Rotate,
    Silu,
    StateSpace,
)


@singledispatch
def emit(operation: Operation, graph: GraphBuilder) -> None:
    """Appends the nodes of an operation."""
    raise NotImplementedError(type(operation).__name__)


def _silu(graph: GraphBuilder, x: str) -> str:
    return str(graph.add("Mul", [x, graph.add("Sigmoid", [x])]))


@emit.register
def _(operation: Embed, graph: GraphBuilder) -> None:
    graph.add("Gather", [graph.constant(operation.table, "embedding"), "token"], operation.out.vector, axis=0)


@emit.register
def _(operation: Rotate, graph: GraphBuilder) -> None:
    x, angles = operation.x, operation.angles
    number = graph.program.angles.index(angles)
    heads, pairs = x.width // angles.width, angles.width // 2
    shaped = graph.reshape(graph.of(x), heads, angles.width)
    sizes = [pairs, pairs] + ([1] if angles.width % 2 else [])
    first, second, *rest = graph.add(
        "Split", [shaped, graph.constant(np.array(sizes, np.int64), "sizes")], len(sizes), axis=1
    )
    cosines, sines = f"cosines.{number}", f"sines.{number}"
    turned = [
        graph.add("Sub", [graph.add("Mul", [first, cosines]), graph.add("Mul", [second, sines])]),
        graph.add("Add", [graph.add("Mul", [second, cosines]), graph.add("Mul", [first, sines])]),
    ]
    joined = graph.add("Concat", [*turned, *rest], axis=1)
    shape = graph.constant(np.array([1, x.width], np.int64), "shape")
    graph.add("Reshape", [joined, shape], operation.out.vector)


@emit.register
def _(operation: Norm, graph: GraphBuilder) -> None:
    x, out = graph.of(operation.x), operation.out.vector
    weight = graph.constant(operation.weight, "norm")
    if operation.kind == "layer":
        biases = [] if operation.bias is None else [graph.constant(operation.bias, "norm")]
        graph.add("LayerNormalization", [x, weight, *biases], out, axis=-1, epsilon=operation.eps)
    elif operation.groups == 1:
        graph.add("RMSNormalization", [x, weight], out, axis=-1, epsilon=operation.eps)
    else:
        width = operation.out.width // operation.groups
        ones = graph.constant(np.ones(width, np.float32), "ones")
        shaped = graph.reshape(x, operation.groups, width)
        normed = graph.add("RMSNormalization", [shaped, ones], axis=-1, epsilon=operation.eps)
        graph.add("Mul", [graph.reshape(normed, 1, operation.out.width), weight], out)


@emit.register
def _(operation: Linear, graph: GraphBuilder) -> None:
    added = [graph.constant(operation.bias, "bias")] if operation.bias is not None else []
    added += [graph.of(operation.add)] if operation.add is not None else []
    value = _product(graph, graph.of(operation.x), operation.weight, None if added else operation.out.vector)
    for number, term in enumerate(added):
        last = number == len(added) - 1
        value = graph.add("Add", [value, term], operation.out.vector if last else 1)


def _product(graph: GraphBuilder, x: str, weight: Tensor, out: str | None) -> str:
    """weight (out, in) times x (1, in)."""
    name = 1 if out is None else out
    if not graph.int8:
        return str(graph.add("MatMul", [x, graph.constant(weight.T, "weight")], name))
    values, scales = packed_blocks(weight, NBITS_BLOCK)
    return str(
        graph.add(
            "MatMulNBits",
            [x, graph.constant(values, "int8"), graph.constant(scales, "scales")],
            name,
            domain="com.microsoft",
            K=weight.shape[1],
            N=weight.shape[0],
            bits=8,
            block_size=NBITS_BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )
    )


@emit.register
def _(operation: Convolve, graph: GraphBuilder) -> None:
    ring, x = operation.ring, graph.of(operation.x)
    sums = graph.state_input(f"{ring.name}.sums", [1, ring.width])
    tap = graph.constant(ring.taps[-1:], "tap")
    graph.add("Add", [graph.add("Mul", [x, tap]), sums], operation.out.vector)
    graph.add("Identity", [x], graph.state_output(f"{ring.name}.new", [1, ring.width]))


@emit.register
def _(operation: Multiply, graph: GraphBuilder) -> None:
    a, b = graph.of(operation.a), graph.of(operation.b)
    if operation.silu:
        a = _silu(graph, a)
    if operation.add is None:
        graph.add("Mul", [a, b], operation.out.vector)
    else:
        graph.add("Add", [graph.add("Mul", [a, b]), graph.of(operation.add)], operation.out.vector)


@emit.register
def _(operation: Add, graph: GraphBuilder) -> None:
    graph.add("Add", [graph.of(operation.a), graph.of(operation.b)], operation.out.vector)


@emit.register
def _(operation: Silu, graph: GraphBuilder) -> None:
    x = graph.of(operation.x)
    graph.add("Mul", [x, graph.add("Sigmoid", [x])], operation.out.vector)


@emit.register
def _(operation: Attend, graph: GraphBuilder) -> None:
    cache = operation.cache
    groups, width = cache.groups, cache.width
    share = operation.q.width // (groups * width)
    slots: int | str = f"{cache.name}.slots" if cache.window is None else cache.window
    keys = graph.state_input(f"{cache.name}.keys", [groups, slots, width])
    values = graph.state_input(f"{cache.name}.values", [groups, slots, width])
    mask = graph.state_input(f"{cache.name}.mask", [slots, 1])
    shape = graph.constant(np.array([groups, 1, width], np.int64), "shape")
    new_keys = graph.state_output(f"{cache.name}.new_keys", [groups, 1, width])
    new_values = graph.state_output(f"{cache.name}.new_values", [groups, 1, width])
    graph.add("Reshape", [graph.of(operation.k), shape], new_keys)
    graph.add("Reshape", [graph.of(operation.v), shape], new_values)
    q = graph.add("Mul", [graph.of(operation.q), graph.constant(np.array(operation.scale, np.float32), "scale")])
    if share == 1:
        q_GKR = graph.reshape(q, groups, width, 1)
    else:
        q_GKR = graph.add("Transpose", [graph.reshape(q, groups, share, width)], perm=[0, 2, 1])
    before_GSR = graph.add("Add", [graph.add("MatMul", [keys, q_GKR]), mask])
    here_G1R = graph.add("MatMul", [new_keys, q_GKR])
    scores = graph.add("Concat", [here_G1R, before_GSR], axis=1)
    shares = graph.add("Softmax", [scores], axis=1)
    one, many = (graph.constant(np.array([at], np.int64), "at") for at in (1, np.iinfo(np.int64).max))
    zero, axis = (graph.constant(np.array([at], np.int64), "at") for at in (0, 1))
    of_here = graph.add("Slice", [shares, zero, one, axis])
    of_before = graph.add("Slice", [shares, one, many, axis])
    turned = graph.add("Transpose", [of_before], perm=[0, 2, 1])
    mixed_before = graph.add("MatMul", [turned, values])
    mixed_here = graph.add("Mul", [graph.add("Transpose", [of_here], perm=[0, 2, 1]), new_values])
    mixed = graph.add("Add", [mixed_before, mixed_here])
    flat = graph.constant(np.array([1, operation.out.width], np.int64), "shape")
    graph.add("Reshape", [mixed, flat], operation.out.vector)


@emit.register
def _(operation: LSTMCell, graph: GraphBuilder) -> None:
    width = operation.out.width
    sizes = graph.constant(np.full(4, width, np.int64), "sizes")
    enter, forget, new, leave = graph.add("Split", [graph.of(operation.gates), sizes], 4, axis=1)
    cell = graph.state_input(operation.cell.name, [1, width])
    graph.state_input(operation.hidden.name, [1, width])
    kept = graph.add("Mul", [graph.add("Sigmoid", [forget]), cell])
    written = graph.add("Mul", [graph.add("Sigmoid", [enter]), graph.add("Tanh", [new])])
    after = graph.add("Add", [kept, written], graph.state_output(f"{operation.cell.name}.new", [1, width]))
    graph.add("Mul", [graph.add("Sigmoid", [leave]), graph.add("Tanh", [after])], operation.out.vector)
    graph.replace(operation.hidden, operation.out.vector, [1, width])


@emit.register
def _(operation: StateSpace, graph: GraphBuilder) -> None:
    heads, width, size = operation.hidden.shape
    groups = operation.groups
    inner = heads * width
    dt = graph.add("Softplus", [graph.add("Add", [graph.of(operation.dt), graph.constant(operation.dt_bias, "dt")])])
    if operation.dt_limit is not None:
        low, high = (graph.constant(np.array(limit, np.float32), "limit") for limit in operation.dt_limit)
        dt = graph.add("Clip", [dt, low, high])
    decay = graph.add("Exp", [graph.add("Mul", [dt, graph.constant(operation.A, "A")])])
    x = graph.reshape(graph.of(operation.x), heads, width)
    strength = graph.add("Mul", [graph.reshape(dt, heads, 1), x])
    shape = (groups, inner // groups, 1)
    B = graph.reshape(graph.of(operation.B), groups, 1, size)
    written = graph.add("Mul", [graph.reshape(strength, *shape), B])
    decays = graph.reshape(decay, heads, 1, 1)
    if groups > 1 or width > 1:
        written = graph.reshape(written, heads, width, size)
    before = graph.state_input(operation.hidden.name, [heads, width, size])
    after = graph.add("Add", [graph.add("Mul", [before, decays]), written], f"{operation.hidden.name}.new")
    graph.state_output(after, [heads, width, size])
    C = graph.reshape(graph.of(operation.C), groups, size, 1)
    read = graph.add("MatMul", [graph.reshape(after, groups, inner // groups, size), C])
    skip = graph.add("Mul", [x, graph.constant(operation.D[:, None], "D")])
    y = graph.add("Add", [graph.reshape(read, heads, width), skip])
    flat = graph.constant(np.array([1, inner], np.int64), "shape")
    graph.add("Reshape", [y, flat], operation.out.vector)
