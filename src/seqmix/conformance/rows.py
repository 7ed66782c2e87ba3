"""Checks of a call: rows do not meet, lengths do not matter, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqmix.conformance.subject import LONGEST, Subject, expect, seeded, tensors_of
from seqmix.mixer import Mixed, Mixer, State

ODD_TIMES = (1, 2, 7, 63, LONGEST)
"""Lengths that fill no block of any size."""


@torch.no_grad()
def batch_invariance(subject: Subject) -> None:
    """A row gives alone what it gives in a batch, and states can be selected, repeated, joined and copied by row."""
    time, batch = 9, 3
    x = subject.x(batch, time)
    together = subject.forward(subject.oracle, x).y
    for dtype, module in subject.precisions:
        extra = subject.extra(x.to(dtype))
        for row in range(batch):
            own = {name: value[row : row + 1] for name, value in extra.items()}
            alone = module(x[row : row + 1].to(dtype), **own).y
            subject.close(alone, together[row : row + 1], f"row {row} alone against the same row in a batch", time)
    if subject.traits.causal and subject.is_plain:
        for dtype, module in subject.precisions:
            _rows_of_states(subject, dtype, module)


def _rows_of_states(subject: Subject, dtype: torch.dtype, module: Mixer) -> None:
    """Rows at different positions, joined into one state, go on as each alone."""
    capacity = 20
    lengths = (4, 9, 1)
    x = subject.x(3, capacity)
    states, expected = [], []
    for row, length in enumerate(lengths):
        part = x[row : row + 1].to(dtype)
        states.append(module(part[:, :length], capacity=capacity).state)
        expected.append(subject.oracle(x[row : row + 1]).y)
    joined: State = states[0].cat(*states[1:])
    order = [2, 0, 0, 1]
    chosen = joined.select(torch.tensor(order))
    kept = chosen.clone()
    mixed = Mixed(x, chosen)
    for step in range(3):
        tokens = torch.stack([x[row, lengths[row] + step] for row in order]).to(dtype)
        mixed = module.step(tokens, mixed.state)
        for place, row in enumerate(order):
            subject.close(
                mixed.y[place],
                expected[row][0, lengths[row] + step],
                f"the step of a row at position {lengths[row] + step}, joined with rows at other positions,",
                capacity,
            )
    again = module.step(torch.stack([x[row, lengths[row]] for row in order]).to(dtype), kept)
    wanted = torch.stack([expected[row][0, lengths[row]] for row in order])
    subject.close(again.y, wanted, "a step on a clone, after the steps on the original,", capacity)
    piece = torch.stack([x[row, lengths[row] : lengths[row] + 3] for row in range(3)]).to(dtype)
    y = module(piece, joined).y
    wanted = torch.stack([expected[row][0, lengths[row] : lengths[row] + 3] for row in range(3)])
    subject.close(y, wanted, "a piece after rows at different positions were joined", capacity)


@torch.no_grad()
def odd_sizes(subject: Subject) -> None:
    """Any length works, T = 1, 2, 7, 63, 100, from contiguous memory or not.

    Float32 gives what float64 gives; and that is what the start of a longer sequence gives where the mixer is causal,
    and what the matrix gives where it is not.
    """
    longest = subject.x(2, LONGEST)
    whole = subject.forward(subject.oracle, longest).y
    for time in ODD_TIMES:
        part = longest[:, :time]
        alone = subject.forward(subject.oracle, part).y
        if subject.is_plain and subject.traits.causal:
            subject.close(alone, whole[:, :time], f"the output for {time} of {LONGEST} positions", LONGEST)
        elif subject.traits.matrix == "exact":
            mixed = [matrix @ values for matrix, values in subject.mixing(subject.oracle, part) if values is not None]
            y = subject.oracle.readout(mixed, part)
            subject.close(alone, y, f"the output for {time} positions, against the matrix,", time)
    for time in ODD_TIMES:
        for batch in (1, 3):
            x = subject.x(batch, time, seed=time)
            expected = subject.forward(subject.oracle, x).y
            if not subject.traits.resamples:
                expect(
                    expected.shape == x.shape,
                    f"{time} positions in give an output of shape {tuple(expected.shape)}, not {tuple(x.shape)}",
                )
            y = subject.forward(subject.mixer, x.float()).y
            expect(y.dtype == torch.float32, f"a float32 input gives an output in {y.dtype}")
            subject.close(y, expected, f"the output for {batch} rows of {time} positions", time)
    x = subject.x(3, 7, seed=7)
    expected = subject.forward(subject.oracle, x).y
    transposed = x.float().transpose(0, 2).contiguous().transpose(0, 2)
    subject.close(subject.forward(subject.mixer, transposed).y, expected, "the output for a transposed input", 7)


def _snapshot(value: Any, name: str) -> dict[str, Any]:
    """Copies of all tensors and plain values that can be reached from the attributes of a module."""
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    found: dict[str, Any] = {}
    if isinstance(value, nn.Module):
        for key, part in vars(value).items():
            if key != "training":
                found |= _snapshot(part, f"{name}.{key}" if name else key)
    elif isinstance(value, State):
        found = {key: tensor.clone() for key, tensor in tensors_of(value, name).items()}
    elif isinstance(value, dict):
        for key, part in value.items():
            found |= _snapshot(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            found |= _snapshot(part, f"{name}[{index}]")
    elif value is None or isinstance(value, (bool, int, float, str)):
        found[name] = value
    return found


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The name of the first value that differs between two snapshots."""
    for name in [*before, *after]:
        if (name in before) != (name in after):
            return name
        one, other = before[name], after[name]
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return name
        if isinstance(one, Tensor):
            if one.shape != other.shape or not torch.equal(one, other):
                return name
        elif one != other:
            return name
    return None


def repeatable_and_pure(subject: Subject) -> None:
    """The same input gives the same output; nothing is written to the module, the input or a given state."""
    module, batch, time = subject.mixer, 2, 9
    x = subject.x(batch, time).float()
    kept = x.clone()
    random_before = torch.get_rng_state()
    attributes = _snapshot(module, "")

    def unharmed(call: str) -> None:
        expect(torch.equal(x, kept), f"{call} writes into its input")
        name = _changed(attributes, _snapshot(module, ""))
        expect(name is None, f"{call} changes the module's attribute {name}: a module keeps nothing between calls")
        expect(torch.equal(torch.get_rng_state(), random_before), f"{call} draws from the global random numbers")

    with seeded(3), torch.no_grad():
        random_before = torch.get_rng_state()
        first = subject.forward(module, x)
        unharmed("forward")
        y = first.y.clone()
        subject.forward(module, subject.x(3, 5, seed=8).float())
        second = subject.forward(module, x)
        expect(torch.equal(second.y, y), "the same input gives another output after a call with another one")
        subject.mixing(module, x)
        unharmed("mixing")
        if subject.is_plain and subject.traits.causal:
            _states_are_values(subject, module, x)
            unharmed("step")
    with torch.no_grad():
        _modes_agree(subject, x, y)


def _states_are_values(subject: Subject, module: Mixer, x: Tensor) -> None:
    """Forward leaves the state it is given as it is, for good, and a state owns its memory."""
    growing = subject.traits.state_growth == "linear"
    for capacity in (None, 20) if growing else (None,):
        whole = module(x, capacity=capacity).y
        part = x[:, :5].clone()
        first = module(part, capacity=capacity)
        part.zero_()
        first.y.zero_()
        before = {name: tensor.clone() for name, tensor in tensors_of(first.state).items()}
        second = module(x[:, 5:8], first.state)
        subject.close(second.y, whole[:, 5:8].double(), "a piece after the memory of the first piece was reused", 9)
        branch = Mixed(second.y, second.state.clone())
        module.step(x[:, 8], second.state)
        module.step(x[:, 0], module(x[:, 3:4], first.state).state)
        name = _changed(before, tensors_of(first.state))
        expect(name is None, f"forward, or a step after it, writes into the state that forward was given ({name})")
        again = module(x[:, 5:8], first.state).y
        expect(torch.equal(again, second.y), "forward from the same state twice gives two outputs")
        # Two sequences take turns: what one leaves must not reach the other.
        other = module(x.flip(1)[:, :5], capacity=capacity).state
        token = x[:, 8].clone()
        module.step(x[:, 0], other)
        y = module.step(token, branch.state).y
        expect(torch.equal(token, x[:, 8]), "step writes into its input")
        subject.close(y, whole[:, 8].double(), "a step between the steps of another sequence", 9)


def _modes_agree(subject: Subject, x: Tensor, y: Tensor) -> None:
    """Training mode changes nothing in a mixer without chance; one that draws must draw in training mode only."""
    trained = subject.build(seed=0).train()
    outputs = []
    for seed in (5, 6):
        with seeded(seed):
            before = torch.get_rng_state()
            outputs.append(subject.forward(trained, x).y)
            drew = not torch.equal(before, torch.get_rng_state())
    if torch.equal(outputs[0], outputs[1]):
        expect(not drew, "forward draws random numbers in training mode, to no effect")
        expect(torch.equal(outputs[0], y), "training mode changes the output, although nothing is random")
