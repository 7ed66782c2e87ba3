"""Training steps of models beside each other: tokens per second, and the most memory that a training holds.

Every side does the same: forward, loss, backward, AdamW and zeroing, over the same tokens, each as it is meant to be
used (the loss of seqmix without logits as its training loop has it, transformers' own loss). Memory is measured first,
each model in a process of its own, which also keeps one that has no room from ending the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from seqmix.bench import contenders
from seqmix.bench.collect import Case, Row, Watch, collect
from seqmix.bench.peak import TrainingSize, training_peak
from seqmix.bench.timing import quartiles, ratio, take_turns, with_threads
from seqmix.compare.progress import Display
from seqmix.errors import InputError
from seqmix.training.optimizer import make_optimizer

DEFAULT_MODELS = ("convsamba", "gated_conv", "transformer", "mamba2", "hf-llama", "hf-mamba2")
DEFAULT_CONTEXTS = (512, 4096)
TOKENS_A_STEP = 4096
"""Rows are chosen so that a step reads about this many tokens at every context, and one row where that is longer."""


class TrainingStep:
    """One model that trains on the same random tokens again and again, with a learning rate of 0.

    The rate keeps all steps alike; the optimizer does its work all the same.
    """

    def __init__(self, size: TrainingSize) -> None:
        device = torch.device(size.device)
        self.model = contenders.build(size.model, size.params, size.vocab_size, size.context, device).train()
        self.optimizer = make_optimizer(self.model, weight_decay=0.1, betas=(0.9, 0.95))
        tokens = torch.randint(size.vocab_size, (size.batch_size, size.context + 1), device=device)
        self._inputs, self._targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        is_half = size.precision == "bfloat16"
        self._autocast = partial(torch.autocast, device.type, torch.bfloat16) if is_half else nullcontext
        labels = {"return_logits": False} if contenders.is_ours(self.model) else {"labels": self._inputs}
        self._options = {"shift_labels": self._targets, "use_cache": False, **labels}

    def __call__(self) -> None:
        with self._autocast():
            loss = self.model(input_ids=self._inputs, **self._options).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _measure(
    models: Sequence[str], sizes: Sequence[TrainingSize], rounds: int, measure_time: bool, watch: Watch
) -> list[Row]:
    """Rows of one context, one for each model that has room."""
    peaks: dict[str, int] = {}
    for index, size in enumerate(sizes):
        watch.show(index / (3 * len(sizes)), f"memory of {size.model}")
        peak = training_peak(size)
        if isinstance(peak, int):
            peaks[size.model] = peak
        else:
            watch.leave_out(f"{size.model} at context {size.context}", peak)
    kept = [size for size in sizes if size.model in peaks]
    if not kept:
        return []
    device = torch.device(kept[0].device)
    steps = {size.model: TrainingStep(size) for size in kept}
    times = {}
    if measure_time:
        times = take_turns(
            steps,
            rounds=rounds,
            warmup=1,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
            budget_seconds=None if watch.budget_seconds is None else 2 / 3 * watch.budget_seconds,
            show=lambda share: watch.show(1 / 3 + 2 / 3 * share, "steps"),
        )
    theirs = [name for name in steps if name in contenders.HUGGING_FACE]
    return [
        {
            "context": size.context,
            "batch_size": size.batch_size,
            "model": size.model,
            "parameters": contenders.parameters_of(steps[size.model].model),
            "faster_than": {
                other: ratio(times, other, size.model).to_dict() for other in theirs if times and other != size.model
            },
            "tokens_per_second": quartiles(
                size.batch_size * size.context / seconds for seconds in times[size.model]
            ).to_dict()
            if times
            else None,
            "peak_memory_bytes": peaks[size.model],
            "memory_over": {other: peaks[size.model] / peaks[other] for other in theirs if other != size.model},
        }
        for size in kept
    ]


def bench_train(
    display: Display,
    *,
    models: Sequence[str] = DEFAULT_MODELS,
    contexts: Sequence[int] = DEFAULT_CONTEXTS,
    params: str = "10M",
    vocab_size: int = 258,
    threads: int | None = None,
    rounds: int = 5,
    budget_seconds: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
    measure_time: bool = True,
) -> Row:
    """Training steps of models at some contexts; see `collect` for the document.

    Of a row: context, batch_size, model, parameters (without the embedding), faster_than (by the name of each model of
    Hugging Face: its time over this one's, round by round), tokens_per_second (None without `measure_time`),
    peak_memory_bytes (weights, gradients, optimizer and activations), memory_over (by name: this one's over its).

    Raises:
        InputError: an unknown model, or a context below 2.
    """
    contenders.check_names(models)
    if min(contexts) < 2:
        raise InputError(f"context is {min(contexts)}: a training step needs at least 2 tokens")
    contenders.check_sizes(models, params, vocab_size, contexts)
    with with_threads(threads) as used:
        cases = []
        for context in contexts:
            sizes = [
                TrainingSize(
                    model=model,
                    params=params,
                    vocab_size=vocab_size,
                    context=context,
                    batch_size=max(1, TOKENS_A_STEP // context),
                    threads=used,
                    device=device,
                    precision=precision,
                )
                for model in models
            ]
            work = partial(_measure, models, sizes, rounds, measure_time)
            cases.append(Case(label=f"training at context {context}", run=work))
        settings = {
            "models": list(models),
            "contexts": list(contexts),
            "params": params,
            "vocab_size": vocab_size,
            "threads": used,
            "rounds": rounds,
            "precision": precision,
        }
        return collect("train", cases, display, settings=settings, budget_seconds=budget_seconds, device=device)
