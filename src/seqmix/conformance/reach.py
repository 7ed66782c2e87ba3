"""Checks of how far a mixer sees: never ahead, and exactly as far back as it says."""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.conformance.gradients import dependence, gradient_sizes
from seqmix.conformance.subject import LONGEST, Subject, expect, normal, rounding

LONGEST_SPAN = 2048
"""The largest receptive field that an example may have."""


def causality(subject: Subject) -> None:
    """No output depends on a later input, by gradient and by replacing the future."""
    time = min(subject.probe_time, 24)
    x = subject.x(2, time)
    seen = dependence(lambda leaf: [subject.oracle(leaf).y], x, subject)
    ahead = seen & torch.ones(time, time, dtype=torch.bool).triu(1)
    if bool(ahead.any()):
        target, source = ahead.nonzero()[0].tolist()
        expect(False, f"the output at {target} depends on the later input at {source}")
    with torch.no_grad():
        for dtype, module in subject.precisions:
            before = module(x.to(dtype)).y
            for cut in (1, time // 2, time - 1):
                changed = x.clone()
                changed[:, cut:] = normal(2, time - cut, subject.dim, seed=cut)
                after = module(changed.to(dtype)).y
                what = f"the output before {cut}, when only later inputs change"
                subject.close(after[:, :cut], before[:, :cut], what, time)


def receptive_field_by_gradient(subject: Subject) -> None:
    """The farthest input that an output depends on is at the receptive field's edge, and positions_seen counts them."""
    span, positions_seen = subject.mixer.receptive_field, subject.mixer.positions_seen
    if span is None:
        expect(positions_seen is None, f"receptive_field is None, but positions_seen is {positions_seen}")
        time, target = LONGEST, LONGEST - 1
        farthest = _farthest_without_bound(subject, target)
    else:
        expect(span >= 1, f"receptive_field is {span}: it must be at least 1")
        expect(span <= LONGEST_SPAN, f"receptive_field is {span}: give an example of at most {LONGEST_SPAN} to probe")
        time = span + 3 if subject.traits.causal else 2 * span + 3
        target = time - 1 if subject.traits.causal else span + 1
        if subject.is_plain and _widest(subject, time, target) != target:
            # Positions of a block see different spans.
            time = 2 * span + 3
            target = _widest(subject, time, target)
    sizes = torch.zeros(time, dtype=torch.float64)
    for draw in range(4):
        leaf = subject.x(2, time, seed=20 + draw).requires_grad_()
        with torch.enable_grad():
            y = subject.forward(subject.oracle, leaf).y
        if subject.traits.resamples:
            # Outputs are not at the places of inputs, but the middle one looks at the middle of the inputs.
            target = y.shape[1] // 2
        sizes = torch.maximum(sizes, gradient_sizes([y], leaf, target, seed=600 + draw))
    if span is None:
        earliest = int((sizes > 0).nonzero()[0]) if bool((sizes > 0).any()) else time
        expect(
            earliest <= farthest,
            f"receptive_field is None, and {farthest} to {target} is a link, but the output there sees none before "
            f"{earliest}",
        )
        return
    seen = (sizes > rounding(torch.float64, subject.reduction(time)) * sizes.max()).nonzero().flatten()
    expect(len(seen) > 0, "no output depends on any input")
    found = int(seen[-1] - seen[0]) + 1 if not subject.traits.causal else target - int(seen[0]) + 1
    expect(found == span, f"receptive_field is declared as {span}, but the gradient reaches {found} positions")
    expect(
        positions_seen == len(seen),
        f"positions_seen is declared as {positions_seen}, but the gradient finds {len(seen)}",
    )


def _extents(subject: Subject, time: int) -> Tensor:
    """(time,): the positions from the first to the last one that each target is linked to."""
    links = subject.mixer.links(time).int()
    return torch.where(links.any(dim=1), time - links.flip(1).argmax(1) - links.argmax(1), 0)


def _widest(subject: Subject, time: int, target: int) -> int:
    """The target whose links span the most positions, the one nearest to the given one where there are several."""
    extents = _extents(subject, time)
    widest = (extents == extents.max()).nonzero()[:, 0]
    return int(widest[(widest - target).abs().argmin()])


def _farthest_without_bound(subject: Subject, target: int) -> int:
    """The first position that `target` is linked to, where links grow with the sequence; 0 without links of its own."""
    if not subject.is_plain:
        return 0
    short, long = (int(_extents(subject, time).max()) for time in (target // 2, target + 1))
    expect(
        long > short,
        f"receptive_field is None (no bound), but links span {long} of {target + 1} positions and {short} of half",
    )
    row = subject.mixer.links(target + 1)[target]
    expect(
        bool(row.all()) or not subject.mixer.sees_everything,
        f"sees_everything is declared, but {int((~row).nonzero()[0])} to {target} is no link" if not row.all() else "",
    )
    return int(row.int().argmax())
