"""How time and memory of each mixer grow with the context: measured, with the exponent beside that of its `cost`.

A contender is a mixer, or an attention with the links of a pattern: `attention:bigbird()`. One row, forward alone and
forward with backward. The contexts of a mixer take turns. Memory is the most that is
allocated at once beyond weights and input.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from seqmix.bench.collect import Case, Row, Watch, collect
from seqmix.bench.exponent import exponent, fit
from seqmix.bench.peak_bytes import peak_bytes
from seqmix.bench.timing import LEAST_ROUNDS, quartiles, take_turns, with_threads
from seqmix.compare.progress import Display
from seqmix.errors import InputError, unknown_name
from seqmix.evaluation.memory import available_bytes, is_out_of_memory
from seqmix.mixer import Mixer
from seqmix.mixers import create_mixer, list_mixers, mixer_class

DEFAULT_CONTEXTS = (16, 256, 512, 1024, 2048, 4096, 8192)
"""The shortest one shows what a call costs however little it does."""

WIDTH = 128
SPARSE = ("attention:window(256)", "attention:longformer(256)", "attention:bigbird()")
"""Attention on links whose number grows with the context, not with its square; measured beside the mixers."""

KINDS = ("forward", "forward and backward")
WARMUP = 1


def _make(name: str, dim: int, longest: int, device: torch.device, dtype: torch.dtype) -> Mixer:
    """The mixer with its defaults and its pattern; one that is made for a length gets the longest context."""
    name, _, pattern = name.partition(":")
    fields = {field.name for field in dataclasses.fields(mixer_class(name).config_class)}
    options: dict[str, Any] = {"max_length": longest} if "max_length" in fields else {}
    if pattern:
        options["pattern"] = pattern
    return create_mixer(name, dim, **options).to(device=device, dtype=dtype)


def _contenders(models: Sequence[str]) -> list[str]:
    """The names as they were before commas inside of a pattern's brackets took them apart."""
    names: list[str] = []
    for part in models:
        if names and names[-1].count("(") > names[-1].count(")"):
            names[-1] = f"{names[-1]}, {part.strip()}"
        else:
            names.append(part)
    return names


def _works(mixer: Mixer, context: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """The work of each kind at one context."""
    x = torch.randn(1, context, mixer.dim, device=device, dtype=dtype, requires_grad=True)
    wanted = [x, *mixer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            mixer(x)

    def both() -> None:
        y = mixer(x).y
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return dict(zip(KINDS, (forward, both), strict=True))


def _memory(
    name: str,
    works: Mapping[int, Mapping[str, Callable[[], None]]],
    device: torch.device,
    watch: Watch,
) -> dict[int, dict[str, int]]:
    """Peak bytes by context and kind, from short to long, until one has no room or takes too long to be timed."""
    peaks: dict[int, dict[str, int]] = {}
    for index, (context, work) in enumerate(works.items()):
        watch.show(index / (4 * len(works)), f"memory at {context}")
        what = f"{name} at context {context}"
        available = available_bytes(device)
        if available is not None and _at_most(peaks, context) > available:
            watch.leave_out(what, "it may have no room")
            break
        try:
            for run in work.values():
                run()
            start = time.perf_counter()
            peaks[context] = {kind: peak_bytes(run, device) for kind, run in work.items()}
            spent = time.perf_counter() - start
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            watch.leave_out(what, "it has no room")
            break
        if watch.budget_seconds is not None and spent * (LEAST_ROUNDS + WARMUP) > watch.budget_seconds:
            watch.leave_out(what, f"a turn takes {spent:.2g} s, too long for the time it has")
            del peaks[context]
            break
    return peaks


def _at_most(peaks: Mapping[int, Mapping[str, int]], context: int) -> float:
    """The bytes that a mixer needs at most at a longer context: what grows does so with its square, if at that."""
    if len(peaks) < 2:
        return 0.0
    first, *_, last = peaks
    growth = (context / last) ** 2
    return max(peaks[first][kind] + (peaks[last][kind] - peaks[first][kind]) * growth for kind in KINDS)


def _measure(
    name: str,
    dim: int,
    contexts: Sequence[int],
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    watch: Watch,
) -> list[Row]:
    """One row for each kind."""
    mixer = _make(name, dim, max(contexts), device, dtype)
    works = {context: _works(mixer, context, device, dtype) for context in contexts}
    peaks = _memory(name, works, device, watch)
    if not peaks:
        return []
    times = take_turns(
        {f"{kind} {context}": works[context][kind] for context in peaks for kind in KINDS},
        rounds=rounds,
        warmup=WARMUP,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
        budget_seconds=watch.budget_seconds,
        show=lambda share: watch.show(0.25 + 0.75 * share, "time"),
    )
    rows = []
    for kind in KINDS:
        seconds = {context: times[f"{kind} {context}"] for context in peaks}
        memory = {context: float(peak[kind]) for context, peak in peaks.items()}
        costs = {context: mixer.cost(1, context) for context in peaks}
        # The weights are not among what was measured.
        constant = mixer.cost(1, 1).bytes_moved
        rows.append(
            {
                "mixer": name,
                "kind": kind,
                "milliseconds": {
                    str(context): quartiles(1e3 * spent for spent in values).to_dict()
                    for context, values in seconds.items()
                },
                "peak_bytes": {str(context): peak[kind] for context, peak in peaks.items()},
                "time": _exponents(
                    {context: quartiles(values).median for context, values in seconds.items()},
                    {context: float(cost.flops) for context, cost in costs.items()},
                ),
                "memory": _exponents(
                    memory, {context: float(cost.bytes_moved - constant) for context, cost in costs.items()}
                ),
            }
        )
    return rows


def _exponents(measured: Mapping[int, float], declared: Mapping[int, float]) -> dict[str, Any] | None:
    """The measured exponent, and that of a declared cost over the same contexts; None with too few contexts."""
    if len(measured) < 2:
        return None
    found = exponent(measured)
    over = {place: cost for place, cost in declared.items() if found.first <= place <= found.last and cost > 0}
    return {**found.to_dict(), "expected": fit(over)[0] if len(over) > 1 else None}


def bench_scaling(
    display: Display,
    *,
    models: Sequence[str] | None = None,
    contexts: Sequence[int] = DEFAULT_CONTEXTS,
    dim: int = WIDTH,
    threads: int | None = None,
    rounds: int = 5,
    budget_seconds: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Row:
    """Time and memory of mixers by context; see `collect` for the document.

    Of a row: mixer, kind (one of `KINDS`), milliseconds and peak_bytes by context; time and memory, each with the
    exponent (value, error, first and last context, points, is_clear) and the `expected` one: of the FLOPs that `cost`
    declares, and of the bytes that it says must be moved beyond those of one position, over the same contexts.

    Raises:
        InputError: an unknown mixer, a pattern that is none, or fewer than two contexts.
    """
    names = [*list_mixers(), *SPARSE] if models is None else _contenders(models)
    for name in names:
        mixer = name.partition(":")[0]
        if mixer not in list_mixers():
            raise unknown_name("mixer", mixer, list_mixers())
    places = sorted(set(contexts))
    if len(places) < 2 or places[0] < 1:
        raise InputError(f"contexts are {','.join(map(str, contexts))}: an exponent needs at least two, from 1 on")
    for name in names:
        if ":" in name:
            _make(name, dim, places[-1], torch.device("cpu"), torch.float32)
    dtype = getattr(torch, precision)
    cases = [
        Case(label=name, run=partial(_measure, name, dim, places, rounds, torch.device(device), dtype))
        for name in names
    ]
    torch.manual_seed(0)
    with with_threads(threads) as used:
        settings = {
            "models": names,
            "contexts": places,
            "dim": dim,
            "threads": used,
            "rounds": rounds,
            "precision": precision,
        }
        return collect("scaling", cases, display, settings=settings, budget_seconds=budget_seconds, device=device)
