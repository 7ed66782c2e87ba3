"""Packed matrices: what the page can read of them is the matrix, to the step that is stated."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqmix.inspection.page.blocks import PRECISIONS, Block, make_block


def unpacked(block: Block, bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrices (H, T, S) as the page would read them, and half the step of each entry."""
    meta, text = block.packed(bits)
    content = zlib.decompress(base64.b64decode(text))
    heads, time, source = meta["heads"], meta["time"], meta["source"]
    lags = meta["lags"]
    rows = 1 if meta["form"] == "lags" else time
    if meta["bits"] == 32:
        values = np.frombuffer(content, "<f4").astype(np.float64).reshape(heads, 1, len(lags))
        steps = np.zeros((heads, 1))
    else:
        largest = 2 ** (bits - 1) - 1
        scales = np.frombuffer(content, "<f4", heads * rows).astype(np.float64).reshape(heads, rows)
        coded = content[4 * heads * rows :]
        if bits <= 8:
            codes = np.frombuffer(coded, "i1").astype(np.int64)
        else:
            low, high = np.frombuffer(coded, np.uint8).reshape(2, -1)
            codes = (low.astype(np.uint16) | (high.astype(np.uint16) << 8)).view(np.int16).astype(np.int64)
        steps = scales / largest / 2
        if lags is None:
            matrix, widths = np.zeros((heads, time, source)), [t + 1 if meta["causal"] else source for t in range(time)]
            starts = np.concatenate([[0], np.cumsum(widths)])
            shares = codes.reshape(heads, -1) / largest
            for t in range(time):
                matrix[:, t, : widths[t]] = shares[:, starts[t] : starts[t + 1]] * scales[:, t : t + 1]
            return matrix, np.broadcast_to(steps[:, :, None], matrix.shape)
        values = codes.reshape(heads, rows, len(lags)) / largest * scales[:, :, None]
    matrix = np.zeros((heads, time, source))
    for t in range(time):
        for place, lag in enumerate(lags):
            if 0 <= t - lag < source:
                matrix[:, t, t - lag] = values[:, 0 if rows == 1 else t, place]
    return matrix, np.broadcast_to(steps[:, :, None], matrix.shape)


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """Matrices of every kind: dense, causal, banded, Toeplitz, zero, signed, of one row, not square."""
    heads, time = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    source = draw(st.sampled_from([time, time, time, time + 2]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    matrix = random.normal(size=(heads, time, source)) * 10.0 ** random.integers(-6, 6, size=(heads, time, 1))
    lags = np.arange(time)[:, None] - np.arange(source)[None]
    kind = draw(st.sampled_from(["dense", "causal", "band", "toeplitz", "dilated", "zero", "positive"]))
    if kind == "causal":
        matrix *= lags >= 0
    elif kind == "band":
        matrix *= (lags >= 0) & (lags < 2)
    elif kind == "dilated":
        matrix *= (lags >= -3) & (lags % 3 == 0)
    elif kind == "toeplitz":
        matrix = random.normal(size=(heads, time + source))[:, lags + source - 1]
    elif kind == "zero":
        matrix *= 0
    elif kind == "positive":
        matrix = np.abs(matrix)
    return matrix.astype(np.float32)


@given(matrix=matrices(), bits=st.sampled_from(PRECISIONS))
def test_what_is_read_is_the_matrix_to_the_stated_step(matrix: NDArray[np.float32], bits: int) -> None:
    read, steps = unpacked(make_block(matrix), bits)
    # float32 holds a share and its scale to 2^-24 each.
    assert (np.abs(read - matrix) <= steps + np.abs(matrix) * 2.0**-22).all()
    assert ((matrix != 0) | (read == 0)).all()


def test_each_structure_has_its_form() -> None:
    time = 40
    random = np.random.default_rng(0)
    dense = np.abs(random.normal(size=(2, time, time))).astype(np.float32)
    lags = np.arange(time)[:, None] - np.arange(time)[None]
    block = make_block(dense * (lags >= 0))
    assert (block.form, block.causal, block.lags) == ("rows", True, None)
    block = make_block(dense * ((lags >= 0) & (lags < 5)))
    assert (block.form, block.lags) == ("rows", [0, 1, 2, 3, 4])
    kernel = np.where((lags >= 0) & (lags % 7 == 0) & (lags < 28), 1.0 + lags, 0.0)[None].astype(np.float32)
    block = make_block(kernel)
    assert (block.form, block.lags, block.scales) == ("lags", [0, 7, 14, 21], None)
    block = make_block(dense)
    assert (block.form, block.causal, block.lags) == ("rows", False, None)


def test_what_is_no_number_becomes_zero() -> None:
    matrix = np.ones((1, 3, 3), np.float32)
    matrix[0, 1, 0] = np.nan
    matrix[0, 2, 1] = np.inf
    read, _ = unpacked(make_block(matrix), 16)
    assert read[0, 1, 0] == 0
    assert read[0, 2, 1] == 0
    assert read[0, 0, 0] == pytest.approx(1)
