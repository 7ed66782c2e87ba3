"""The depthwise convolution beside torch's own conv1d, forward and with the backward, on a CPU.

    python benchmarks/depthwise_conv.py [--rounds 15] [--threads 2] [--out FILE]

Both read and write (batch, time, dim), so the transposition that conv1d needs counts. The sides take turns; a ratio
is the median over the rounds of (torch / ours), with its quartiles: above 1 ours is faster. Values and gradients are
compared first, and nothing is timed when they differ. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import depthwise_conv
from seqmix.training.environment import describe_environment

SIZES = [
    {"batch": 16, "time": 256, "dim": 128, "kernel": 4, "dilation": 1},
    {"batch": 16, "time": 256, "dim": 128, "kernel": 32, "dilation": 1},
    {"batch": 16, "time": 256, "dim": 128, "kernel": 32, "dilation": 8},
    {"batch": 8, "time": 1024, "dim": 512, "kernel": 32, "dilation": 1},
    {"batch": 8, "time": 1024, "dim": 512, "kernel": 32, "dilation": 16},
]


def torch_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    reach = (weight.shape[1] - 1) * dilation
    padded = F.pad(x.transpose(1, 2), (reach, 0))
    return F.conv1d(padded, weight[:, None], dilation=dilation, groups=len(weight)).transpose(1, 2)


def our_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return depthwise_conv(x, weight, dilation=dilation)[0]


def milliseconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def agree(x: Tensor, weight: Tensor, grad: Tensor, dilation: int) -> None:
    """Values and gradients of the two, to a float32 rounding of a sum of that many products."""
    found = []
    for conv in (torch_conv, our_conv):
        y = conv(x, weight, dilation)
        found.append((y.detach(), *torch.autograd.grad(y, (x, weight), grad)))
    for theirs, ours, terms in zip(*found, (weight.shape[1], weight.shape[1], x.shape[0] * x.shape[1]), strict=True):
        band = torch.finfo(torch.float32).eps * terms * theirs.abs().max()
        if (theirs - ours).abs().max() > band:
            raise SystemExit(f"the two convolutions differ by {(theirs - ours).abs().max():.2e}: nothing is timed")


def measure(size: dict[str, int], rounds: int) -> dict[str, Any]:
    x = torch.randn(size["batch"], size["time"], size["dim"], requires_grad=True)
    weight = torch.randn(size["dim"], size["kernel"], requires_grad=True)
    grad = torch.randn_like(x)
    agree(x, weight, grad, size["dilation"])

    def forward(conv: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            conv(x, weight, size["dilation"])

    def both(conv: Callable[..., Tensor]) -> None:
        torch.autograd.grad(conv(x, weight, size["dilation"]), (x, weight), grad)

    result: dict[str, Any] = dict(size)
    for name, work in (("forward", forward), ("forward and backward", both)):
        times: dict[str, list[float]] = {"torch": [], "ours": []}
        for number in range(rounds + 2):
            sides = [("torch", torch_conv), ("ours", our_conv)]
            for side, conv in sides if number % 2 else reversed(sides):
                spent = milliseconds(partial(work, conv))
                if number >= 2:
                    times[side].append(spent)
        ratios = [theirs / ours for theirs, ours in zip(times["torch"], times["ours"], strict=True)]
        result[name] = {
            "ratio": quartiles(ratios),
            "torch_milliseconds": quartiles(times["torch"]),
            "our_milliseconds": quartiles(times["ours"]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="The depthwise convolution beside torch's conv1d.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    sizes = [measure(size, arguments.rounds) for size in SIZES]
    document = json.dumps({"environment": describe_environment(), "sizes": sizes}, indent=1)
    print(document)
    if arguments.out is not None:
        arguments.out.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
