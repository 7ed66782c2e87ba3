"""Checks of the state: a sequence comes out the same in one forward, in pieces, and token by token."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from seqmix.conformance.subject import FUTURE, Subject, compare_futures, compare_states
from seqmix.mixer import Mixed, Mixer, SharingMixer, State


def _capacities(subject: Subject, time: int) -> list[int | None]:
    return [None, time] if subject.traits.state_growth == "linear" else [None]


@torch.no_grad()
def forward_equals_steps(subject: Subject) -> None:
    """Steps from an empty state give forward's outputs, one by one, and its final state."""
    batch, time = 2, subject.probe_time
    x = subject.x(batch, time)
    expected = subject.oracle(x)
    for dtype, module in subject.precisions:
        for capacity in _capacities(subject, time + FUTURE):
            state = module.init_state(batch, capacity, dtype=dtype)
            for index in range(time):
                y, state = module.step(x[:, index].to(dtype), state)
                subject.close(y, expected.y[:, index], f"the output of step {index} against forward's", time)
            compare_states(subject, module, state, expected.state, "the state after the steps")
            compare_futures(subject, module, state, expected.state.clone(), "the state after the steps")
        if isinstance(module, SharingMixer):
            _steps_hand_on_the_same(subject, module, x.to(dtype))


def _steps_hand_on_the_same(subject: Subject, module: SharingMixer, x: Tensor) -> None:
    """What steps hand on to the layers above is what forward does, in a first layer and in a later one."""
    time = x.shape[1]
    for given in (None, x.flip(-1)) if subject.starts_sharing else (x.flip(-1),):
        expected = module.forward_sharing(x, None, given)[1]
        state: State = module.init_state(len(x), dtype=x.dtype)
        for index in range(time):
            own = None if given is None else given[:, index]
            (_, state), shared = module.step_sharing(x[:, index], state, own)
            subject.close(shared, expected[:, index].double(), f"what step {index} hands on", time)


def _steps(module: Mixer, x: Tensor, state: State) -> Mixed:
    outputs = []
    for token in x.unbind(1):
        y, state = module.step(token, state)
        outputs.append(y)
    return Mixed(torch.stack(outputs, dim=1), state)


@torch.no_grad()
def pieces_equal_whole(subject: Subject) -> None:
    """Forward pieces and runs of steps, cut at random and mixed at random, give what one forward gives."""
    batch, time = 2, subject.probe_time
    x = subject.x(batch, time)
    whole = subject.oracle(x)
    for draw in range(6):
        choice = random.Random(draw)
        cuts = sorted(choice.sample(range(1, time), min(choice.randint(1, 5), time - 1)))
        if draw == 0:
            cuts = [1, 2, time - 1]
        pieces = list(zip([0, *cuts], [*cuts, time], strict=True))
        for dtype, module in subject.precisions:
            for capacity in _capacities(subject, time + FUTURE):
                state = module.init_state(batch, capacity, dtype=dtype) if choice.random() < 0.5 else None
                for first, last in pieces:
                    part = x[:, first:last].to(dtype)
                    if state is not None and first > 0 and choice.random() < 0.4:
                        mixed = _steps(module, part, state)
                        how = "steps"
                    else:
                        mixed = module(part, state, capacity=capacity)
                        how = "forward"
                    subject.close(mixed.y, whole.y[:, first:last], f"{how} over positions {first} to {last - 1}", time)
                    state = mixed.state
                what = f"the state after pieces cut at {cuts}"
                compare_states(subject, module, mixed.state, whole.state, what)
                compare_futures(subject, module, mixed.state, whole.state.clone(), what)
