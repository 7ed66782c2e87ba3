"""The measurement of speed: what is timed at which context, what is left out and why, and whether time is kept."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from seqmix.errors import InputError
from seqmix.evaluation import measure_speed, measure_speeds, speed
from seqmix.models import SeqmixForCausalLM, create_model

NAMES = ["transformer", "local_transformer", "convsamba", "convtransformer", "mamba2", "lstm"]


def tiny(name: str = "transformer") -> SeqmixForCausalLM:
    return create_model(name, vocab_size=64, context=32, hidden_size=16, num_hidden_layers=2)


@pytest.fixture
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes end long before a budget that even a stalled machine keeps."""
    monkeypatch.setattr(speed, "MAX_PASSES", 2)


def test_every_context_is_measured(few_passes: None) -> None:
    model = tiny().train()
    result = measure_speed(model, [8, 32, 16], budget_seconds=60.0)
    for rates in (result.prefill_tokens_per_second, result.decode_tokens_per_second):
        assert list(rates) == [8, 16, 32]
        assert min(rates.values()) > 0
    for rates in (result.prefill, result.decode):
        assert all(rates.low[place] <= rates.median[place] <= rates.high[place] for place in rates.median)
        assert min(rates.samples.values()) >= 1
    assert result.left_out == {}
    assert result.threads == torch.get_num_threads()
    assert model.training
    assert json.loads(json.dumps(result.to_dict()))["decode"]["16"]["samples"] == result.decode.samples[16]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_state_bytes_are_those_of_the_real_state(name: str, batch: int) -> None:
    model = tiny(name)
    result = measure_speed(model, [2, 24], budget_seconds=1e-3, batch_size=batch)
    for context in (2, 24):
        with torch.no_grad():
            _, state = model.prefill(torch.zeros(batch, context, dtype=torch.int64))
        assert result.state_bytes[context] == state.nbytes


def test_steps_are_timed_with_the_context_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PIECE", 5)
    model = tiny()
    steps: list[int] = []
    pieces: list[tuple[int, int]] = []
    step, prefill = model.step, model.prefill

    def noted_step(tokens: torch.Tensor, state: Any) -> Any:
        steps.append(int(state.position[0]))
        return step(tokens, state)

    def noted_prefill(tokens: torch.Tensor, state: Any = None) -> Any:
        pieces.append((0 if state is None else int(state.position[0]), tokens.shape[1]))
        return prefill(tokens, state)

    monkeypatch.setattr(model, "step", noted_step)
    monkeypatch.setattr(model, "prefill", noted_prefill)
    monkeypatch.setattr(speed, "MAX_PASSES", 1)
    result = measure_speed(model, [8, 20], budget_seconds=60.0)
    warm_up = 3
    assert pieces[2:] == [(0, 5), (5, 2), (7, 5), (12, 5), (17, 2)]
    # One step makes room, the others are the samples.
    assert steps[warm_up:] == [7] + [8] * result.decode.samples[8] + [19] + [20] * result.decode.samples[20]


def test_rates_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the model moves, a token read takes 2 ms and a step 10 ms for the batch of 3."""
    now = [0.0]
    model = tiny()
    step, prefill = model.step, model.prefill

    def slow_step(tokens: torch.Tensor, state: Any) -> Any:
        now[0] += 0.010
        return step(tokens, state)

    def slow_prefill(tokens: torch.Tensor, state: Any = None) -> Any:
        now[0] += 0.002 * tokens.shape[1]
        return prefill(tokens, state)

    monkeypatch.setattr(model, "step", slow_step)
    monkeypatch.setattr(model, "prefill", slow_prefill)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    result = measure_speed(model, [4, 16], budget_seconds=2.0, batch_size=3)
    assert result.prefill_tokens_per_second == pytest.approx({4: 3 / 0.002, 16: 3 / 0.002})
    assert result.decode_tokens_per_second == pytest.approx({4: 3 / 0.010, 16: 3 / 0.010})
    assert result.seconds == pytest.approx(now[0])
    assert 1.5 <= now[0] < 2.3


def test_models_take_turns_at_each_context(few_passes: None) -> None:
    shown: list[str] = []
    models = {"a": tiny("lstm"), "b": tiny("mamba2")}
    results = measure_speeds(models, [4, 8], budget_seconds=60.0, show=lambda share, note: shown.append(note))
    assert list(results) == ["a", "b"]
    assert shown == ["a at 4", "b at 4", "a at 8", "b at 8"] * 2


def test_a_context_that_does_not_fit_into_the_time_is_left_out_and_said() -> None:
    result = measure_speed(tiny(), [16, 1 << 22, 1 << 23], budget_seconds=0.2)
    assert list(result.decode_tokens_per_second) == [16]
    assert list(result.left_out) == [1 << 22, 1 << 23]
    assert "s were left" in result.left_out[1 << 22]
    assert "4194304" in result.left_out[1 << 23]
    assert result.state_bytes[1 << 22] > 1 << 22
    assert result.seconds < 5


def test_a_context_that_does_not_fit_into_memory_is_left_out_and_said(
    few_passes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "available_bytes", lambda device: 100_000)
    results = measure_speeds({"a": tiny(), "b": tiny("lstm")}, [16, 4096], budget_seconds=60.0)
    assert "are free" in results["a"].left_out[4096]
    assert list(results["a"].decode_tokens_per_second) == [16]
    assert results["b"].left_out == {}


def test_running_out_of_memory_leaves_the_rest_standing(few_passes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    prefill = model.prefill

    def limited(tokens: torch.Tensor, state: Any = None) -> Any:
        if state is not None and int(state.position[0]) > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return prefill(tokens, state)

    monkeypatch.setattr(model, "prefill", limited)
    monkeypatch.setattr(speed, "PIECE", 8)
    result = measure_speed(model, [16, 64], budget_seconds=60.0)
    assert result.left_out == {64: "memory ran out"}
    assert list(result.prefill_tokens_per_second) == [16]


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()

    def broken(tokens: torch.Tensor, state: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(model, "step", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        measure_speed(model, [16])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"contexts": []}, "contexts"),
        ({"contexts": [1, 8]}, "at least 2"),
        ({"batch_size": 0}, "batch size 0"),
        ({"budget_seconds": 0.0}, "budget 0.0"),
    ],
)
def test_values_that_cannot_be_used_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_speed(tiny(), **{"contexts": [8], **arguments})
    with pytest.raises(InputError, match="no model"):
        measure_speeds({})
