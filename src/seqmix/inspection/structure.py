"""What a mixing matrix is like, in numbers and in a sentence: its band, how Toeplitz it is, its rank, its entropy.

Shapes: H heads, T time (targets), S source, L lags t - s from 1 - S to T - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from seqmix.errors import InputError

BAND = 0.99
NUMBERS_AT_ONCE = 2**22
"""How many entries are looked at together: a layer of convolutions has a matrix for each channel."""
CONVOLUTION = 1 - 1e-6
"""The share of the squares from which on a sentence calls a matrix Toeplitz: what float32 leaves of 1."""


@dataclass(frozen=True)
class Structure:
    """The numbers of one matrix M (time, source).

    toeplitz: the share of Σ M² that the means along the diagonals explain; 1 for a convolution.
    nearest_lag, farthest_lag: the least and the greatest t - s of a link (negative is ahead); None without links.
    band_99: the least b such that the lags 0 … b (-b … b where links look ahead) hold 99 % of Σ |M|.
    links: the share of the possible links that are not zero.
    rank: singular values above the largest one times max(T, S) times float32's epsilon, as numpy.linalg.matrix_rank.
    effective_rank: exp of the entropy of the singular values as shares (Roy & Vetterli 2007); 0 for zeros.
    entropy: of the rows of |M| as shares, in bits, the mean over rows that are not zero.
    listens_to: 2 to the entropy, a number of positions; 0 for zeros.
    least_row_sum, greatest_row_sum: of M with its signs.
    negative: the share of Σ |M| that is negative.
    """

    toeplitz: float
    nearest_lag: int | None
    farthest_lag: int | None
    band_99: int
    links: float
    rank: int
    effective_rank: float
    entropy: float
    listens_to: float
    least_row_sum: float
    greatest_row_sum: float
    negative: float


def structures(matrix: NDArray[np.floating], causal: bool = True) -> list[Structure]:
    """The structure of each matrix of a layer.

    Args:
        matrix: (heads, time, source).
        causal: links from a source after its target are not possible and not counted among those that are.

    Raises:
        InputError: another number of axes, no entries, or entries that are not finite.
    """
    if matrix.ndim != 3 or 0 in matrix.shape[1:]:
        raise InputError(f"the matrices have shape {matrix.shape}: they must be (heads, time, source)")
    finite = np.isfinite(matrix).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            f"the matrix of head {int(np.argmin(finite))} has entries that are not finite, as those of a model whose "
            "training diverged: take an earlier checkpoint"
        )
    heads, time, source = matrix.shape
    at_once = max(1, NUMBERS_AT_ONCE // (time * source))
    return [
        found for first in range(0, heads, at_once) for found in _structures(matrix[first : first + at_once], causal)
    ]


def _structures(matrix: NDArray[np.floating], causal: bool) -> Iterator[Structure]:
    _, time, source = matrix.shape
    size = np.abs(matrix)
    lags = np.arange(1 - source, time)
    counts = np.minimum.reduce([time - lags, source + lags, np.full_like(lags, min(time, source))])
    sums_HL = _along_diagonals(matrix)
    sizes_HL = _along_diagonals(size)
    squares_H = np.square(matrix, dtype=np.float64).sum(axis=(1, 2))
    explained_H = np.minimum((sums_HL**2 / counts).sum(axis=1), squares_H)
    total_H = sizes_HL.sum(axis=1)
    linked_H = np.count_nonzero(matrix, axis=(1, 2))
    possible = int(counts[lags >= 0].sum()) if causal else time * source
    negative_H = np.maximum(-matrix, 0).sum(axis=(1, 2), dtype=np.float64)
    rows_HT = matrix.sum(axis=2, dtype=np.float64)
    entropy_H = _entropies(size)
    singular_HN = _singular_values(matrix)
    threshold_H = singular_HN.max(axis=1) * max(time, source) * np.finfo(np.float32).eps
    for head, sizes_L in enumerate(sizes_HL):
        found = lags[sizes_L > 0]
        is_zero = len(found) == 0
        yield Structure(
            toeplitz=_ratio(explained_H[head], squares_H[head], of_nothing=1.0),
            nearest_lag=None if is_zero else int(found[0]),
            farthest_lag=None if is_zero else int(found[-1]),
            band_99=_band(sizes_L, lags),
            links=float(linked_H[head] / possible),
            rank=int((singular_HN[head] > threshold_H[head]).sum()),
            effective_rank=0.0 if is_zero else float(np.exp(_entropy(singular_HN[head]))),
            entropy=float(entropy_H[head]),
            listens_to=0.0 if is_zero else float(2 ** entropy_H[head]),
            least_row_sum=float(rows_HT[head].min()),
            greatest_row_sum=float(rows_HT[head].max()),
            negative=_ratio(negative_H[head], total_H[head]),
        )


def _ratio(part: float, whole: float, of_nothing: float = 0.0) -> float:
    return float(part / whole) if whole > 0 else of_nothing


def _along_diagonals(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """(heads, lags): the sums of entries with the same t - s, from 1 - source to time - 1."""
    heads, time, source = matrix.shape
    # Rows of source + time entries, read as if they were one shorter: each row then starts one place further right.
    wide = np.zeros((heads, time, source + time), matrix.dtype)
    wide[:, :, :source] = matrix[:, :, ::-1]
    lags = source + time - 1
    return wide.reshape(heads, -1)[:, : time * lags].reshape(heads, time, lags).sum(axis=1, dtype=np.float64)


def _band(sizes_L: NDArray[np.float64], lags: NDArray[np.int_]) -> int:
    """The least b such that lags of at most b positions, either way, hold the share BAND."""
    by_distance = np.bincount(np.abs(lags), weights=sizes_L)
    held = by_distance.cumsum()
    # The sum's own rounding must not send the band to the end.
    return int(np.argmax(held >= BAND * held[-1] * (1 - 1e-12)))


def _entropies(size: NDArray[np.floating]) -> NDArray[np.float64]:
    """(heads,): the mean over rows, zeros left out, of the entropy of each row as shares, in bits."""
    total_HT = size.sum(axis=2, dtype=np.float64)
    # H = log2 Σ - Σ m log2 m / Σ needs one logarithm an entry and no copy of the shares.
    logs = np.log2(size, out=np.zeros_like(size), where=size > 0)
    weighted_HT = np.einsum("hts,hts->ht", size, logs, dtype=np.float64)
    is_row = total_HT > 0
    safe = np.where(is_row, total_HT, 1.0)
    entropy_HT = np.where(is_row, np.log2(safe) - weighted_HT / safe, 0.0)
    return np.maximum(entropy_HT.sum(axis=1) / np.maximum(is_row.sum(axis=1), 1), 0.0)


def _entropy(sizes: NDArray[np.floating]) -> float:
    """The entropy of numbers as shares of their sum, in nats."""
    shares = sizes[sizes > 0].astype(np.float64)
    shares = shares / shares.sum()
    return float(-(shares * np.log(shares)).sum())


def _singular_values(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """(heads, min(time, source)), from torch, whose LAPACK is several times as fast as numpy's at these sizes."""
    heads, time, source = matrix.shape
    found = np.empty((heads, min(time, source)), matrix.dtype)
    # A Toeplitz matrix with its rows turned over is symmetric (Hankel), and the sizes of a symmetric matrix's
    # eigenvalues are the singular values, at half the work.
    flipped = matrix[:, ::-1]
    symmetric = (
        np.array([np.array_equal(part, part.T) for part in flipped]) if time == source else np.zeros(heads, bool)
    )
    if symmetric.any():
        found[symmetric] = torch.linalg.eigvalsh(torch.from_numpy(flipped[symmetric])).abs().numpy()
    if not symmetric.all():
        found[~symmetric] = torch.linalg.svdvals(torch.from_numpy(matrix[~symmetric])).numpy()
    return found


def describe(structure: Structure, *, fixed: bool, jacobian: bool) -> str:
    """The numbers as one plain sentence.

    Args:
        fixed: the matrix is the same for every input. jacobian: it holds the sizes of derivatives.
    """
    if structure.farthest_lag is None:
        return "No position listens to any: every entry is zero."
    is_toeplitz = structure.toeplitz >= CONVOLUTION
    parts = ["Sizes of derivatives (a Jacobian)"] if jacobian else []
    if fixed:
        parts.append("the same for every input and at every position (Toeplitz)" if is_toeplitz else _fixed(structure))
    else:
        parts.append(f"changes with the input, {_share(structure.toeplitz)} Toeplitz")
    parts.append(_lags(structure))
    if structure.links < 1:
        parts.append(f"{_share(structure.links)} of the possible links used")
    parts.append(f"a position listens to about {structure.listens_to:.3g}")
    parts.append(f"rank {structure.rank}, effectively {structure.effective_rank:.3g}")
    if abs(structure.least_row_sum - 1) < 1e-3 and abs(structure.greatest_row_sum - 1) < 1e-3:
        parts.append("each row sums to 1")
    if structure.negative > 0:
        parts.append(f"{_share(structure.negative)} of the weight negative")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _fixed(structure: Structure) -> str:
    return f"the same for every input, {_share(structure.toeplitz)} Toeplitz"


def _lags(structure: Structure) -> str:
    nearest, farthest = structure.nearest_lag, structure.farthest_lag
    span = f"lag {farthest} alone" if nearest == farthest else f"lags {nearest} to {farthest}"
    return f"{span}, 99 % of the weight within lag {structure.band_99}"


def _share(share: float) -> str:
    """A percentage that says 0 or 100 for exactly that alone."""
    percent = 100 * share
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 99 < percent < 100 else f"{percent:.0f} %"
