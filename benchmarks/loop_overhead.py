"""How much the training loop adds to the bare forward, backward and optimizer step.

    python benchmarks/loop_overhead.py [--models gated_conv,transformer] [--params 300k] [--rounds 15] [--out FILE]

Both train the same model on the same rows. The bare side has its batches in memory and does nothing but
forward, backward, AdamW and zeroing. The loop does all of its work: reading rows, the schedule, clipping, watching
the loss, metrics.jsonl. They take turns in short blocks, and the overhead is the median over the rounds of
(loop / bare - 1), with its quartiles, in wall-clock time and in CPU time; the latter is steadier on a machine that
does other work. Evaluations and checkpoints are not counted as training; a checkpoint's own time is given beside.
The parts of a step are timed by themselves, and so are the forms of AdamW that torch has.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from seqmix.data import load_corpus
from seqmix.models import create_model
from seqmix.training.environment import describe_environment
from seqmix.training.loop import Training
from seqmix.training.memory import PeakMemory
from seqmix.training.optimizer import make_optimizer
from seqmix.training.processes import OneProcess
from seqmix.training.run_folder import RunFolder
from seqmix.training.settings import TrainSettings
from seqmix.training.stopping import StopRequest

BATCHES = 32


class StopAt(StopRequest):
    """Asks a training to stop at a step."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.step = 0

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self.training.progress.step >= self.step


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def milliseconds(work: Callable[[], Any], repeats: int = 15) -> float:
    """The median time of some work, after two runs that are not counted."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


class Uninterrupted(Training):
    """A training that makes no checkpoints."""

    def _checkpoint(self) -> None:
        self._read_steps()


class BareStep:
    """Forward, backward and optimizer step over batches that are in memory."""

    def __init__(self, training: Training) -> None:
        settings = training.settings
        self.model = create_model(
            settings.model, vocab_size=training.corpus.vocab_size, params=settings.params, context=settings.context
        )
        self.model.load_state_dict(training.model.state_dict())
        self.optimizer = make_optimizer(self.model, weight_decay=settings.weight_decay, betas=settings.betas)
        rows = settings.batch_size
        self.batches = [training.stream.rows(rows * number, rows) for number in range(BATCHES)]

    def __call__(self, number: int) -> None:
        batch = self.batches[number]
        loss = self.model(
            input_ids=batch.input_ids, shift_labels=batch.targets, document_ids=batch.document_ids, use_cache=False
        ).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_overhead(training: Training, rounds: int, steps: int) -> dict[str, Any]:
    """Blocks of `steps` steps in turn; which side begins alternates."""
    bare, stop = BareStep(training), StopAt(training)

    def bare_block(first: int) -> None:
        for number in range(first, first + steps):
            bare(number)

    def loop_block(first: int) -> None:
        training.progress.rows = training.settings.batch_size * first
        stop.step = training.progress.step + steps
        training.run(stop)

    sides = {"bare": bare_block, "loop": loop_block}
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    times: dict[tuple[str, str], list[float]] = {(side, clock): [] for side in sides for clock in clocks}
    for number in range(rounds + 1):
        first = number * steps % (BATCHES - steps)
        for side in sorted(sides, reverse=bool(number % 2)):
            before = {clock: read() for clock, read in clocks.items()}
            sides[side](first)
            # The first round warms up.
            if number:
                for clock, read in clocks.items():
                    times[side, clock].append(1e3 * (read() - before[clock]) / steps)
    return {
        clock: {
            "bare_milliseconds": quartiles(times["bare", clock]),
            "loop_milliseconds": quartiles(times["loop", clock]),
            "overhead": quartiles(
                [loop / bare - 1 for bare, loop in zip(times["bare", clock], times["loop", clock], strict=True)]
            ),
        }
        for clock in clocks
    }


def measure_parts(training: Training) -> dict[str, float]:
    """Milliseconds of what a step is made of, each by itself."""
    settings, model = training.settings, training.model
    batch = training.stream.rows(0, settings.batch_size)
    inputs = {"input_ids": batch.input_ids, "document_ids": batch.document_ids, "use_cache": False}
    logits = model(**inputs).logits.detach().requires_grad_()

    def cross_entropy() -> None:
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()

    model(**inputs, shift_labels=batch.targets).loss.backward()
    rows = iter(range(0, 10**9, settings.batch_size))
    parts = {
        "rows of the stream": milliseconds(lambda: training.stream.rows(next(rows), settings.batch_size)),
        "cross-entropy, forward and backward": milliseconds(cross_entropy),
        "clipping": milliseconds(lambda: training.processes.clip(model.parameters(), 1.0)),
    }
    for name, form in {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, **form)
        parts[f"AdamW, {name}"] = milliseconds(optimizer.step)
    model.zero_grad(set_to_none=True)

    def checkpoint() -> None:
        training.progress.step += 1
        with training.clock.running():
            Training._checkpoint(training)

    parts["checkpoint, with fsync"] = milliseconds(checkpoint, repeats=5)
    return parts


def prepare(model: str, arguments: argparse.Namespace, folder: Path) -> Training:
    settings = TrainSettings(
        data=arguments.data,
        model=model,
        params=arguments.params,
        context=arguments.context,
        batch_size=arguments.batch_size,
        tokens=10**12,
        out=str(folder),
        evaluate_every=1.0,
        checkpoint_every_seconds=1e9,
        device="cpu",
    )
    corpus = load_corpus(settings.data)
    training = Uninterrupted(
        settings=settings,
        model=create_model(model, vocab_size=corpus.vocab_size, params=settings.params, context=settings.context),
        corpus=corpus,
        run_folder=RunFolder(folder),
        device=torch.device("cpu"),
        peak_rate=1e-3,
        processes=OneProcess(),
        memory=PeakMemory(torch.device("cpu")),
        reporter=lambda **_: None,
        message=print,
        show=print,
    )
    training.go_on(resume=False)
    return training


def main() -> None:
    parser = argparse.ArgumentParser(description="The overhead of the training loop.")
    parser.add_argument("--models", default="gated_conv,transformer")
    parser.add_argument("--params", default="300k")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps in a block")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = {}
    for model in arguments.models.split(","):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            training = prepare(model, arguments, Path(folder))
            results[model] = {
                **measure_overhead(training, arguments.rounds, arguments.steps),
                "parts_milliseconds": measure_parts(training),
            }
            training.close()
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    text = json.dumps({"settings": settings, "environment": describe_environment(), "models": results}, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
