"""The ONNX nodes of each operation of a program.

Shapes: G groups of heads that share keys and values, R heads of a group, K head width, S slots.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from onnx import TensorProto, helper
from torch import Tensor

from seqmix.export.graph import INT8_ACTIVATIONS, NBITS_BLOCK, GraphBuilder
from seqmix.export.int8 import packed_blocks
from seqmix.export.program import (
    Add,
    Attend,
    Cache,
    Convolve,
    Embed,
    Linear,
    LSTMCell,
    Multiply,
    Norm,
    Operation,
    Ring,
    Rotate,
    Silu,
    StateSpace,
    frequencies_of,
)

LAST = np.iinfo(np.int64).max


@singledispatch
def emit(operation: Operation, graph: GraphBuilder) -> None:
    """Appends the nodes of an operation."""
    # A gap of ours: an operation was added to the program and not here.
    raise NotImplementedError(f"the graph has no nodes for {type(operation).__name__}: register them in nodes.py")


def emit_angles(graph: GraphBuilder) -> None:
    """Declares the cosines and sines of the position, or computes them from it, in float64."""
    for number, angles in enumerate(graph.program.angles):
        pairs = angles.width // 2
        if not graph.standalone:
            for kind in ("cosines", "sines"):
                graph.state_input(f"{kind}.{number}", [1, pairs])
            continue
        if number == 0:
            graph.inputs.append(helper.make_tensor_value_info("position", TensorProto.INT64, [1]))
        frequencies = graph.constant(frequencies_of(angles)[None], "frequencies")
        turns = graph.add("Mul", [graph.add("Cast", ["position"], to=TensorProto.DOUBLE), frequencies])
        graph.add("Cast", [graph.add("Cos", [turns])], f"cosines.{number}", to=TensorProto.FLOAT)
        graph.add("Cast", [graph.add("Sin", [turns])], f"sines.{number}", to=TensorProto.FLOAT)


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
    own = graph.add("Mul", [x, graph.constant(ring.taps[-1:], "tap")])
    if graph.standalone:
        graph.add("Add", [own, _sums_in_order(graph, ring, x)], operation.out.vector)
    else:
        graph.add("Add", [own, graph.state_input(f"{ring.name}.sums", [1, ring.width])], operation.out.vector)
        graph.add("Identity", [x], graph.state_output(f"{ring.name}.new", [1, ring.width]))


def _sums_in_order(graph: GraphBuilder, ring: Ring, x: str) -> str:
    """The sums over the past (1, width) from inputs in order of time, which x then joins."""
    groups = ring.dilations.groups
    bias = np.zeros((1, ring.width), np.float32) if ring.bias is None else ring.bias.numpy()[None]
    if ring.dilations.kernel == 1:
        return graph.constant(bias, "bias")
    sizes = graph.constant(np.array([group.width for group in groups], np.int64), "sizes")
    parts = [x] if len(groups) == 1 else graph.add("Split", [x, sizes], len(groups), axis=1)
    one, end, axis = (graph.constant(np.array([n], np.int64), "at") for n in (1, LAST, 0))
    sums = []
    for group, part in zip(groups, parts, strict=True):
        shape: list[int | str] = [group.length, group.width]
        past = graph.state_input(f"{ring.name}.{group.dilation}", shape)
        rows = graph.constant(np.arange(0, group.length, group.dilation), "rows")
        taps = graph.constant(ring.taps[:-1, group.first : group.last].contiguous(), "taps")
        read = past if group.dilation == 1 else graph.add("Gather", [past, rows], axis=0)
        sums.append(graph.add("ReduceSum", [graph.add("Mul", [read, taps]), axis], keepdims=1))
        name = graph.state_output(f"{ring.name}.{group.dilation}.new", shape)
        graph.add("Concat", [graph.add("Slice", [past, one, end, axis]), part], name, axis=0)
    total = sums[0] if len(sums) == 1 else graph.add("Concat", sums, axis=1)
    return str(graph.add("Add", [total, graph.constant(bias, "bias")]))


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
    shape = graph.constant(np.array([groups, 1, width], np.int64), "shape")
    q = graph.add("Mul", [graph.of(operation.q), graph.constant(np.array(operation.scale, np.float32), "scale")])
    if share == 1:
        q_GKR = graph.reshape(q, groups, width, 1)
    else:
        q_GKR = graph.add("Transpose", [graph.reshape(q, groups, share, width)], perm=[0, 2, 1])
    names = ("keys", "values")
    new = [graph.add("Reshape", [graph.of(span), shape]) for span in (operation.k, operation.v)]
    if graph.standalone:
        keys, values = (_joined(graph, cache, name, one) for name, one in zip(names, new, strict=True))
        shares = graph.add("Softmax", [graph.add("MatMul", [keys, q_GKR])], axis=1)
        mixed = graph.add("MatMul", [graph.add("Transpose", [shares], perm=[0, 2, 1]), values])
    else:
        for name, one in zip(names, new, strict=True):
            graph.add("Identity", [one], graph.state_output(f"{cache.name}.new_{name}", [groups, 1, width]))
        slots: int | str = f"{cache.name}.slots" if cache.window is None else cache.window
        keys, values = (graph.state_input(f"{cache.name}.{name}", [groups, slots, width]) for name in names)
        mask = graph.state_input(f"{cache.name}.mask", [slots, 1])
        before_GSR = graph.add("Add", [graph.add("MatMul", [keys, q_GKR]), mask])
        here_G1R = graph.add("MatMul", [new[0], q_GKR])
        shares = graph.add("Softmax", [graph.add("Concat", [here_G1R, before_GSR], axis=1)], axis=1)
        zero, one, end = (graph.constant(np.array([at], np.int64), "at") for at in (0, 1, LAST))
        of_here = graph.add("Slice", [shares, zero, one, one])
        of_before = graph.add("Slice", [shares, one, end, one])
        mixed_before = graph.add("MatMul", [graph.add("Transpose", [of_before], perm=[0, 2, 1]), values])
        mixed_here = graph.add("Mul", [graph.add("Transpose", [of_here], perm=[0, 2, 1]), new[1]])
        mixed = graph.add("Add", [mixed_before, mixed_here])
    flat = graph.constant(np.array([1, operation.out.width], np.int64), "shape")
    graph.add("Reshape", [mixed, flat], operation.out.vector)


def _joined(graph: GraphBuilder, cache: Cache, name: str, new: str) -> str:
    """Keys or values of the past with those of this position; they become the past, as far as the window goes."""
    shape: list[int | str] = [cache.groups, f"{cache.name}.past", cache.width]
    past = graph.state_input(f"{cache.name}.{name}", shape)
    shape[1] = f"{cache.name}.past_new"
    after = graph.state_output(f"{cache.name}.{name}.new", shape)
    if cache.window is None:
        graph.add("Concat", [past, new], after, axis=1)
        return after
    joined = graph.add("Concat", [past, new], axis=1)
    first = -(cache.window - 1) if cache.window > 1 else LAST
    begin, end, axis = (graph.constant(np.array([n], np.int64), "at") for n in (first, LAST, 1))
    graph.add("Slice", [joined, begin, end, axis], after)
    return str(joined)


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
    dt = graph.add("Softplus", [graph.add("Add", [graph.of(operation.dt), graph.constant(operation.dt_bias, "dt")])])
    if operation.dt_limit is not None:
        low, high = (graph.constant(np.array(limit, np.float32), "limit") for limit in operation.dt_limit)
        dt = graph.add("Clip", [dt, low, high])
    dt_H11 = graph.reshape(dt, heads, 1, 1)
    A_H11, D_H11 = (graph.constant(values[:, None, None], "head") for values in (operation.A, operation.D))
    x_HP1 = graph.reshape(graph.of(operation.x), heads, width, 1)
    B, C = graph.of(operation.B), graph.of(operation.C)
    if operation.groups == 1:
        C = graph.reshape(C, size, 1)
    else:
        of_heads = np.arange(heads) // (heads // operation.groups)
        B = graph.add(
            "Gather", [graph.reshape(B, operation.groups, 1, size), graph.constant(of_heads, "groups")], axis=0
        )
        C = graph.add(
            "Gather", [graph.reshape(C, operation.groups, size, 1), graph.constant(of_heads, "groups")], axis=0
        )
    written = graph.add("Mul", [graph.add("Mul", [dt_H11, x_HP1]), B])
    decayed = graph.add(
        "Mul",
        [
            graph.state_input(operation.hidden.name, [heads, width, size]),
            graph.add("Exp", [graph.add("Mul", [dt_H11, A_H11])]),
        ],
    )
    after = graph.state_output(f"{operation.hidden.name}.new", [heads, width, size])
    graph.add("Add", [decayed, written], after)
    y_HP1 = graph.add("Add", [graph.add("MatMul", [after, C]), graph.add("Mul", [x_HP1, D_H11])])
    flat = graph.constant(np.array([1, heads * width], np.int64), "shape")
    graph.add("Reshape", [y_HP1, flat], operation.out.vector)
