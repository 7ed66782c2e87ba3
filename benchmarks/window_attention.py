"""How much faster attention over a window is than over all earlier positions: the mixer alone, forward and backward.

    python benchmarks/window_attention.py [--length 16384] [--window 256] [--dim 256] [--heads 4] [--pattern TEXT]
        [--threads N] [--rounds 5] [--quick] [--json] [--out FILE]

Both sides are the same attention, projections and rotary positions included, on the same input; one sees all earlier
positions through PyTorch's fused attention, the other one the window, or a pattern. They take turns, and the ratio is
formed in each round. The ideal is the ratio of the FLOPs that the two declare.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from shared import Goal, arguments, finish, progress

from seqmix.bench.timing import OtherProcesses, environment, quartiles, ratio, take_turns, with_threads
from seqmix.mixer import Mixer
from seqmix.mixers import create_mixer

TIMES_FASTER = 8.0


def side(mixer: Mixer, x: torch.Tensor) -> Callable[[], None]:
    """One forward with its backward, to the input and all weights."""
    wanted = [x, *mixer.parameters()]

    def run() -> None:
        y = mixer(x).y
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    return run


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides by round, and their ratios."""
    torch.manual_seed(0)
    sparse = {"pattern": given.pattern} if given.pattern else {"window": given.window}
    mixers = {
        name: create_mixer("attention", given.dim, heads=given.heads, **options)
        for name, options in (("full", {}), ("sparse", sparse))
    }
    x = torch.randn(1, given.length, given.dim, requires_grad=True)
    with with_threads(given.threads) as threads, progress("window attention"):
        others = OtherProcesses()
        times = take_turns(
            {name: side(mixer, x) for name, mixer in mixers.items()},
            rounds=given.rounds,
            warmup=1,
        )
        warning = others.warning()
    costs = {name: mixer.cost(1, given.length).product_flops for name, mixer in mixers.items()}
    return {
        "length": given.length,
        "dim": given.dim,
        "heads": given.heads,
        "links": sparse,
        "threads": threads,
        "seconds": times,
        "median_seconds": {name: quartiles(spent).to_dict() for name, spent in times.items()},
        "times_faster": ratio(times, "full", "sparse").to_dict(),
        "times_fewer_flops": costs["full"] / costs["sparse"],
        "warning": warning,
        "environment": environment(),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--pattern", default=None, help='in place of the window, such as "bigbird()"')
    given = parser.parse_args()
    if given.quick:
        given.length, given.dim = 1024, 64
    given.rounds = given.rounds or (1 if given.quick else 5)
    found = measure(given)
    faster = found["times_faster"]
    links = given.pattern or f"a window of {given.window}"
    goal = Goal(
        what=f"{links} against all, {given.length} positions",
        value=faster["median"],
        at_least=TIMES_FASTER,
        aim=TIMES_FASTER,
    )
    lines = [
        f"quartiles {faster['low']:.2f} to {faster['high']:.2f}; {found['times_fewer_flops']:.1f} times fewer FLOPs",
        "seconds: " + ", ".join(f"{name} {one['median']:.3f}" for name, one in found["median_seconds"].items()),
    ]
    if found["warning"]:
        lines.append(found["warning"])
    finish(given, [goal], {"window_attention": found}, lines)


if __name__ == "__main__":
    main()
