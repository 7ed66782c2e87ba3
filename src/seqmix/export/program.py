"""A model's step as a list of plain operations on vectors, from which the ONNX graph and the native engine are made.

    step(token, position, states) -> (logits, states)

Every vector is written once. States are named; an operation that reads one also gives what comes into its place. The
past of a convolution is a ring (`kernels/depthwise_conv/channels.py`): what a step needs of it is one sum for each
channel, known before the token is, so that large rings need not pass through a graph.

Shapes: all vectors are of one sequence: (width,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqmix.kernels.depthwise_conv.channels import Dilations


class Span(NamedTuple):
    """Neighbouring numbers of a vector: `width` of them from `first` on."""

    vector: str
    first: int
    width: int

    def split(self, *widths: int) -> list[Span]:
        """Consecutive parts of these widths, which together are the whole."""
        assert sum(widths) == self.width
        parts, first = [], self.first
        for width in widths:
            parts.append(Span(self.vector, first, width))
            first += width
        return parts


@dataclass(frozen=True, kw_only=True, eq=False)
class Ring:
    """The past of one convolution. taps: (kernel, width) float32, the last one is the position's own."""

    name: str
    layer: int
    dilations: Dilations
    taps: Tensor
    bias: Tensor | None

    @property
    def width(self) -> int:
        """Channels."""
        return self.taps.shape[1]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of one attention, (groups, slots, width) each; with a window a ring of that many slots."""

    name: str
    layer: int
    groups: int
    width: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A tensor of fixed shape that every step replaces. field: its name in the mixer's state."""

    name: str
    layer: int
    field: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        size = 1
        for count in self.shape:
            size *= count
        return size


class Angles(NamedTuple):
    """Rotary angles of one kind: position * theta^(-2i / width), i < width // 2."""

    width: int
    theta: float


def frequencies_of(angles: Angles) -> NDArray[np.float64]:
    """What the position is multiplied by: (width // 2,)."""
    pairs = angles.width // 2
    return angles.theta ** -(np.arange(pairs) / max(pairs, 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """out: the vector that is written, by its whole span."""

    out: Span


@dataclass(frozen=True, kw_only=True, eq=False)
class Embed(Operation):
    """The token's row of the table (vocab, width)."""

    table: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotate(Operation):
    """Turns the pairs (i, i + width // 2) of each head of x by the position's angles."""

    x: Span
    angles: Angles


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm(Operation):
    """weight * x / rms(x), for each of `groups` equal parts, or weight * (x - mean) / deviation + bias."""

    x: Span
    kind: Literal["rms", "layer"]
    weight: Tensor
    bias: Tensor | None
    eps: float
    groups: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Operation):
    """weight (out, in) times x, plus bias, plus `add`."""

    x: Span
    weight: Tensor
    bias: Tensor | None
    add: Span | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolve(Operation):
    """bias + sum over the past + last tap * x; x enters the ring."""

    x: Span
    ring: Ring


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply(Operation):
    """a * b + add; with `silu` a is replaced by silu(a) = a * sigmoid(a)."""

    a: Span
    b: Span
    add: Span | None = None
    silu: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operation):
    """a + b."""

    a: Span
    b: Span


@dataclass(frozen=True, kw_only=True, eq=False)
class Silu(Operation):
    """x * sigmoid(x)."""

    x: Span


@dataclass(frozen=True, kw_only=True, eq=False)
class Attend(Operation):
    """softmax(scale * q keys^T) values for each head, with k and v of this position appended."""

    q: Span
    k: Span
    v: Span
    scale: float
    cache: Cache


@dataclass(frozen=True, kw_only=True, eq=False)
class LSTMCell(Operation):
    """h of the gates i, f, g, o (4 * width); `cell` is c, and `hidden` becomes h."""

    gates: Span
    cell: Memory
    hidden: Memory


@dataclass(frozen=True, kw_only=True, eq=False)
class StateSpace(Operation):
    """h <- exp(dt A) h + dt x (outer) B;  out = h · C + D x, with dt = softplus(dt + dt_bias) within dt_limit.

    hidden: (heads, head width, state size). A, D, dt_bias: (heads,). B, C: (groups * state size).
    """

    x: Span
    dt: Span
    B: Span
    C: Span
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    dt_limit: tuple[float, float] | None
    groups: int
    hidden: Memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """The operations of a step in order.

    logits: what the last one writes. rings, caches, memories: the states. angles: the rotary angles that are used.
    """

    vocab_size: int
    operations: tuple[Operation, ...]
    logits: Span
    rings: tuple[Ring, ...]
    caches: tuple[Cache, ...]
    memories: tuple[Memory, ...]
    angles: tuple[Angles, ...]


def inputs_of(operation: Operation) -> list[Span]:
    """The spans that an operation reads."""
    return [value for value in vars(operation).values() if isinstance(value, Span) and value is not operation.out]
