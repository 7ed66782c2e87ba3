"""What a training step's time goes to: the share that its products would take at the machine's best rate, and the rest.

    share at the floor = FLOPs of the step's matrix products and convolutions / product rate / time of the step

The FLOPs are counted while a step runs, the rate is measured in turns with the steps, and the operations' times are
those of torch's profiler, of one step by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from seqmix.bench import floors
from seqmix.bench.peak import TrainingSize
from seqmix.bench.peak_bytes import silent_stderr
from seqmix.bench.timing import Quartiles, quartiles, take_turns
from seqmix.bench.train import TrainingStep
from seqmix.flop_counter import FlopCounter

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "aten::mv")
"""The profiler's names of what is a matrix product and nothing else; fused operators hide theirs."""


def counted_flops(step: Callable[[], object]) -> int:
    """FLOPs of the products and convolutions of one step."""
    with FlopCounter() as counter:
        step()
    return counter.total


def shares_at_floor(
    flops: Mapping[str, int], limits: Mapping[str, floors.Floor], times: Mapping[str, Sequence[float]]
) -> dict[str, Quartiles]:
    """Of each step, the time of its FLOPs at the product's rate over the time it took, round by round.

    Args:
        flops: of the steps by name. limits: products by name. times: the seconds of all of them by round.
    """
    rates = floors.rates(limits, times)
    return {
        name: quartiles(amount / 1e9 / rate / seconds for rate, seconds in zip(rates, times[name], strict=True))
        for name, amount in flops.items()
    }


def operations(step: Callable[[], object]) -> list[dict[str, Any]]:
    """The operations of one step, the longest first: name, milliseconds of its own, calls, is_product."""
    with silent_stderr(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    rows = [
        {
            "name": event.key,
            "milliseconds": event.self_cpu_time_total / 1e3,
            "calls": event.count,
            "is_product": event.key in PRODUCTS,
        }
        for event in recorded.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["milliseconds"])


def profile_steps(
    sizes: Sequence[TrainingSize],
    *,
    rounds: int = 7,
    budget_seconds: float | None = None,
    show: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Training steps of models of one size, in turns with matrix products.

    Returns:
        times: the seconds of every step and every product by round. rows, one for each model: model, context,
        batch_size, flops, share_at_floor, tokens_per_second (quartiles), product_gflops, operations.
    """
    device = torch.device(sizes[0].device)
    steps = {size.model: TrainingStep(size) for size in sizes}
    limits = floors.products(device)
    times = take_turns(
        {**steps, **{name: floor.run for name, floor in limits.items()}},
        rounds=rounds,
        warmup=1,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
        budget_seconds=budget_seconds,
        show=show,
    )
    flops = {name: counted_flops(step) for name, step in steps.items()}
    shares = shares_at_floor(flops, limits, times)
    rate = quartiles(floors.rates(limits, times)).to_dict()
    rows = [
        {
            "model": size.model,
            "context": size.context,
            "batch_size": size.batch_size,
            "flops": flops[size.model],
            "share_at_floor": shares[size.model].to_dict(),
            "tokens_per_second": quartiles(
                size.batch_size * size.context / seconds for seconds in times[size.model]
            ).to_dict(),
            "product_gflops": rate,
            "operations": operations(steps[size.model]),
        }
        for size in sizes
    ]
    return {"times": times, "rows": rows}
