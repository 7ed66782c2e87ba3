"""How many steps must wait for one another to mix n positions, from what `step` does to the state.

    stored:   every number after the step is one from before it, or does not depend on the state    depth 1
    affine:   state' = A state + b, with A and b from the input and from what is stored; such steps
              compose to one of the same kind                                                       depth log n, a scan
    neither:  each step needs the result of the one before it                                       depth n

Whether the steps of a mixer *can* run at once is a property of its equation, and this asks the equation: the step in
float64. Counting the operations that forward issues would ask the implementation, and a fused LSTM is one operation.
A mixer whose outputs each see a bounded number of inputs, and one that is not causal and whose matrix is exact, is a
product over positions: depth 1. A running maximum is not affine, but its steps compose as well: where the matrix is
exact, straight pieces count as affine, since then no step feeds an output back through a curve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from seqmix.mixer import Mixer, State
from seqmix.properties.reference import reference

Depth = Literal["1", "log n", "n"]
READ = 9
"""Positions read before the step that is looked at."""
NEARBY = 1e-3
"""How far the state is moved to see whether the step is straight there."""
ROUNDING = 1e-9
"""Float64 rounding over a few sums; a curve of tanh or a sigmoid bends by NEARBY² or more."""


def numbers(state: Any) -> list[Tensor]:
    """The floating-point tensors of a state, in the order of its fields."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, State):
        parts = [getattr(state, field.name) for field in dataclasses.fields(state)]
    else:
        parts = list(state) if isinstance(state, tuple | list) else []
    return [tensor for part in parts for tensor in numbers(part)]


def _moved(state: State, to: State, share: float, which: list[bool]) -> State:
    """The state with the chosen ones of its tensors moved by a share of the way to another's."""
    moved = state.clone()
    for here, there, is_moved in zip(numbers(moved), numbers(to), which, strict=True):
        if is_moved:
            here.lerp_(there, share)
    return moved


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def is_bounded(mixer: Mixer) -> bool:
    """Whether each output sees a bounded number of inputs."""
    return mixer.receptive_field is not None


@torch.no_grad()
def depth(mixer: Mixer) -> Depth:
    """The number of steps that must wait for one another, as the sequence grows; see the rule above."""
    if not mixer.traits.causal:
        return "1" if mixer.traits.matrix == "exact" or is_bounded(mixer) else "n"
    if is_bounded(mixer):
        return "1"
    module = reference(mixer)
    generator = torch.Generator().manual_seed(0)
    one, other, token = (
        torch.randn(1, time, mixer.dim, generator=generator, dtype=torch.float64) for time in (READ, READ, 1)
    )
    start, end = module(one).state, module(other).state

    def after(state: State) -> list[Tensor]:
        return numbers(module.step(token[:, 0], state).state)

    before = torch.cat([tensor.flatten() for tensor in numbers(start)] or [torch.zeros(0)])
    result, elsewhere = after(start.clone()), after(end.clone())
    is_new = [
        not bool((torch.isin(here, before) | (here == there)).all())
        for here, there in zip(result, elsewhere, strict=True)
    ]
    if not any(is_new):
        return "1"
    if len(is_new) != len(numbers(start)):
        return "n"

    def new(share: float) -> list[Tensor]:
        found = after(_moved(start, end, share, is_new))
        return [tensor for tensor, is_one in zip(found, is_new, strict=True) if is_one]

    here, middle, there = new(0.0), new(0.5), new(1.0)
    size = max(_largest(here), _largest(there))
    if _largest(b - (a + c) / 2 for a, b, c in zip(here, middle, there, strict=True)) <= ROUNDING * size:
        return "log n"
    ahead, behind = new(NEARBY), new(-NEARBY)
    bend = _largest(a - 2 * b + c for a, b, c in zip(ahead, here, behind, strict=True))
    return "log n" if bend <= ROUNDING * NEARBY * size and mixer.traits.matrix == "exact" else "n"
