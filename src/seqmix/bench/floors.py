"""What the machine does at best: the rate of its matrix product and of reading its memory, in float32.

A floor is a piece of work of known size, so that it can take its turn among the sides that are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from seqmix.bench.timing import quartiles, take_turns, with_threads

PRODUCTS = ((4096, 512, 512), (2048, 512, 1536), (1024, 1024, 1024))
"""Rows, inner size and columns of matrix products such as models of 10 million parameters make."""

LARGE_PRODUCTS = ((8192, 4096, 4096), (8192, 8192, 8192))
"""The same for a GPU, which small ones do not fill."""

READ_BYTES = 256 * 2**20
"""More than the caches of a processor hold."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Work whose size is known. amount: floating-point operations or bytes of one run."""

    run: Callable[[], object]
    amount: float

    def rate(self, seconds: float) -> float:
        """Operations or bytes a second, in units of 10^9."""
        return self.amount / seconds / 1e9


def products(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Floor]:
    """Matrix products by name."""
    shapes = PRODUCTS if torch.device(device).type == "cpu" else LARGE_PRODUCTS
    return {
        f"product {rows}x{inner}x{columns}": _product(rows, inner, columns, device, dtype)
        for rows, inner, columns in shapes
    }


def _product(rows: int, inner: int, columns: int, device: torch.device | str, dtype: torch.dtype) -> Floor:
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return Floor(run=lambda: torch.mm(left, right, out=out), amount=2.0 * rows * inner * columns)


def reads(device: torch.device | str = "cpu") -> dict[str, Floor]:
    """Ways to read a large buffer once, by name: its sum, and its product with a vector."""
    width = 4096
    buffer = torch.ones(READ_BYTES // (4 * width), width, device=device)
    vector = torch.ones(width, device=device)
    return {
        "read, sum": Floor(run=buffer.sum, amount=READ_BYTES),
        "read, matrix and vector": Floor(run=lambda: torch.mv(buffer, vector), amount=READ_BYTES),
    }


def best(floors: Mapping[str, Floor], times: Mapping[str, Sequence[float]]) -> str:
    """The name of the floor with the highest median rate, from the seconds of their runs."""
    return max(floors, key=lambda name: floors[name].rate(quartiles(times[name]).median))


def rates(floors: Mapping[str, Floor], times: Mapping[str, Sequence[float]]) -> list[float]:
    """The rate in each round, in units of 10^9 a second, of the best floor."""
    name = best(floors, times)
    return [floors[name].rate(seconds) for seconds in times[name]]


def _measured(floors: Mapping[str, Floor], threads: int | None, rounds: int) -> float:
    with with_threads(threads):
        times = take_turns({name: floor.run for name, floor in floors.items()}, rounds=rounds)
    return quartiles(rates(floors, times)).median


def product_gflops(threads: int | None = None, rounds: int = 7) -> float:
    """GFLOP/s of the matrix product on the CPU, the best median over a few shapes, with that many threads."""
    return _measured(products(), threads, rounds)


def read_gigabytes_per_second(threads: int | None = None, rounds: int = 7) -> float:
    """GB/s at which the CPU reads memory, the best median of two ways, with that many threads."""
    return _measured(reads(), threads, rounds)
