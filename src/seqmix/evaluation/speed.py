"""How fast a model reads and writes, and how large its state is, by context.

A pass reads random tokens in pieces from an empty state up to the longest context. At every context n on the way it
notes the time of the reading so far (prefill), and times runs of a few steps with n tokens read (decode), each on a
copy of the state made outside the clock, so that the context hardly drifts. All models take their turn at a context
before any goes on to the next one, and passes are repeated while time is left: a machine that changes its speed
does so for all. Medians are over all passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from seqmix.errors import InputError
from seqmix.evaluation.memory import available_bytes, is_out_of_memory
from seqmix.models.contenders import LanguageModel
from seqmix.models.huggingface import HuggingFaceModel

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)

PIECE = 1024
"""Tokens read at once; a longer prompt is read piece by piece, which bounds what attention needs at a time."""

MAX_PASSES = 7
_STEPS_AT_LEAST = 3
_STEPS_AT_MOST = 64
_RUNS_AT_LEAST = 2
_LONGEST_RUN = 8
_STEP_SHARE = 1 / 6
"""The share of the time budget that one pass gives to steps."""

_STATE_COPIES = 5
"""States of one model that exist at once: the pass's, the longer one being made, and those that steps work on."""

ShowProgress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Tokens per second by context: the median, the quartiles around it, and the number of samples."""

    median: dict[int, float]
    low: dict[int, float]
    high: dict[int, float]
    samples: dict[int, int]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """By context, as a JSON value."""
        return {
            str(context): {
                "median": self.median[context],
                "low": self.low[context],
                "high": self.high[context],
                "samples": self.samples[context],
            }
            for context in self.median
        }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured speed of one model, by context; tokens of all rows of the batch count.

    prefill_tokens_per_second: reading a whole prompt of that length, in pieces of `PIECE`.
    decode_tokens_per_second: generating one token with that many read.
    state_bytes: of a state with room for that many tokens, also where the speed was not measured.
    prefill, decode: the same medians with quartiles and the number of samples.
    left_out: the contexts that were not measured, and why.
    batch_size: rows. threads: CPU threads in use. seconds: what the measurement of all models together took.
    """

    prefill_tokens_per_second: dict[int, float]
    decode_tokens_per_second: dict[int, float]
    state_bytes: dict[int, int]
    prefill: Rates
    decode: Rates
    left_out: dict[int, str]
    batch_size: int
    threads: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The measurements as a JSON value, contexts as strings."""
        return {
            "prefill_tokens_per_second": _by_name(self.prefill_tokens_per_second),
            "decode_tokens_per_second": _by_name(self.decode_tokens_per_second),
            "state_bytes": _by_name(self.state_bytes),
            "prefill": self.prefill.to_dict(),
            "decode": self.decode.to_dict(),
            "left_out": _by_name(self.left_out),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "seconds": self.seconds,
        }


def _by_name(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(context): value for context, value in values.items()}


def measure_speed(
    model: LanguageModel,
    contexts: Sequence[int] = CONTEXTS,
    *,
    budget_seconds: float = 10.0,
    batch_size: int = 1,
    show: ShowProgress | None = None,
) -> Speed:
    """`measure_speeds` of one model."""
    return measure_speeds({"model": model}, contexts, budget_seconds=budget_seconds, batch_size=batch_size, show=show)[
        "model"
    ]


def measure_speeds(
    models: Mapping[str, LanguageModel],
    contexts: Sequence[int] = CONTEXTS,
    *,
    budget_seconds: float = 40.0,
    batch_size: int = 1,
    show: ShowProgress | None = None,
) -> dict[str, Speed]:
    """Speed and state of models by context, measured in turn on the devices where they are.

    Args:
        models: by name, all on one device.
        contexts: tokens already read, each at least 2.
        budget_seconds: about how long it may take for all models together. The first context is always
            measured; a longer one is left out when reading up to it would not fit.
        batch_size: rows that are read and generated at once.
        show: is told the share done (0 to 1) and what is being measured.

    Raises:
        InputError: no model, a context below 2, or a batch size or budget that is not positive.
    """
    if not models:
        raise InputError("there is no model to measure: give at least one")
    if not contexts or min(contexts) < 2:
        raise InputError(f"contexts are {sorted(contexts)}: give at least one, each of at least 2 tokens")
    if batch_size < 1 or budget_seconds <= 0:
        raise InputError(f"batch size {batch_size} and budget {budget_seconds} s: both must be greater than 0")
    contexts = sorted(set(contexts))
    begin = time.perf_counter()
    was_training = {name: model.training for name, model in models.items()}
    measured = {name: _Measured(model, batch_size, contexts) for name, model in models.items()}
    try:
        with torch.inference_mode():
            for one in measured.values():
                one.model.eval()
                one.warm_up()
            _run_passes(measured, contexts, begin, budget_seconds, show)
    finally:
        for name, model in models.items():
            model.train(was_training[name])
    seconds = time.perf_counter() - begin
    return {name: one.result(contexts, seconds) for name, one in measured.items()}


def _run_passes(
    measured: Mapping[str, _Measured],
    contexts: Sequence[int],
    begin: float,
    budget_seconds: float,
    show: ShowProgress | None,
) -> None:
    """Passes over all contexts and models until the budget is spent; a late one goes only as far as it fits."""
    slice_seconds = budget_seconds * _STEP_SHARE / (len(measured) * len(contexts))

    def spent() -> float:
        return time.perf_counter() - begin

    for number in range(MAX_PASSES):
        for one in measured.values():
            one.start()
        for context in contexts:
            for name, one in measured.items():
                if show is not None:
                    show(min(1.0, spent() / budget_seconds), f"{name} at {context}")
                # An equal share at first, so that one slow model does not keep the others from long contexts.
                left = budget_seconds / len(measured) - one.spent if number == 0 else budget_seconds - spent()
                one.measure(context, slice_seconds, None if number == 0 and context == contexts[0] else left)
        if spent() >= budget_seconds:
            break
    for one in measured.values():
        one.start()


@dataclass
class _Measured:
    """One model while it is measured: the samples so far, and where the present pass stands.

    model: a LanguageModel, whose states are of its own kind.
    """

    model: Any
    batch_size: int
    contexts: Sequence[int]
    prefill_seconds: dict[int, list[float]] = field(default_factory=dict)
    step_seconds: dict[int, list[float]] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    state: Any = None
    state_bytes: dict[int, int] = field(default_factory=dict)
    read: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    flops_per_second: float | None = None
    is_stopped: bool = False

    def start(self) -> None:
        """Begins a pass with nothing read, and lets go of the state of the one before."""
        self.state, self.read, self.seconds, self.is_stopped = None, 0, 0.0, False

    def warm_up(self) -> None:
        """Lets libraries choose their kernels and memory settle, outside of the clock."""
        length = min(PIECE, self.contexts[0])
        if self.model.longest_context is not None:
            length = max(1, min(length, (self.model.longest_context - _STEPS_AT_LEAST) // 2))
        _, state = self.model.prefill(self._tokens(length))
        if self._reads_on:
            _, state = self.model.prefill(self._tokens(length), state)
        for _ in range(_STEPS_AT_LEAST):
            _, state = self.model.step(self._tokens(1)[:, 0], state)
        self._wait()

    def measure(self, context: int, slice_seconds: float, seconds_left: float | None) -> None:
        """Reads on up to a context, then times steps there; notes why where that does not fit.

        Args:
            slice_seconds: how long steps may be timed. seconds_left: of the budget; None measures in any case.
        """
        if self.is_stopped or context in self.left_out:
            return
        begin = time.perf_counter()
        try:
            self._measure(context, slice_seconds, seconds_left)
        finally:
            self.spent += time.perf_counter() - begin

    def _measure(self, context: int, slice_seconds: float, seconds_left: float | None) -> None:
        reason = self._obstacle(context, seconds_left)
        if reason is None:
            try:
                self._read_to(context - 1)
                self._time_steps(context, slice_seconds)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = "memory ran out"
                self.state = None
        self.is_stopped = True
        if context not in self.prefill_seconds:
            later = [one for one in self.contexts if one > context]
            self.left_out |= {context: reason, **dict.fromkeys(later, f"context {context} was left out already")}

    def _obstacle(self, context: int, seconds_left: float | None) -> str | None:
        """Why a context cannot be measured, or None."""
        longest = self.model.longest_context
        if longest is not None and context + _run_length(context) > longest:
            return f"the model has learned {longest} positions"
        needed = _STATE_COPIES * self._state_bytes(context)
        available = available_bytes(self.model.device)
        if available is not None and needed > available:
            return f"{_STATE_COPIES} states of it need {needed:.3g} bytes, {available:.3g} are free"
        if seconds_left is None or self.flops_per_second is None:
            return None
        expected = self._flops(self.read if self._reads_on else 0, context - 1) / self.flops_per_second
        if expected <= seconds_left:
            return None
        return f"reading up to it would take about {expected:.2g} s more, {max(0.0, seconds_left):.2g} s were left"

    @property
    def _reads_on(self) -> bool:
        """Whether a piece may follow others; a model that cannot do that reads every prompt at once, from its start."""
        return not isinstance(self.model, HuggingFaceModel) or self.model.behaviour.continues

    def _read_to(self, length: int) -> None:
        """Prefills until `length` tokens are read, and notes the time from the beginning."""
        if not self._reads_on:
            self.state, self.read, self.seconds = None, 0, 0.0
        first, most = self.read, PIECE if self._reads_on else length
        tokens = self._tokens(length - first)
        seconds = 0.0
        while self.read < length:
            piece = tokens[:, self.read - first : self.read - first + most]
            begin = time.perf_counter()
            _, self.state = self.model.prefill(piece, self.state)
            self._wait()
            seconds += time.perf_counter() - begin
            self.read += piece.shape[1]
        self.seconds += seconds
        if seconds > 0:
            self.flops_per_second = self._flops(first, length) / seconds
        self.prefill_seconds.setdefault(length + 1, []).append(self.seconds)

    def _time_steps(self, context: int, slice_seconds: float) -> None:
        """Times short runs of steps with `context` tokens read. The token before makes room in a growing state."""
        assert self.state is not None
        tokens = self._tokens(1)[:, 0]
        _, ready = self.model.step(tokens, self.state.clone())
        if isinstance(self.model, HuggingFaceModel):
            self.state_bytes[context] = ready.nbytes
        run = _run_length(context)
        begin = time.perf_counter()
        samples: list[float] = []
        while len(samples) * run < _STEPS_AT_MOST:
            copy = ready.clone()
            self._wait()
            start = time.perf_counter()
            for _ in range(run):
                _, copy = self.model.step(tokens, copy)
            self._wait()
            end = time.perf_counter()
            samples.append((end - start) / run)
            if end - begin > slice_seconds and len(samples) >= _RUNS_AT_LEAST:
                break
        self.step_seconds.setdefault(context, []).extend(samples)

    def _flops(self, first: int, last: int) -> int:
        """FLOPs of reading the tokens first ... last - 1; two more keep the quotient of short pieces finite."""
        before = self.model.cost(self.batch_size, first).flops if first else 0
        return max(1, self.model.cost(self.batch_size, max(1, last)).flops - before)

    def _state_bytes(self, context: int) -> int:
        if isinstance(self.model, HuggingFaceModel):
            # Measured where the context was reached.
            return self.state_bytes.get(context, self.model.state_bytes(self.batch_size, context))
        return self.model.init_state(self.batch_size, context, device="meta").nbytes

    def _tokens(self, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.read)
        shape = (self.batch_size, max(1, count))
        return torch.randint(self.model.config.vocab_size, shape, generator=generator).to(self.model.device)

    def _wait(self) -> None:
        """Waits for a GPU to be done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def result(self, contexts: Sequence[int], seconds: float) -> Speed:
        """The medians of what was measured."""
        prefill = _rates(self.prefill_seconds, lambda context: self.batch_size * (context - 1), self.step_seconds)
        decode = _rates(self.step_seconds, lambda _: self.batch_size, self.step_seconds)
        return Speed(
            prefill_tokens_per_second=prefill.median,
            decode_tokens_per_second=decode.median,
            state_bytes={context: self._state_bytes(context) for context in contexts},
            prefill=prefill,
            decode=decode,
            left_out=self.left_out,
            batch_size=self.batch_size,
            threads=torch.get_num_threads(),
            seconds=seconds,
        )


def _run_length(context: int) -> int:
    """Steps timed together, so that a mixer whose steps cost more at some positions shows their mean.

    They are few beside the context, so that it hardly grows.
    """
    return max(1, min(_LONGEST_RUN, context // 16))


def _rates(
    seconds: Mapping[int, Sequence[float]], count: Callable[[int], int], complete: Mapping[int, Sequence[float]]
) -> Rates:
    """Tokens per second of `count(context)` tokens, for the contexts where all was measured."""
    contexts = [context for context in sorted(seconds) if context in complete]
    ordered = {context: sorted(count(context) / one for one in seconds[context]) for context in contexts}
    return Rates(
        median={context: median(rates) for context, rates in ordered.items()},
        low={context: rates[(len(rates) - 1) // 4] for context, rates in ordered.items()},
        high={context: rates[len(rates) - 1 - (len(rates) - 1) // 4] for context, rates in ordered.items()},
        samples={context: len(rates) for context, rates in ordered.items()},
    )
