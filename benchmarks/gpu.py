"""Everything that needs a GPU, in one call of less than eight minutes: builds the kernels, checks and times them.

    PYTHONPATH=src python benchmarks/gpu.py [--out FOLDER] [--seconds 450] [--sections check_convolution,time_decode]

needs torch, triton and transformers; flash-linear-attention, causal-conv1d and mamba-ssm are measured where they are
installed. Every section has a share of the time and a process of its own; one that fails, crashes or is late says so,
and the others go on. After each the results so far are in gpu.json, in the folder of --out, else of $OUT, else here.

`--rehearse` runs all sections on a CPU with tiny sizes, the Triton programs in Triton's interpreter: it shows that
the script works, and its numbers say nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if "--rehearse" in sys.argv:
    # Before triton is imported, by whatever of the imports below.
    os.environ["TRITON_INTERPRET"] = "1"

import gpu_checks
import gpu_timings
import torch
from gpu_bench import Bench
from shared import Goal

from seqmix.cli.output import print_table
from seqmix.files import write_json
from seqmix.kernels.library import why_missing
from seqmix.training.environment import describe_environment

PACKAGES = ("triton", "flash-linear-attention", "fla-core", "causal-conv1d", "mamba-ssm")
REHEARSAL_SECONDS = 240.0
GRACE_SECONDS = 20.0
"""After its time a section has this long to say what it has."""


class LateError(Exception):
    """A section's time is over."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """share: of the whole time, at most."""

    name: str
    share: float
    run: Callable[[Bench], dict[str, Any]]


SECTIONS = (
    Section(name="build", share=0.25, run=gpu_checks.build),
    Section(name="check_convolution", share=0.3, run=gpu_checks.check_convolution),
    Section(name="time_convolution", share=0.3, run=gpu_timings.time_convolution),
    Section(name="check_decode", share=0.1, run=gpu_checks.check_decode),
    Section(name="time_training", share=0.25, run=gpu_timings.time_training),
    Section(name="time_decode", share=0.15, run=gpu_timings.time_decode),
    Section(name="check_mixers", share=0.2, run=gpu_checks.check_mixers),
    Section(name="check_training", share=0.15, run=gpu_checks.check_training),
    Section(name="time_cross_entropy", share=0.1, run=gpu_timings.time_cross_entropy),
    Section(name="time_compiled_training", share=0.2, run=gpu_timings.time_compiled_training),
    Section(name="sweep", share=0.3, run=gpu_timings.sweep),
)
"""In the order of what a short time must not miss."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises LateError inside once the seconds have passed."""

    def stop(number: int, frame: Any) -> None:
        raise LateError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_section(section: Section, bench: Bench, seconds: float) -> dict[str, Any]:
    """What the section found, with how it ended: done, late, failed; what it noted before is kept in each case."""
    begin = time.perf_counter()
    bench.begin(seconds)
    error = None
    try:
        with time_limit(seconds):
            bench.notes.update(section.run(bench))
        status = "failed" if bench.notes.get("failures") else "done"
    except LateError as late:
        status, error = "late", str(late)
    except Exception as problem:  # noqa: BLE001 - one section's failure must not cost the others
        status = "failed"
        error = "".join(traceback.format_exception(problem))[-3000:]
    found = {"status": status, "seconds": round(time.perf_counter() - begin, 1), **bench.notes}
    return found if error is None else {**found, "error": error}


def in_own_process(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The result of the work in a copy of this process, which has not touched the GPU: a crash stays there."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send_bytes(json.dumps(work(), default=str).encode())

    process = context.Process(target=run)
    begin = time.perf_counter()
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return json.loads(receiver.recv_bytes())
        error = f"killed after {seconds:.0f} s: it was late and did not stop"
    except EOFError:
        process.join()
        error = f"its process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return {"status": "failed", "seconds": round(time.perf_counter() - begin, 1), "error": error}


def versions() -> dict[str, str]:
    """The packages that are measured beside ours, and the compiler of our programs."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def goals(sections: dict[str, Any]) -> list[Goal]:
    """What was asked for beside what was measured."""

    def value(section: str, *path: str) -> float | None:
        found: Any = sections.get(section, {})
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, float | int) else None

    conv, rows = "time_convolution", []
    for name in ("flash-linear-attention", "causal-conv1d"):
        what = f"convolution K=4, forward + backward, against {name}"
        rows.append(Goal(what=what, value=value(conv, "K=4", "both", "faster_than", name), at_least=1, aim=1.3))
    for dilation in (1, 8):
        case = f"K=32, dilation {dilation}"
        what = f"convolution {case}, forward + backward, against torch conv1d"
        rows.append(
            Goal(what=what, value=value(conv, case, "both", "faster_than", "torch conv1d"), at_least=10, aim=30)
        )
    for case in ("K=4", "K=32, dilation 1", "K=32, dilation 8"):
        for pass_ in ("forward", "both"):
            what = f"{case}, {pass_}: share of the copy bandwidth"
            rows.append(
                Goal(what=what, value=value(conv, case, pass_, "share_of_copy"), at_least=0.5, aim=0.8, unit="%")
            )
    for peer in ("fla Mamba-2", "mamba2"):
        what = f"training gated_conv at T=8192 against {peer}"
        rows.append(Goal(what=what, value=value("time_training", "faster_than", peer), at_least=1.3, aim=2))
        what = f"decoding gated_conv against {peer}"
        rows.append(Goal(what=what, value=value("time_decode", "faster_than", peer), at_least=2, aim=3))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds, checks and times what needs a GPU.")
    parser.add_argument("--seconds", type=float, default=None, help="for all sections together [450]")
    parser.add_argument("--sections", default=",".join(section.name for section in SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of gpu.json")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU, to see that the script works")
    given = parser.parse_args()
    names = given.sections.split(",")
    unknown = set(names) - {section.name for section in SECTIONS}
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}: choose of {parser.get_default('sections')}")
    if not given.rehearse and not in_own_process(lambda: {"gpu": torch.cuda.is_available()}, 60).get("gpu"):
        print("There is no CUDA device here: nothing to measure. --rehearse runs the script on a CPU.")
        return 0
    bench = Bench(is_rehearsal=given.rehearse)
    seconds = given.seconds or (REHEARSAL_SECONDS if given.rehearse else 450.0)
    begin = time.perf_counter()
    document: dict[str, Any] = {
        "rehearsal": given.rehearse,
        "environment": in_own_process(lambda: describe_environment(bench.device), 60),
        "versions": versions(),
        "sections": {},
    }
    for section in SECTIONS:
        if section.name not in names:
            continue
        left = seconds - (time.perf_counter() - begin)
        found: dict[str, Any] = {"status": "late", "seconds": 0.0, "error": "no time was left"}
        if left > 1:
            share = min(left, section.share * seconds)
            found = in_own_process(partial(run_section, section, bench, share), share + GRACE_SECONDS)
        document["sections"][section.name] = found
        document["goals"] = [{"what": goal.what, "value": goal.value} for goal in goals(document["sections"])]
        document["native"] = why_missing() or "compiled"
        document["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(given.out / "gpu.json", document)
        print(f"{section.name}: {found['status']} in {found['seconds']} s", *_first_problem(found), flush=True)
    print_table(
        ["what", "measured", "at least", "aim", "verdict"],
        [goal.cells() for goal in goals(document["sections"])],
        left=["verdict"],
    )
    print(f"all of it is in {given.out / 'gpu.json'}")
    return int(any(found["status"] == "failed" for found in document["sections"].values()))


def _first_problem(found: dict[str, Any]) -> list[str]:
    problems = [*found.get("failures", []), *([found["error"].strip().splitlines()[-1]] if "error" in found else [])]
    return [f"({problems[0]})"] if problems else []


if __name__ == "__main__":
    sys.exit(main())
