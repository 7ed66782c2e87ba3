"""One measurement by its name, with the settings that the command line offers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from seqmix.bench.collect import Row
from seqmix.compare.progress import Display
from seqmix.errors import InputError, unknown_name

BENCHES = ("kernels", "train", "decode", "scaling")
PRECISIONS = ("float32", "bfloat16")

_USERS = {
    "sizes": ("kernels",),
    "models": ("train", "decode", "scaling"),
    "contexts": ("train", "decode", "scaling"),
    "engines": ("decode",),
}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured. None takes the measurement's own default.

    bench: one of `BENCHES`. sizes: of convolutions, for kernels alone. models: presets, or mixers for scaling.
    contexts, params, vocab_size: for models. engines: for decode. threads, rounds, budget_seconds, device,
    precision: for all.
    """

    bench: str | None
    sizes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    contexts: tuple[int, ...] | None = None
    engines: tuple[str, ...] | None = None
    params: str = "10M"
    vocab_size: int = 258
    threads: int | None = None
    rounds: int | None = None
    budget_seconds: float | None = None
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.bench is None:
            raise InputError(f"no measurement is named: choose one of {', '.join(BENCHES)}, or --env")
        if self.bench not in BENCHES:
            raise unknown_name("measurement", self.bench, BENCHES)
        for name, users in _USERS.items():
            given = getattr(self, name)
            if given is not None and self.bench not in users:
                raise InputError(f"--{name} {','.join(map(str, given))} means nothing to {self.bench}: leave it out")
            if given is not None and not given:
                raise InputError(f"--{name} is empty: name at least one, or leave it out")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.rounds is not None and self.rounds < 1:
            raise InputError(f"rounds is {self.rounds}: at least 1 is needed")
        budget = self.budget_seconds
        if budget is not None and not (budget > 0 and math.isfinite(budget)):
            raise InputError(f"budget_seconds is {budget}: it must be greater than 0")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise unknown_name("device", self.device, ("cpu", "cuda"))
        if self.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"device is {self.device!r}, but torch finds no GPU: use --device cpu")

    def options(self, *names: str) -> dict[str, Any]:
        """The named settings that are not None."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def run(settings: BenchSettings, display: Display) -> Row:
    """The document of the measurement; see `collect`."""
    common = settings.options("threads", "rounds", "budget_seconds", "device", "precision")
    if settings.bench == "kernels":
        from seqmix.bench.kernels import bench_kernels

        return bench_kernels(display, **settings.options("sizes"), **common)
    sized = settings.options("models", "contexts", "engines")
    if settings.bench in ("train", "decode"):
        sized |= {"params": settings.params, "vocab_size": settings.vocab_size}
    if settings.bench == "train":
        from seqmix.bench.train import bench_train

        return bench_train(display, **sized, **common)
    if settings.bench == "decode":
        from seqmix.bench.decode import bench_decode

        return bench_decode(display, **sized, **common)
    from seqmix.bench.scaling import bench_scaling

    return bench_scaling(display, **sized, **common)
