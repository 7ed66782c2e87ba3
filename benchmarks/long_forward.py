"""Memory of one forward over a long sequence, for every mixer whose work is not quadratic in it.

    python benchmarks/long_forward.py [--mixers hyena,mamba2] [--time 65536] [--dim 32] [--backward] [--threads 1]
        [--quick] [--json] [--out FILE]

Each mixer reads one row of T and of T / 2 positions, each in a process of its own: the peak of resident memory during
forward, over what the process holds with the mixer, its input, and a forward over a few positions behind it. Memory
linear in T gives a ratio of 2, quadratic memory one of 4. --backward records the gradients and takes the backward
pass too. Mixers whose declared FLOPs are quadratic (attention, and `dense`, whose learned triangle has T * T / 2
weights of its own) are named and left out, unless --mixers names them. A mixer that runs out of its time or of the
memory it may take is a goal that is not measured, with the reason beside it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from shared import Goal, arguments, finish, progress

from seqmix.bench.timing import environment
from seqmix.mixers import list_mixers
from seqmix.properties import mixer_of_length
from seqmix.properties.growth import exponent
from seqmix.training.memory import PeakMemory

CPU = torch.device("cpu")
QUADRATIC = 1.5
WARM_POSITIONS = 64
MOST_BYTES = 6 << 30
MOST_SECONDS = 300
QUICK_MIXERS = ["gated_conv", "lstm", "mamba2"]
MAPPED_BYTES = 64 << 10
_MMAP_THRESHOLD = -3
"""A parameter of glibc's mallopt."""
LEAST, AIM = 2.3, 2.1
"""Ratios: 2 is linear, and pages and libraries' own buffers add a little."""


def measure_here(answer: Connection, name: str, dim: int, length: int, backward: bool, threads: int) -> None:
    """Sends the seconds and the bytes at most of one forward, or the reason why there are none."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        # Freed tensors go back to the system at once: what is resident is what is held.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        mixer = mixer_of_length(name, dim, length)
        x = torch.randn(1, length, dim)
        with torch.set_grad_enabled(backward):
            mixer(x[:, :WARM_POSITIONS])
            memory = PeakMemory(CPU)
            start = time.perf_counter()
            y = mixer(x).y
            if backward:
                y.sum().backward()
            seconds = time.perf_counter() - start
        answer.send({"peak": memory.peak(), "seconds": seconds, "is_finite": bool(torch.isfinite(y).all())})
    except (MemoryError, RuntimeError) as error:
        answer.send({"reason": f"{type(error).__name__}: {str(error).splitlines()[0]}"})


def measure(name: str, *size: Any) -> dict[str, Any]:
    """The same from a new process, which a server that has imported everything forks where there are forks."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["seqmix.bench.timing", "seqmix.properties", "seqmix.training.memory", "shared"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure_here, args=(there, name, *size))
    process.start()
    there.close()
    try:
        if not here.poll(MOST_SECONDS):
            process.kill()
            return {"reason": f"not done after {MOST_SECONDS} s"}
        return here.recv()
    except EOFError:
        process.join()
        return {"reason": f"its process ended with status {process.exitcode}"}
    finally:
        process.join()


def is_quadratic(name: str, dim: int) -> bool:
    """Whether a doubled length takes more than 2^1.5 times the FLOPs."""
    return exponent(lambda length: mixer_of_length(name, dim, length).cost(1, length).flops, 1024) > QUADRATIC


def main() -> None:
    parser = arguments("Peak memory of forward at T over that at T / 2.")
    parser.add_argument("--mixers", default=None, help="names, with commas between [all that are not quadratic]")
    parser.add_argument("--time", type=int, default=None, help="positions [65536]")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--backward", action="store_true", help="with the gradients and the backward pass")
    given = parser.parse_args()
    length = given.time or (8192 if given.quick else 65536)
    threads = given.threads or torch.get_num_threads()
    names = given.mixers.split(",") if given.mixers else QUICK_MIXERS if given.quick else list_mixers()
    left_out = [] if given.mixers else [name for name in names if is_quadratic(name, given.dim)]
    rows = []
    with progress("long sequences") as bar:
        for index, name in enumerate(names):
            bar.update(index / len(names), note=name)
            if name in left_out:
                continue
            found = {at: measure(name, given.dim, at, given.backward, threads) for at in (length // 2, length)}
            reason = next((side["reason"] for side in found.values() if "reason" in side), None)
            if not all(side.get("is_finite", True) for side in found.values()):
                reason = "its output is not finite"
            ratio = None if reason else found[length]["peak"] / max(found[length // 2]["peak"], 1)
            rows.append({"mixer": name, "ratio": ratio, "reason": reason, "sides": found})
    goals = [
        Goal(what=f"{row['mixer']}{_sizes(row, length)}", value=row["ratio"], at_least=LEAST, aim=AIM, smaller=True)
        for row in rows
    ]
    document = {
        "environment": environment(),
        "settings": {"time": length, "dim": given.dim, "backward": given.backward, "threads": threads},
        "left_out": left_out,
        "rows": rows,
    }
    lines = [f"{row['mixer']}: {row['reason']}" for row in rows if row["reason"]]
    if left_out:
        lines.append(f"left out, since their work is quadratic in the length: {', '.join(left_out)}")
    finish(given, goals, document, lines)


def _sizes(row: dict[str, Any], length: int) -> str:
    """The memory and the time at the longer length, in words."""
    side = row["sides"][length]
    return "" if "reason" in side else f", {side['peak'] / 2**20:.0f} MiB, {side['seconds']:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
