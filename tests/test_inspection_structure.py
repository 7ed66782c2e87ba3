"""The numbers of mixing matrices against plain loops, numpy's rank, and matrices whose numbers are known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from seqmix.errors import InputError
from seqmix.inspection.structure import Structure, describe, structures

EPS = float(np.finfo(np.float32).eps)
ENTRIES = st.floats(-4, 4, width=32).map(lambda entry: 0.0 if abs(entry) < 1e-3 else entry)


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """(heads, time, source), with zeros among the entries and causal half the time."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)))
    matrix = draw(arrays.arrays(np.float32, shape, elements=ENTRIES, fill=st.just(np.float32(0))))
    return np.tril(matrix) if draw(st.booleans()) else matrix


def by_loops(matrix: NDArray[np.float64], causal: bool) -> dict[str, float | int | None]:
    """What a matrix (time, source) is like, one entry after another."""
    time, source = matrix.shape
    places = [(t, s) for t in range(time) for s in range(source)]
    by_lag: dict[int, list[float]] = {}
    for t, s in places:
        by_lag.setdefault(t - s, []).append(matrix[t, s])
    squares = sum(matrix[place] ** 2 for place in places)
    explained = sum(len(entries) * (sum(entries) / len(entries)) ** 2 for entries in by_lag.values())
    total = sum(abs(matrix[place]) for place in places)
    linked = [(t, s) for t, s in places if matrix[t, s] != 0]
    entropies = []
    for row in matrix:
        if any(row):
            shares = [abs(entry) / sum(map(abs, row)) for entry in row if entry]
            entropies.append(-sum(share * math.log2(share) for share in shares))
    return {
        "toeplitz": explained / squares if squares else 1.0,
        "nearest_lag": min((t - s for t, s in linked), default=None),
        "farthest_lag": max((t - s for t, s in linked), default=None),
        "links": len(linked) / sum(1 for t, s in places if s <= t or not causal),
        "entropy": sum(entropies) / len(entropies) if entropies else 0.0,
        "least_row_sum": min(sum(row) for row in matrix),
        "greatest_row_sum": max(sum(row) for row in matrix),
        "negative": sum(-matrix[place] for place in places if matrix[place] < 0) / total if total else 0.0,
    }


@settings(max_examples=80)
@given(matrix=matrices(), causal=st.booleans())
def test_every_number_is_that_of_the_plain_loop(matrix: NDArray[np.float32], causal: bool) -> None:
    for head, found in enumerate(structures(matrix, causal)):
        one = matrix[head].astype(np.float64)
        for name, expected in by_loops(one, causal).items():
            # Sums over up to 64 entries of float32 logarithms.
            is_near = expected is not None and getattr(found, name) == pytest.approx(
                expected, rel=64 * EPS, abs=64 * EPS
            )
            assert is_near or getattr(found, name) is expected, name
        held = [sum(abs(one[t, s]) for t, s in np.ndindex(one.shape) if abs(t - s) <= b) for b in range(max(one.shape))]
        assert held[found.band_99] >= 0.99 * held[-1] * (1 - 1e-9)
        assert all(less < 0.99 * held[-1] * (1 + 1e-9) for less in held[: found.band_99])
        assert found.listens_to == pytest.approx(2**found.entropy if one.any() else 0.0)
        assert json.loads(json.dumps(dataclasses.asdict(found))) == dataclasses.asdict(found)


@settings(max_examples=60)
@given(matrix=matrices())
def test_rank_and_effective_rank_are_those_of_the_singular_values(matrix: NDArray[np.float32]) -> None:
    for head, found in enumerate(structures(matrix)):
        sizes = np.linalg.svd(matrix[head].astype(np.float64), compute_uv=False)
        threshold = sizes.max() * max(matrix.shape[1:]) * EPS
        # A singular value next to the threshold may fall on either side of it in float32.
        surely, perhaps = (int((sizes > edge * threshold).sum()) for edge in (2, 0.5))
        assert surely <= found.rank <= (perhaps if sizes.max() > 0 else 0)
        if surely == perhaps:
            assert found.rank == np.linalg.matrix_rank(matrix[head], tol=threshold)
        shares = sizes[sizes > 0] / max(sizes.sum(), 1e-300)
        expected = math.exp(-sum(share * math.log(share) for share in shares)) if sizes.max() > 0 else 0.0
        # A share that is wrong by 8 eps changes its term of the entropy by at most 8 eps log(1 / (8 eps)), 8 times.
        allowed = 64 * EPS * math.log(1 / (8 * EPS))
        assert found.effective_rank == pytest.approx(expected, rel=allowed, abs=1e-6)


@settings(max_examples=60)
@given(
    kernel=arrays.arrays(np.float32, st.integers(1, 12), elements=ENTRIES),
    dilation=st.integers(1, 3),
    time=st.integers(1, 12),
)
def test_a_convolution_is_toeplitz_with_its_kernels_lags(kernel: NDArray[np.float32], dilation: int, time: int) -> None:
    matrix = np.zeros((1, time, time), np.float32)
    for tap, weight in enumerate(kernel):
        for t in range(tap * dilation, time):
            matrix[0, t, t - tap * dilation] = weight
    (found,) = structures(matrix)
    lags = [tap * dilation for tap, weight in enumerate(kernel) if weight and tap * dilation < time]
    assert found.toeplitz == pytest.approx(1, abs=1e-12)
    assert (found.nearest_lag, found.farthest_lag) == ((lags[0], lags[-1]) if lags else (None, None))
    sizes = np.linalg.svd(matrix[0].astype(np.float64), compute_uv=False)
    edge = sizes.max() * time * EPS
    assert (sizes > 2 * edge).sum() <= found.rank <= (sizes > edge / 2).sum()


def test_known_matrices() -> None:
    time = 16
    lower = np.tril(np.ones((time, time), np.float32))
    identity, mean = np.eye(time, dtype=np.float32), lower / lower.sum(axis=1, keepdims=True)
    one, averaged, outer = structures(np.stack([identity, mean, np.ones_like(lower)]), causal=False)
    assert (one.rank, one.entropy, one.listens_to, one.band_99, one.links) == (16, 0, 1, 0, 1 / 16)
    assert one.effective_rank == pytest.approx(16, rel=1e-5)
    assert averaged.entropy == pytest.approx(sum(math.log2(t + 1) for t in range(time)) / time, rel=1e-6)
    assert averaged.least_row_sum == pytest.approx(1) == averaged.greatest_row_sum
    assert averaged.toeplitz < 0.7
    assert (outer.rank, outer.nearest_lag, outer.farthest_lag) == (1, -15, 15)
    assert outer.effective_rank == pytest.approx(1, abs=1e-3)
    assert structures(lower[None])[0].links == 1


def test_many_heads_are_each_what_they_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 6, 6)).astype(np.float32)
    matrix[2] = np.tril(np.ones((6, 6)))
    alone = [structures(matrix[head : head + 1])[0] for head in range(7)]
    assert structures(matrix) == alone
    monkeypatch.setattr("seqmix.inspection.structure.NUMBERS_AT_ONCE", 80)
    assert structures(matrix) == alone


def test_structures_of_no_heads_are_none() -> None:
    assert structures(np.zeros((0, 4, 4), np.float32)) == []


@pytest.mark.parametrize("shape", [(3, 3), (1, 0, 3), (1, 3, 0)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be \(heads, time, source\)"):
        structures(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_entries_that_are_not_finite_are_refused_with_their_head(bad: float) -> None:
    matrix = np.ones((3, 2, 2), np.float32)
    matrix[1, 1, 0] = bad
    with pytest.raises(InputError, match="matrix of head 1 has entries that are not finite"):
        structures(matrix)


CONVOLUTION = Structure(1.0, 0, 4, 3, 0.1, 16, 12.34, 1.5, 2.83, -0.2, 0.9, 0.431)


def test_the_sentence_of_a_convolution() -> None:
    assert describe(CONVOLUTION, fixed=True, jacobian=False) == (
        "The same for every input and at every position (Toeplitz); lags 0 to 4, 99 % of the weight within lag 3; "
        "10 % of the possible links used; a position listens to about 2.83; rank 16, effectively 12.3; "
        "43 % of the weight negative."
    )


def test_the_sentence_of_an_attention() -> None:
    attention = Structure(0.214, 0, 15, 12, 1.0, 14, 7.1, 2.5, 5.66, 1.0, 1.0, 0.0)
    assert describe(attention, fixed=False, jacobian=False) == (
        "Changes with the input, 21 % Toeplitz; lags 0 to 15, 99 % of the weight within lag 12; a position listens to "
        "about 5.66; rank 14, effectively 7.1; each row sums to 1."
    )


def test_the_sentence_of_a_recurrence_says_what_its_matrix_is() -> None:
    found = describe(dataclasses.replace(CONVOLUTION, toeplitz=0.999, links=1.0), fixed=False, jacobian=True)
    assert found.startswith("Sizes of derivatives (a Jacobian); changes with the input, over 99 % Toeplitz; lags 0 to")


def test_the_sentence_of_zeros_and_of_a_single_lag() -> None:
    (zeros,) = structures(np.zeros((1, 3, 3), np.float32))
    assert describe(zeros, fixed=True, jacobian=False) == "No position listens to any: every entry is zero."
    (shifted,) = structures(np.eye(4, k=-1, dtype=np.float32)[None])
    assert "; lag 1 alone, 99 % of the weight within lag 1;" in describe(shifted, fixed=True, jacobian=False)
