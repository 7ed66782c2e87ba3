"""Our scans beside the plain forms that they replace, forward and with the backward, on a CPU.

    python benchmarks/scans.py [--rounds 7] [--threads 2] [--json]

Each row is one scan at one size; a side is "transformers", the torch form in its modeling files (a loop for Mamba and
for the recurrence), "plain", our best form in plain torch, and "ours", what is chosen by default. A ratio is other /
ours, formed round by round: above 1 ours is faster. Values are compared first, and nothing is timed when they differ.
transformers' loop for Mamba needs a time that grows with the square of the length in its backward, so that one is
compared over 128 positions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from seqmix.bench.timing import Quartiles, busy_warning, environment, quartiles, ratio, take_turns
from seqmix.kernels.linear_recurrence import linear_recurrence
from seqmix.kernels.selective_scan import selective_scan
from seqmix.kernels.state_space import state_space_scan

Scan = Callable[..., Tensor]


def mamba2(batch: int, time: int) -> tuple[list[Tensor], dict[str, Scan]]:
    """16 heads of width 64, one group, 128 states."""
    heads, width, size = 16, 64, 128
    dt = F.softplus(torch.randn(batch, time, heads) - 3)
    inputs = [torch.randn(batch, time, heads, width), dt, -torch.rand(heads) * 15 - 1]
    inputs += [torch.randn(batch, time, 1, size), torch.randn(batch, time, 1, size), torch.randn(heads)]

    def theirs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return mamba2_chunk_scan.__wrapped__(x, dt, A, B, C, chunk_size=256, D=D)

    def ours(*tensors: Tensor, implementation: str | None = None) -> Tensor:
        return state_space_scan(*tensors, implementation=implementation)[0]

    return inputs, {"transformers": theirs, "plain": partial(ours, implementation="chunked"), "ours": ours}


def mamba(batch: int, time: int) -> tuple[list[Tensor], dict[str, Scan]]:
    """512 channels of 16 states, with bias, softplus and gate."""
    dim, size = 512, 16
    inputs = [torch.randn(batch, time, dim) for _ in range(3)] + [-torch.rand(dim, size) * 15 - 1]
    inputs += [torch.randn(batch, time, size), torch.randn(batch, time, size), torch.randn(dim), torch.randn(dim) - 3]

    def theirs(x: Tensor, dt: Tensor, z: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        sequences = [each.transpose(1, 2) for each in (x, dt)]
        shared = [each.transpose(1, 2) for each in (B, C)]
        options = {"z": z.transpose(1, 2), "delta_bias": bias, "delta_softplus": True}
        return mamba_selective_scan.__wrapped__(*sequences, A, *shared, D=D, **options).transpose(1, 2)

    def ours(
        x: Tensor,
        dt: Tensor,
        z: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        bias: Tensor,
        implementation: str | None = None,
    ) -> Tensor:
        options = {"z": z, "dt_bias": bias, "dt_softplus": True, "implementation": implementation}
        return selective_scan(x, dt, A, B, C, D, **options)[0]

    return inputs, {"transformers": theirs, "plain": partial(ours, implementation="chunked"), "ours": ours}


def recurrence(batch: int, time: int) -> tuple[list[Tensor], dict[str, Scan]]:
    """512 channels."""
    inputs = [torch.rand(batch, time, 512), torch.randn(batch, time, 512)]

    def loop(a: Tensor, b: Tensor) -> Tensor:
        return linear_recurrence(a, b, implementation="reference")[0]

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return linear_recurrence(a, b, implementation="chunked")[0]

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return linear_recurrence(a, b)[0]

    return inputs, {"transformers": loop, "plain": plain, "ours": ours}


CASES: list[tuple[str, Callable[[int, int], tuple[list[Tensor], dict[str, Scan]]], int, int, tuple[str, ...]]] = [
    ("mamba2", mamba2, 4, 1024, ("forward", "both")),
    ("mamba2", mamba2, 1, 4096, ("forward", "both")),
    ("mamba", mamba, 4, 1024, ("forward",)),
    ("mamba", mamba, 4, 128, ("both",)),
    ("recurrence", recurrence, 4, 1024, ("forward", "both")),
    ("recurrence", recurrence, 1, 4096, ("forward", "both")),
]
"""Scan, batch, positions, and what is timed."""


def measure(
    make: Callable[[int, int], tuple[list[Tensor], dict[str, Scan]]], batch: int, time: int, rounds: int, what: str
) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs, scans = make(batch, time)
    leaves = [tensor.requires_grad_(what == "both") for tensor in inputs]
    grad = torch.randn_like(inputs[0])

    def run(scan: Scan) -> list[Tensor]:
        if what == "forward":
            with torch.no_grad():
                return [scan(*leaves)]
        y = scan(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    expected = run(scans["ours"])
    for name, scan in scans.items():
        for found, ours in zip(run(scan), expected, strict=True):
            difference = float((found - ours).abs().max() / ours.abs().max())
            if difference > 1e-4:
                raise SystemExit(f"{name} and ours differ by {difference:.1e} of the largest: nothing is timed")
    times = take_turns({name: partial(run, scan) for name, scan in scans.items()}, rounds=rounds, warmup=1)
    return {
        "batch": batch,
        "time": time,
        "what": what,
        "milliseconds": {name: quartiles(1e3 * each for each in spent).to_dict() for name, spent in times.items()},
        "ratio": {name: ratio(times, name, "ours").to_dict() for name in scans if name != "ours"},
    }


def show(name: str, result: dict[str, Any]) -> None:
    size = f"{name} ({result['batch']}, {result['time']}) {result['what']}"
    cells = []
    for side in ("transformers", "plain"):
        found = Quartiles(**result["ratio"][side])
        cells.append(f"{found.median:7.2f}× ({found.low:.2f}–{found.high:.2f})")
    print(f"{size:<30}{cells[0]:<28}{cells[1]:<28}{result['milliseconds']['ours']['median']:8.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our scans beside the plain forms that they replace.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warning = busy_warning()
    if not arguments.json:
        if warning:
            print(warning)
        print(f"{'scan (batch, time)':<30}{'transformers / ours':<28}{'plain torch / ours':<28}{'ours':>8}")
    results = []
    for name, make, batch, time, measured in CASES:
        for what in measured:
            results.append({"scan": name, **measure(make, batch, time, arguments.rounds, what)})
            if not arguments.json:
                show(name, results[-1])
    if arguments.json:
        print(json.dumps({"environment": environment(), "warning": warning, "scans": results}, indent=1))


if __name__ == "__main__":
    main()
