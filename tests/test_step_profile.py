"""The share of a training step that is product at the machine's rate, and what a process does with freed memory."""

from __future__ import annotations

import sys

import pytest
import torch

from seqmix.bench import floors
from seqmix.bench.peak import TrainingSize
from seqmix.bench.step_profile import counted_flops, operations, profile_steps, shares_at_floor
from seqmix.bench.train import TrainingStep
from seqmix.training.memory import freed_memory_kept

SIZE = TrainingSize(model="gated_conv", params="10k", vocab_size=40, context=16, batch_size=2, threads=1)


def test_the_share_is_the_products_time_at_the_best_rate_over_the_steps() -> None:
    limits = {
        "slow": floors.Floor(run=lambda: None, amount=1e9),
        "fast": floors.Floor(run=lambda: None, amount=4e9),
    }
    # The fast product does 2e9 operations a second, so 3e9 take 1.5 of the step's 6 and 3 seconds.
    times = {"slow": [1.0, 1.0], "fast": [2.0, 2.0], "model": [6.0, 3.0]}
    share = shares_at_floor({"model": 3 * 10**9}, limits, times)["model"]
    assert (share.low, share.high) == pytest.approx((0.3125, 0.4375))
    assert share.median == pytest.approx(0.375)


def test_a_steps_flops_are_three_forwards() -> None:
    step = TrainingStep(SIZE)
    assert counted_flops(step) == step.model.training_flops(2 * 16, 16)  # type: ignore[operator]


def test_a_profile_names_operations_and_products() -> None:
    found = profile_steps([SIZE], rounds=2)
    (row,) = found["rows"]
    assert set(found["times"]) == {"gated_conv", *floors.products()}
    assert row["share_at_floor"]["median"] > 0
    names = [entry["name"] for entry in row["operations"] if entry["is_product"]]
    assert "aten::mm" in names
    spent = [entry["milliseconds"] for entry in operations(TrainingStep(SIZE))]
    assert spent == sorted(spent, reverse=True)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's own files")
def test_freed_memory_is_kept_inside_and_given_back_after() -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    size = 64 * 2**20
    with freed_memory_kept(torch.device("cpu")):
        held = []
        for _ in range(8):
            torch.ones(size // 4)
            held.append(resident())
        # It may take a few turns until aligned blocks fit into what was freed; then nothing is taken or given back.
        assert max(held[4:]) - min(held[4:]) < size / 4
    assert held[-1] - resident() > size / 2


def test_other_devices_are_left_alone() -> None:
    with freed_memory_kept(torch.device("meta")):
        pass
