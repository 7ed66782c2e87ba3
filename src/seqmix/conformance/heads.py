"""The check of how far each head sees.

Shapes: B batch, T time, S source, H heads of all matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.conformance.gradients import gradient_sizes
from seqmix.conformance.subject import LONGEST, Subject, expect, rounding

DRAWS = 3


def head_spans_by_gradient(subject: Subject) -> None:
    """What a head mixes depends on inputs as far away as its span says, and on none beyond.

    A head without a bound sees farther in a longer sequence.
    """
    mixer = subject.mixer
    with torch.no_grad():
        heads = _links_of_heads(subject, 1).shape[0]
    spans = [mixer.receptive_field] * heads if mixer.head_spans is None else list(mixer.head_spans)
    expect(len(spans) == heads, f"head_spans has {len(spans)} entries, but the matrices have {heads} heads")
    bounded = [span for span in spans if span is not None]
    wrong = [span for span in bounded if span < 1]
    expect(not wrong, f"head_spans holds {wrong[:1]}: a span is at least 1")
    if len(bounded) < heads:
        _grow(subject, [head for head, span in enumerate(spans) if span is None])
    if not bounded:
        return
    time = max(bounded) + 3 if subject.traits.causal else 2 * max(bounded) + 3
    targets = _widest_targets(_links_of_heads(subject, time), causal=subject.traits.causal)
    sizes = torch.zeros(heads, time, dtype=torch.float64)
    for draw in range(DRAWS):
        leaf = subject.x(2, time, seed=40 + draw).requires_grad_()
        with torch.enable_grad():
            mixed = [
                part.matrix[:, head].expand(2, -1, -1) @ part.values[:, head]
                for part in subject.oracle.mixing(leaf)
                if part.values is not None
                for head in range(part.matrix.shape[1])
            ]
        for head, (part, target) in enumerate(zip(mixed, targets, strict=True)):
            if spans[head] is not None:
                found = gradient_sizes([part], leaf, target, seed=700 + draw)
                sizes[head] = torch.maximum(sizes[head], found)
    for head, (span, target) in enumerate(zip(spans, targets, strict=True)):
        if span is not None:
            _expect_span(subject, head, span, target, sizes[head])


def _expect_span(subject: Subject, head: int, span: int, target: int, sizes: Tensor) -> None:
    """The span is between what the gradient surely reaches and what it reaches with rounding."""
    surely = sizes > rounding(torch.float64, subject.reduction(len(sizes))) * sizes.max()
    least, most = (_extent(subject, seen, target) for seen in (surely, sizes > 0))
    # What is left of a dense product after exact cancellation is rounding; what is far may be below it.
    expect(
        least <= span <= most,
        f"the span of head {head} is declared as {span}, but the gradient of what it mixes reaches "
        f"{least if span < least else most} positions: head_spans must say so",
    )


def _extent(subject: Subject, seen: Tensor, target: int) -> int:
    """The positions from the first to the last one seen, the target's own among them."""
    if not subject.traits.resamples:
        seen = seen.clone()
        seen[target] = True
    found = seen.nonzero().flatten()
    return int(found[-1] - found[0]) + 1 if len(found) else 0


@torch.no_grad()
def _links_of_heads(subject: Subject, time: int) -> Tensor:
    """bool (heads, time, source): where the matrix of each head is not zero."""
    time = max(time, _shortest(subject))
    parts = subject.oracle.mixing(subject.x(2, time, seed=40))
    return torch.cat([(part.matrix != 0).any(dim=0) for part in parts])


def _shortest(subject: Subject) -> int:
    """A length that leaves an output where the mixer resamples."""
    return subject.mixer.receptive_field or 1 if subject.traits.resamples else 1


def _spans_of_links(links: Tensor) -> Tensor:
    """(heads, time): the positions from the first to the last link of each target."""
    seen = links.int()
    return torch.where(links.any(dim=2), links.shape[2] - seen.flip(2).argmax(2) - seen.argmax(2), 0)


def _widest_targets(links: Tensor, *, causal: bool) -> list[int]:
    """For each head a target that its links span most for: the last such one, or the one nearest to the middle."""
    spans = _spans_of_links(links)
    wanted = links.shape[1] - 1 if causal else links.shape[1] // 2
    found = []
    for head in spans:
        widest = (head == head.max()).nonzero().flatten()
        found.append(int(widest[(widest - wanted).abs().argmin()]))
    return found


def _grow(subject: Subject, unbounded: list[int]) -> None:
    short, long = (_spans_of_links(_links_of_heads(subject, time)).amax(dim=1) for time in (LONGEST // 2, LONGEST))
    for head in unbounded:
        expect(
            int(long[head]) > int(short[head]),
            f"the span of head {head} is declared to have no bound, but its links span {int(long[head])} of {LONGEST} "
            f"positions and {int(short[head])} of half: head_spans must say so",
        )
