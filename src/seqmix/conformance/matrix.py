"""Checks of the matrix: it is what forward does, its values are local, its readout is positionwise, its links are true.

Shapes: B batch, T time, S source, D model width, H heads, W width of a head's values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqmix.conformance.gradients import dependence
from seqmix.conformance.subject import Subject, expect, normal, rounding
from seqmix.mixer import Mixing

FINITE_DIFFERENCE = 1e-5
"""The step of a central difference in float64: its error, about step², and rounding's, about eps / step, balance."""


def _check_shapes(parts: list[Mixing], batch: int, time: int | None, jacobian: bool) -> None:
    expect(isinstance(parts, list) and len(parts) > 0, "mixing returns no list of Mixing")
    for matrix, values in parts:
        expect(
            matrix.dim() == 4 and matrix.shape[0] in (1, batch) and time in (None, matrix.shape[2]),
            f"the matrix has shape {tuple(matrix.shape)}: it must be (1 or batch, heads, time, source)",
        )
        if jacobian:
            expect(values is None, "a Jacobian mixer returns values: they must be None")
            continue
        expect(values is not None, "an exact mixer returns None for its values")
        assert values is not None
        expect(
            values.dim() == 4 and values.shape[:3] == (batch, matrix.shape[1], matrix.shape[3]),
            f"the values have shape {tuple(values.shape)}: they must be (batch, heads, source, width)",
        )


@torch.no_grad()
def matrix_reproduces_forward(subject: Subject) -> None:
    """readout(M · values) is forward; the matrix of a Jacobian mixer is the norm of finite differences."""
    if subject.traits.matrix == "jacobian":
        _jacobian_by_differences(subject)
        return
    batch = 2
    for time in sorted({1, 9, min(subject.probe_time, 40)}):
        x = subject.x(batch, time)
        expected = subject.forward(subject.oracle, x).y
        parts = subject.mixing(subject.oracle, x)
        _check_shapes(parts, batch, expected.shape[1], jacobian=False)
        y = subject.oracle.readout(_mixed(parts), x)
        subject.close(y, expected, f"readout(M · values) for {time} positions", time)
    other = subject.mixing(subject.oracle, subject.x(batch, 9, seed=5), seed=5)
    parts = subject.mixing(subject.oracle, subject.x(batch, 9))
    same = all(
        a.matrix.shape == b.matrix.shape and torch.equal(a.matrix, b.matrix) for a, b in zip(parts, other, strict=True)
    )
    if subject.traits.content_dependent:
        # A softmax over a single link is 1 whatever the input.
        chooses = subject.traits.resamples or bool((subject.mixer.links(9).sum(dim=1) > 1).any())
        expect(not (same and chooses), "content_dependent is declared, but the matrix is the same for two inputs")
    else:
        expect(same, "content_dependent is not declared, but two inputs have different matrices")
        sizes = [part.matrix.shape[0] for part in parts]
        expect(
            set(sizes) == {1}, f"the matrix is the same for every input, but its leading size is {max(sizes)}, not 1"
        )


def _jacobian_by_differences(subject: Subject) -> None:
    """The matrix entry (t, s) is the Frobenius norm of dy_t/dx_s, (D, D)."""
    batch, time = 2, 6
    x = subject.x(batch, time)
    parts = subject.oracle.mixing(x)
    _check_shapes(parts, batch, time, jacobian=True)
    expect(len(parts) == 1 and parts[0].matrix.shape[1] == 1, "the Jacobian's matrix must be one Mixing with one head")
    squares = torch.zeros(batch, time, time, dtype=torch.float64)
    for source in range(time):
        for channel in range(subject.dim):
            ahead, behind = x.clone(), x.clone()
            ahead[:, source, channel] += FINITE_DIFFERENCE
            behind[:, source, channel] -= FINITE_DIFFERENCE
            slope = (subject.oracle(ahead).y - subject.oracle(behind).y) / (2 * FINITE_DIFFERENCE)
            squares[:, :, source] += slope.square().sum(dim=2)
    expected = squares.sqrt()
    error = float((parts[0].matrix[:, 0] - expected).abs().max())
    # Curvature leaves step² and rounding eps / step, both far below this.
    allowed = 100 * FINITE_DIFFERENCE * FINITE_DIFFERENCE * subject.dim + 1e-8 * float(expected.max())
    expect(error <= allowed, f"the Jacobian is off by {error:.2g} from finite differences (allowed {allowed:.2g})")


def _mixed(parts: list[Mixing]) -> list[Tensor]:
    return [matrix @ values for matrix, values in parts if values is not None]


def readout_is_positionwise(subject: Subject) -> None:
    """The readout at t reads of what was mixed only position t, which it does read, and of x what is within reach."""
    reach = subject.traits.reach
    batch, time = 2, 7 + reach
    x = subject.x(batch, time)
    with torch.no_grad():
        mixed = _mixed(subject.mixing(subject.oracle, x))
    with torch.no_grad():
        before = subject.oracle.readout(mixed, x)
        for position in (0, 3, time - 1):
            changed_x = x.clone()
            changed_x[:, position] = normal(batch, subject.dim, seed=9)
            changed = [part.clone() for part in mixed]
            for part in changed:
                part[:, :, position] = torch.randn(
                    part[:, :, position].shape, generator=torch.Generator().manual_seed(9), dtype=part.dtype
                )
            for what, y, reached in (
                ("x", subject.oracle.readout(mixed, changed_x), reach),
                ("what was mixed", subject.oracle.readout(changed, x), 1),
            ):
                others = [index for index in range(time) if not position <= index < position + reached]
                if not others:
                    continue
                moved = (y - before)[:, others].abs().max()
                allowed = rounding(x.dtype, subject.reduction(time)) * float(before.abs().max())
                expect(
                    float(moved) <= allowed,
                    f"the readout is not positionwise: {what} at {position} changes it elsewhere by {moved:.2g}",
                )
    leaves = [part.clone().requires_grad_() for part in mixed]
    x_leaf = x.clone().requires_grad_()
    y = subject.oracle.readout(leaves, x_leaf)
    expect(y.requires_grad, "the readout depends neither on what was mixed nor on x")
    reads_mixed = torch.zeros(time, dtype=torch.bool)
    for position in range(time):
        cotangent = normal(*y[:, position].shape, seed=position)
        gradients = torch.autograd.grad(
            (y[:, position] * cotangent).sum(),
            [*leaves, x_leaf],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for what, gradient, axis in [
            *(("what was mixed", gradient, 2) for gradient in gradients[:-1]),
            ("x", gradients[-1], 1),
        ]:
            other_axes = [a for a in range(gradient.dim()) if a != axis]
            by_position = gradient.abs().amax(dim=other_axes)
            if what != "x":
                reads_mixed[position] |= bool(by_position[position] > 0)
            wrong = by_position.clone()
            wrong[max(0, position - reach + 1) if what == "x" else position : position + 1] = 0
            allowed = rounding(x.dtype, subject.reduction(time)) * float(by_position.max())
            expect(
                float(wrong.max()) <= allowed,
                f"the readout is not positionwise: at {position} its gradient reaches {what} at {int(wrong.argmax())}",
            )
    expect(bool(reads_mixed.all()), "the readout does not depend on what was mixed")


def values_are_local(subject: Subject) -> None:
    """Values at s depend on x[s - reach + 1 ... s] only, on all of that, and they are not where the mixing happens."""
    reach = subject.traits.reach
    expect(reach >= 1, f"reach is {reach}: it must be at least 1")
    time = reach + 6
    batch = 2
    seen = torch.zeros(time, time, dtype=torch.bool)
    for draw in range(3):
        x, source = subject.x(batch, time, seed=draw), subject.x(batch, time, seed=300 + draw)

        def values_of(source: Tensor, x: Tensor = x) -> list[Tensor]:
            mixing: Callable[..., list[Mixing]] = subject.oracle.mixing
            parts = mixing(x, memory=source) if subject.with_memory else mixing(source)
            return [part.values for part in parts if part.values is not None]

        seen |= dependence(lambda leaf: [v.transpose(1, 2).flatten(2) for v in values_of(leaf)], source, subject)
        with torch.no_grad():
            before = values_of(source)
            position = draw * 2
            changed = source.clone()
            changed[:, position] = normal(batch, subject.dim, seed=400 + draw)
            inside = torch.zeros(time, dtype=torch.bool)
            inside[position : position + reach] = True
            for one, other in zip(before, values_of(changed), strict=True):
                moved = (one - other).abs()[:, :, ~inside]
                allowed = rounding(one.dtype, subject.reduction(time)) * float(one.abs().max())
                last = position + reach - 1
                expect(
                    not moved.numel() or float(moved.max()) <= allowed,
                    f"values are not local: x at {position} changes values outside {position} to {last}",
                )
    steps = torch.arange(time)
    back = steps[:, None] - steps[None, :]
    outside = seen & ~((back >= 0) & (back < reach))
    if bool(outside.any()):
        at, source_at = outside.nonzero()[0].tolist()
        expect(False, f"values are not local: at {at} they depend on x at {source_at}, outside the reach of {reach}")
    far = seen[reach - 1 :].diagonal()
    expect(bool(far.any()), f"reach is declared as {reach}, but values never depend on the input that far back")
    span = subject.mixer.receptive_field
    if subject.is_plain and span != 1:
        links = subject.mixer.links(time if span is None else span)
        between = links & ~torch.eye(len(links), dtype=torch.bool)
        expect(
            bool(between.any()),
            "the matrix moves nothing between positions: all of the receptive field is inside the values",
        )


def links_by_gradient(subject: Subject) -> None:
    """links is what the matrix uses and what lags says, each carries something, forward depends on nothing else."""
    span = subject.mixer.receptive_field
    time = 12 if span is None else min(max(span + 3, 8), 40)
    links = subject.mixer.links(time)
    expect(
        links.dtype == torch.bool and links.shape == (time, time),
        f"links({time}) is {links.dtype} of shape {tuple(links.shape)}: it must be bool of ({time}, {time})",
    )
    if span is not None:
        _expect_lags(subject, span)
    used = torch.zeros(time, time, dtype=torch.bool)
    reached = torch.zeros(time, time, dtype=torch.bool)
    for draw in range(3):
        x = subject.x(3, time, seed=10 + draw)
        with torch.no_grad():
            for part in subject.oracle.mixing(x):
                used |= (part.matrix != 0).any(dim=0).any(dim=0)
        reached |= dependence(lambda leaf: [subject.oracle(leaf).y], x, subject, floor=0.0)
    _expect_same_links(used, links, "the matrix")
    # Weights may be computed from the target's own surroundings and from those of every source it listens to.
    reach = subject.traits.reach
    allowed = torch.zeros_like(links)
    for shift in range(min(reach, time)):
        near = links | torch.eye(time, dtype=torch.bool)
        allowed[:, : time - shift] |= near[:, shift:]
    stray = reached & ~allowed
    if bool(stray.any()):
        # What is left of a dense product after exact cancellation is rounding, not a link.
        significant = torch.zeros_like(stray)
        for draw in range(3):
            x = subject.x(3, time, seed=10 + draw)
            significant |= dependence(lambda leaf: [subject.oracle(leaf).y], x, subject)
        stray &= significant
    if bool(stray.any()):
        target, source = stray.nonzero()[0].tolist()
        expect(False, f"forward at {target} depends on x at {source}, which is no link")
    dead = links & ~reached
    if bool(dead.any()):
        target, source = dead.nonzero()[0].tolist()
        expect(
            False, f"{source} to {target} is declared as a link, but forward at {target} never depends on x at {source}"
        )


def _expect_lags(subject: Subject, span: int) -> None:
    """Two periods of targets, away from both ends, are linked to what stands at their lags."""
    mixer, reach = subject.mixer, subject.traits.reach
    period = mixer.period
    expect(period >= 1, f"period is {period}: it must be at least 1")
    links = mixer.links(2 * span + 3 * period)
    first = -(-span // period) * period
    for target in range(first, first + 2 * period):
        found = set((target - links[target].nonzero().flatten()).tolist())
        declared = set(mixer.lags_at(target % period) or ())
        # Values that reach further back than their own position add lags that are no links.
        expect(
            found <= declared and (found == declared or reach > 1),
            f"the lags of outputs at {target % period} of a period of {period} are declared as {sorted(declared)}, "
            f"but the links of {target} have {sorted(found)}",
        )


def _expect_same_links(used: Tensor, links: Tensor, what: str) -> None:
    undeclared, unused = used & ~links, links & ~used
    if bool(undeclared.any()):
        target, source = undeclared.nonzero()[0].tolist()
        expect(False, f"{what} uses the link from {source} to {target}, which is not declared in links")
    if bool(unused.any()):
        target, source = unused.nonzero()[0].tolist()
        expect(False, f"links declares {source} to {target}, which {what} never uses")
