"""Checks of the declared costs against what is counted: FLOPs, parameters, the bytes of the state."""

from __future__ import annotations

import torch

from seqmix.conformance.subject import Subject, expect
from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter

SIZES = ((1, 13), (3, 32))
"""(batch, time) pairs; two, so that a wrong power of either shows."""


@torch.no_grad()
def flops(subject: Subject) -> None:
    """product_flops is what the counter counts in a float32 forward, exactly; parameters are the real number."""
    for batch, time in SIZES:
        cost = subject.mixer.cost(batch, time)
        with FlopCounter() as counter:
            subject.forward(subject.mixer, subject.x(batch, time).float())
        expect(
            cost.product_flops == counter.total,
            f"product_flops for {batch} x {time} is declared as {cost.product_flops}, counted are {counter.total} "
            f"({counter.summary()})",
        )
        expect(cost.other_flops >= 0, f"other_flops is {cost.other_flops}")
        real = sum(parameter.numel() for parameter in subject.mixer.parameters())
        expect(cost.parameters == real, f"parameters is declared as {cost.parameters}, there are {real}")


@torch.no_grad()
def state_bytes(subject: Subject) -> None:
    """state_bytes is what the state's tensors take, at two lengths; a capacity is taken once and kept to."""
    traits = subject.traits
    expect(
        (traits.state_growth is not None) == traits.causal,
        f"state_growth is {traits.state_growth!r} where causal is {traits.causal}: the causal mixers have a state",
    )
    found = []
    for batch, time in ((1, 8), (3, 16)):
        declared = subject.mixer.cost(batch, time).state_bytes
        state = subject.mixer(subject.x(batch, time).float()).state
        real = 0 if state is None else state.nbytes
        expect(declared == real, f"state_bytes for {batch} x {time} is declared as {declared}, the state takes {real}")
        found.append(real // batch)
    if not traits.causal:
        return
    short, long = found
    if traits.state_growth == "constant":
        expect(short == long, f"the state is declared constant, but a row takes {short} bytes at 8 and {long} at 16")
        empty = subject.mixer.init_state(3).nbytes
        expect(empty == 3 * long, f"the empty state takes {empty} bytes, after 16 positions {3 * long}")
        return
    expect(short < long, f"the state is declared to grow, but a row takes {short} bytes at 8 and {long} at 16")
    _capacity_is_kept(subject)


def _capacity_is_kept(subject: Subject) -> None:
    """A state made for 8 positions takes the bytes of 8 from the start, and an 9th is an error that says 8."""
    capacity, x = 8, subject.x(2, 9).float()
    declared = subject.mixer.cost(2, capacity).state_bytes
    for filled in (0, 3, capacity):
        state = subject.mixer.init_state(2, capacity)
        if filled:
            state = subject.mixer(x[:, :filled], state).state
        expect(
            state.nbytes == declared,
            f"a state with capacity {capacity} takes {state.nbytes} bytes after {filled} positions, not {declared}",
        )
    full = subject.mixer(x[:, :capacity], capacity=capacity).state
    for what, run in (
        ("a step", lambda: subject.mixer.step(x[:, capacity], full.clone())),
        ("a piece", lambda: subject.mixer(x[:, capacity:], full)),
        ("a first piece", lambda: subject.mixer(x, capacity=capacity)),
    ):
        try:
            run()
        except InputError as error:
            expect(str(capacity) in str(error), f"the error of {what} over the capacity does not name it: {error}")
        else:
            expect(False, f"{what} beyond a capacity of {capacity} raises no InputError")
