"""From FLOPs and bytes to money: what an hour of a machine costs and what it can do at most.

    training seconds = training FLOPs / (peak FLOP/s · utilisation)
    training money = training seconds / 3600 · price
    step seconds of a batch = max(FLOPs of the step / (peak FLOP/s · utilisation), bytes moved / bandwidth)
    serving money for a million generated tokens = 10^6 · step seconds / batch / 3600 · price

The serving estimate is a roofline (Williams et al. 2009, doi 10.1145/1498765.1498785): a step reads all weights once
for the whole batch, and each row's state. The batch is as large as asked for, or as fits: weights + batch · state
bytes <= memory. These are lower bounds of what a real server takes.

The table holds assumptions: peaks (dense) and bandwidths of the makers' data sheets, and hourly prices of the order
that clouds ask for. Every one of them can be replaced.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from seqmix.errors import InputError, unknown_name
from seqmix.models.contenders import LanguageModel

CURRENCY = "USD"
UTILISATION = 0.4
SERVE_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A machine that is paid by the hour, as assumed.

    bfloat16_flops, float32_flops: peak FLOP/s of dense products in that precision. bandwidth: bytes/s to its memory.
    memory: bytes. price: money an hour. precision: the one that models run in by default.
    """

    name: str
    summary: str
    bfloat16_flops: float
    float32_flops: float
    bandwidth: float
    memory: float
    price: float
    precision: str = "bfloat16"


ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator(
            name="cpu",
            summary="two cores of a server CPU with AVX2",
            bfloat16_flops=95e9,
            float32_flops=95e9,
            bandwidth=50e9,
            memory=8e9,
            price=0.1,
            precision="float32",
        ),
        Accelerator(
            name="l4",
            summary="NVIDIA L4, 24 GB",
            bfloat16_flops=121e12,
            float32_flops=30.3e12,
            bandwidth=300e9,
            memory=24e9,
            price=0.8,
        ),
        Accelerator(
            name="a100",
            summary="NVIDIA A100 SXM, 80 GB",
            bfloat16_flops=312e12,
            float32_flops=19.5e12,
            bandwidth=2.039e12,
            memory=80e9,
            price=1.5,
        ),
        Accelerator(
            name="h100",
            summary="NVIDIA H100 SXM, 80 GB",
            bfloat16_flops=989e12,
            float32_flops=67e12,
            bandwidth=3.35e12,
            memory=80e9,
            price=2.5,
        ),
        Accelerator(
            name="h200",
            summary="NVIDIA H200 SXM, 141 GB",
            bfloat16_flops=989e12,
            float32_flops=67e12,
            bandwidth=4.8e12,
            memory=141e9,
            price=3.5,
        ),
    )
}


def default_accelerator(device: str) -> str:
    """The name in the table that goes with a device: the GPU it names where the table knows it, else "cpu"."""
    words = device.lower()
    return next((name for name in ACCELERATORS if name in words), "cpu")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What money is computed with; `prices` makes it from a name and what replaces its values.

    flops: peak FLOP/s in `precision`. utilisation: the share of the peak that is reached. bandwidth: bytes/s.
    memory: bytes. per_hour: money an hour, in `unit`. serve_batch: rows generated at once, where they fit.
    """

    accelerator: str
    precision: str
    flops: float
    utilisation: float
    bandwidth: float
    memory: float
    per_hour: float
    unit: str
    serve_batch: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON value."""
        return dataclasses.asdict(self)

    def train_seconds(self, flops: float) -> float:
        """Seconds that training FLOPs take."""
        return flops / (self.flops * self.utilisation)

    def money(self, seconds: float) -> float:
        """What some seconds cost."""
        return seconds / 3600 * self.per_hour

    def accelerator_days(self, flops: float) -> float:
        """Days of one accelerator that training FLOPs take."""
        return self.train_seconds(flops) / 86400

    def largest_batch(self, model: LanguageModel, context: int) -> int:
        """Rows with `context` tokens read that fit beside the weights, at most `serve_batch`; 0 for none."""
        cost = model.cost(1, context)
        free = self.memory - cost.parameters * model.dtype.itemsize
        return 0 if free < 0 else min(self.serve_batch, int(free // max(1, cost.state_bytes)))

    def decode_seconds(self, model: LanguageModel, context: int) -> float:
        """Roofline seconds for one generated token with `context` tokens read; infinite where it does not fit."""
        batch = self.largest_batch(model, context)
        if batch < 1:
            return math.inf
        cost = model.step_cost(batch, context)
        return max(cost.flops / (self.flops * self.utilisation), cost.bytes_moved / self.bandwidth) / batch

    def decode_money_per_million(self, model: LanguageModel, context: int) -> float:
        """Money for a million tokens generated with `context` tokens read; infinite where it does not fit."""
        return 1e6 * self.money(self.decode_seconds(model, context))


def prices(
    accelerator: str = "cpu",
    *,
    price: float | None = None,
    utilisation: float | None = None,
    precision: str | None = None,
    peak_flops: float | None = None,
    bandwidth: float | None = None,
    memory: float | None = None,
    serve_batch: int | None = None,
    unit: str = CURRENCY,
) -> Prices:
    """The prices of a known accelerator, with what is given in the place of its assumed values.

    Raises:
        InputError: an unknown accelerator or precision, or a value that is not positive.
    """
    if accelerator not in ACCELERATORS:
        raise unknown_name("accelerator", accelerator, ACCELERATORS)
    known = ACCELERATORS[accelerator]
    precision = known.precision if precision is None else precision
    if precision not in ("float32", "bfloat16"):
        raise unknown_name("precision", precision, ("float32", "bfloat16"))
    utilisation = UTILISATION if utilisation is None else utilisation
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation is {utilisation}: give the share of the peak that is reached, such as 0.4")
    given = {
        "price": price,
        "peak_flops": peak_flops,
        "bandwidth": bandwidth,
        "memory": memory,
        "serve_batch": serve_batch,
    }
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: give a number above 0")
    table = known.bfloat16_flops if precision == "bfloat16" else known.float32_flops
    replaced = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    return Prices(
        accelerator=accelerator,
        precision=precision,
        flops=table if peak_flops is None else peak_flops,
        utilisation=utilisation,
        bandwidth=known.bandwidth if bandwidth is None else bandwidth,
        memory=known.memory if memory is None else memory,
        per_hour=known.price if price is None else price,
        unit=unit,
        serve_batch=SERVE_BATCH if serve_batch is None else serve_batch,
        source=f"assumed for {known.summary}" + (f", with {', '.join(replaced)} as given" if replaced else ""),
    )
