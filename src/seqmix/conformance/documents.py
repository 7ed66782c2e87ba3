"""The check of packed documents: each comes out as if it stood alone.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from seqmix.conformance.subject import Subject, compare_futures, compare_states, expect
from seqmix.mixer import Mixed, Mixer, State


def _packings(time: int) -> list[list[list[int]]]:
    """Batches of rows, each row the lengths of its documents."""
    fixed = [
        [[time], [5, time - 5]],
        [[1] * time, [1, time - 2, 1]],
        [[3, 1, 1, time - 5], [time - 1, 1]],
    ]
    drawn = []
    for seed in range(2):
        choice = random.Random(seed)
        rows = []
        for _ in range(3):
            cuts = sorted(choice.sample(range(1, time), choice.randint(1, 4)))
            rows.append([last - first for first, last in zip([0, *cuts], [*cuts, time], strict=True)])
        drawn.append(rows)
    return fixed + drawn


def _ids(rows: list[list[int]], seed: int) -> Tensor:
    """Ids for the documents: neighbours differ, and an id may come back later, which is then another document."""
    choice = random.Random(seed)
    names = [0, 7, -1, 2**40]
    ids = []
    for lengths in rows:
        row: list[int] = []
        for length in lengths:
            row += [choice.choice([name for name in names if not row or name != row[-1]])] * length
        ids.append(row)
    return torch.tensor(ids)


def _separately(module: Mixer, x: Tensor, rows: list[list[int]]) -> tuple[Tensor, list[State | None]]:
    """What forward gives for each document alone, put back in its place, and the last state of each row."""
    outputs, states = [], []
    for row, lengths in zip(x, rows, strict=True):
        mixed = [module(part[None]) for part in row.split(lengths)]
        outputs.append(torch.cat([one.y for one in mixed], dim=1))
        states.append(mixed[-1].state)
    return torch.cat(outputs), states


def packed_equals_separate(subject: Subject) -> None:
    """Documents packed in a row give the outputs, gradients and last state of each alone, in pieces too."""
    time = min(max(subject.probe_time, 13), 40)
    for index, rows in enumerate(_packings(time)):
        ids = _ids(rows, seed=index)
        x = subject.x(len(rows), time, seed=30 + index)
        where = f"documents of lengths {rows}"
        leaf = x.clone().requires_grad_()
        expected, states = _separately(subject.oracle, leaf, rows)
        cotangent = subject.x(len(rows), time, seed=60 + index)
        (slope,) = torch.autograd.grad((expected * cotangent).sum(), leaf)
        for dtype, module in subject.precisions:
            packed_leaf = x.to(dtype).requires_grad_()
            packed = module(packed_leaf, document_ids=ids)
            subject.close(packed.y, expected.detach(), f"the packed output for {where}", time)
            (packed_slope,) = torch.autograd.grad((packed.y * cotangent.to(dtype)).sum(), packed_leaf)
            subject.close(packed_slope, slope, f"the gradient of the packed input for {where}", time, slack=4)
        if not subject.traits.causal:
            continue
        with torch.no_grad():
            _states_of_packed(subject, x, ids, rows, expected.detach(), states)


def _states_of_packed(
    subject: Subject, x: Tensor, ids: Tensor, rows: list[list[int]], expected: Tensor, states: list[State | None]
) -> None:
    """The state after a packed piece is that of the last document, and pieces may end anywhere, borders too."""
    time = x.shape[1]
    where = f"documents of lengths {rows}"
    border = rows[0][0]
    cuts = {min(border, time - 1), time // 2}
    for dtype, module in subject.precisions:
        whole = module(x.to(dtype), document_ids=ids).state
        _last_documents(subject, module, whole, states, ids, f"the state after packed {where}", with_future=True)
        for cut in sorted(cuts):
            first = module(x[:, :cut].to(dtype), document_ids=ids[:, :cut])
            second = module(x[:, cut:].to(dtype), first.state, document_ids=ids[:, cut:])
            what = f"packed {where} in pieces cut at {cut}"
            subject.close(torch.cat([first.y, second.y], dim=1), expected, what, time)
            _last_documents(subject, module, second.state, states, ids, f"the state after {what}", with_future=False)
        mixed = Mixed(expected[:, :0], module(x[:, :border].to(dtype), document_ids=ids[:, :border]).state)
        for index in range(border, time):
            same = ids[:, index] == ids[:, index - 1]
            if not bool(same.all()):
                break
            mixed = module.step(x[:, index].to(dtype), mixed.state)
            subject.close(mixed.y, expected[:, index], f"step {index} after a packed piece of {where}", time)


def _last_documents(
    subject: Subject,
    module: Mixer,
    actual: State,
    states: list[State | None],
    ids: Tensor,
    what: str,
    *,
    with_future: bool,
) -> None:
    """The constant state is compared number by number; what comes after it, only once for each packing."""
    for row, state in enumerate(states):
        assert state is not None
        one = actual.select(torch.tensor([row]))
        expect(
            torch.equal(one.document, ids[row, -1:]),
            f"{what} says document {one.document.tolist()} in row {row}: the last one is {ids[row, -1:].tolist()}",
        )
        compare_states(subject, module, one, state, f"{what}, row {row}")
        if with_future or subject.traits.state_growth == "linear":
            compare_futures(subject, module, one, state.clone(), f"{what}, row {row}")
