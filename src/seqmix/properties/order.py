"""How many steps must wait for one another to mix n positions, from what `step` does to the state.

    stored:   every number after the step is one from before it, or does not depend on the state    depth 1
    affine:   state' = A state + b, with A and b from the input and from what is stored; such steps
              compose to one of the same kind                                                       depth log n, a scan
    neither:  each step needs the result of the one before it                                       depth n

Whether the steps of a mixer *can* run at once is a property of its equation, and this asks the equation: the step in
float64. Counting the operations that forward issues would ask the implementation, and a fused LSTM is one operation.
A mixer whose outputs each see a bounded number of inputs, and one that is not causal and whose matrix is exact, is a
product over positions: depth 1.

A state of several tensors may be a cascade: one that is affine and depends on none of the others, such as a running
scale, is known once its own scan is done, and the others need be affine only when it is given. A running maximum is
not affine, but its steps compose as well: where the matrix is exact, straight pieces count as affine, since then no
step feeds an output back through a curve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from seqmix.mixer import Mixer, State
from seqmix.properties.reference import Reference

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
    module = Reference(mixer)
    generator = torch.Generator().manual_seed(0)
    one, other, token = (
        torch.randn(1, time, mixer.dim, generator=generator, dtype=torch.float64) for time in (READ, READ, 1)
    )
    start, end = module.forward(one).state, module.forward(other).state

    def step(state: State) -> State:
        return module.step(token[:, 0], state).state

    before = torch.cat([tensor.flatten() for tensor in numbers(start)] or [torch.zeros(0)])
    result, elsewhere = numbers(step(start.clone())), numbers(step(end.clone()))
    is_new = [
        not bool((torch.isin(here, before) | (here == there)).all())
        for here, there in zip(result, elsewhere, strict=True)
    ]
    if not any(is_new):
        return "1"
    if len(is_new) != len(numbers(start)):
        return "n"

    def after(share: float, moved: set[int], kept: set[int]) -> list[Tensor]:
        """The new values of the tensors `kept`, when those of `moved` go a share of the way to the other state."""
        state = start.clone()
        for place, (here, there) in enumerate(zip(numbers(state), numbers(end), strict=True)):
            if place in moved:
                here.lerp_(there, share)
        return [tensor for place, tensor in enumerate(numbers(step(state))) if place in kept]

    remaining = {place for place, is_one in enumerate(is_new) if is_one}
    is_exact = mixer.traits.matrix == "exact"
    while remaining:
        alone = next((p for p in sorted(remaining) if _is_composable(after, {p}, remaining, is_exact)), None)
        if alone is None:
            return "log n" if _is_composable(after, remaining, remaining, is_exact) else "n"
        remaining.remove(alone)
    return "log n"


def _is_composable(
    after: Callable[[float, set[int], set[int]], list[Tensor]], which: set[int], remaining: set[int], is_exact: bool
) -> bool:
    """Whether the tensors `which` do not depend on the others that remain, and are affine in what they were before."""
    here, elsewhere = after(0.0, set(), which), after(1.0, remaining - which, which)
    if not all(torch.equal(a, b) for a, b in zip(here, elsewhere, strict=True)):
        return False
    middle, there = after(0.5, which, which), after(1.0, which, which)
    size = max(_largest(here), _largest(there))
    if _largest(b - (a + c) / 2 for a, b, c in zip(here, middle, there, strict=True)) <= ROUNDING * size:
        return True
    ahead, behind = after(NEARBY, which, which), after(-NEARBY, which, which)
    bend = _largest(a - 2 * b + c for a, b, c in zip(ahead, here, behind, strict=True))
    return is_exact and bend <= ROUNDING * NEARBY * size
