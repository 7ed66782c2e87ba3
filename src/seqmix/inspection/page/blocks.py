"""Matrices in few bytes: whole codes times a step of each row, packed; `js/blocks.js` reads them.

A Toeplitz matrix is stored by lag, a band by the lags that it has, a causal one without its upper triangle.

Shapes: H heads, T time (targets), S source, L lags.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PRECISIONS = (16, 12, 10, 8)
"""Bits of a code, from the finest: at 16 a value is true to a 65534th of its row's largest."""

EXACT_LAGS = 1 << 14
"""Up to so many numbers a Toeplitz matrix is stored exactly."""

_BANDED = 0.6
"""Of the sources of a row: where fewer lags than this share carry anything, the matrix is stored as a band."""


@dataclass(frozen=True)
class Block:
    """The matrices of one mixer on one text, as shares of the largest of each row.

    form: "lags", where all diagonals are constant, else "rows". numbers: (H, L), (H, T, L) or (H, row after row).
    scales: the largest |value| of each head (H, 1) or row (H, T); None where the numbers are the values themselves.
    """

    form: Literal["lags", "rows"]
    numbers: NDArray[Any]
    scales: NDArray[np.float32] | None
    time: int
    source: int
    causal: bool
    lags: list[int] | None

    @property
    def heads(self) -> int:
        return len(self.numbers)

    def of_heads(self, heads: list[int]) -> Block:
        """The block of these heads alone."""
        scales = None if self.scales is None else self.scales[heads]
        return replace(self, numbers=self.numbers[heads], scales=scales)

    def packed(self, bits: int) -> tuple[dict[str, Any], str]:
        """What the page has to know of the block, and its bytes as text."""
        meta: dict[str, Any] = {
            "form": self.form,
            "heads": self.heads,
            "time": self.time,
            "source": self.source,
            "causal": self.causal,
            "lags": self.lags,
            "bits": bits if self.scales is not None else 32,
        }
        if self.scales is None:
            content = self.numbers.astype("<f4").tobytes()
        else:
            codes = np.rint(self.numbers.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i2").ravel()
            planes = codes.astype("i1").tobytes() if bits <= 8 else _planes(codes)
            content = self.scales.astype("<f4").tobytes() + planes
        return meta, base64.b64encode(zlib.compress(content, 1)).decode("ascii")


def _planes(codes: NDArray[Any]) -> bytes:
    """The low bytes of all codes, then the high ones, which hardly differ and so take little room."""
    both = codes.view(np.uint8).reshape(-1, 2)
    return both[:, 0].tobytes() + both[:, 1].tobytes()


def make_block(matrix: NDArray[np.float32]) -> Block:
    """The block of matrices (H, T, S), which need not be finite: what is not a number becomes 0."""
    matrix = np.nan_to_num(matrix, posinf=0.0, neginf=0.0)
    _heads, time, source = matrix.shape
    causal = time == source and not np.triu(np.abs(matrix).max(axis=0), 1).any()
    lags = _lags(matrix)
    if time == source and np.array_equal(matrix[:, 1:, 1:], matrix[:, :-1, :-1]):
        values = np.stack([matrix[:, max(lag, 0), max(-lag, 0)] for lag in lags], axis=1)
        if values.size <= EXACT_LAGS:
            return Block("lags", values, None, time, source, causal, lags)
        numbers, scales = _shares(values[:, None])
        return Block("lags", numbers[:, 0], scales, time, source, causal, lags)
    numbers, scales = _shares(matrix)
    if len(lags) < _BANDED * min(source, (time + 1) / 2 if causal else source):
        targets = np.arange(time)[:, None] - np.array(lags)[None]
        inside = (targets >= 0) & (targets < source)
        band = numbers[:, np.arange(time)[:, None], targets.clip(0, source - 1)] * inside
        return Block("rows", band, scales, time, source, causal, lags)
    if causal:
        numbers = numbers[:, *np.tril_indices(time)]
    return Block("rows", numbers.reshape(len(numbers), -1), scales, time, source, causal, None)


def _lags(matrix: NDArray[np.float32]) -> list[int]:
    """The lags (target minus source) at which any head has a weight."""
    targets, sources = np.nonzero((matrix != 0).any(axis=0))
    found = np.unique(targets - sources)
    return [int(lag) for lag in found] or [0]


def _shares(matrix: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each entry as a share of its row's largest |value|, and that value, for (..., rows, entries)."""
    scales = np.abs(matrix).max(axis=-1, initial=0.0)
    shares = np.divide(matrix, scales[..., None], out=np.zeros_like(matrix), where=scales[..., None] > 0)
    return shares, scales
