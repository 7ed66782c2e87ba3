"""How much the training loop adds to the bare forward, backward and optimizer step.

    python benchmarks/loop_overhead.py [--models gated_conv,transformer] [--params 300k] [--rounds 15] [--quick]
        [--json] [--out FILE]

Both train the same model on the same rows. The bare side has its batches in memory and does nothing but
forward, backward, AdamW and zeroing. The loop does all of its work: reading rows, the schedule, clipping, watching
the loss, metrics.jsonl. They take turns in short blocks, and the overhead is the median over the rounds of
(loop / bare - 1), with its quartiles, in wall-clock time and in CPU time; the latter is steadier on a machine that
does other work. Evaluations and checkpoints are not counted as training; a checkpoint's own time is given beside.
The parts of a step are timed by themselves, and so are the forms of AdamW that torch has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared import Goal, arguments, finish
from torch.nn import functional as F

from seqmix.bench.timing import OtherProcesses, environment, quartiles, ratio, take_turns, with_threads
from seqmix.data import load_corpus
from seqmix.models import create_model
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


class Block:
    """Some steps of one side at a time, from the next batches on; writes down the processor time that each took."""

    def __init__(self, run: Callable[[int], None], steps: int) -> None:
        self._run, self._steps, self._first = run, steps, 0
        self.cpu_seconds: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        self._run(self._first)
        self.cpu_seconds.append(time.process_time() - before)
        self._first = (self._first + self._steps) % (BATCHES - self._steps)


def measure_overhead(training: Training, rounds: int, steps: int) -> dict[str, Any]:
    """Blocks of `steps` steps in turn."""
    bare, stop = BareStep(training), StopAt(training)

    def bare_block(first: int) -> None:
        for number in range(first, first + steps):
            bare(number)

    def loop_block(first: int) -> None:
        training.progress.rows = training.settings.batch_size * first
        stop.step = training.progress.step + steps
        training.run(stop)

    sides = {"bare": Block(bare_block, steps), "loop": Block(loop_block, steps)}
    wall = take_turns(sides, rounds=rounds, warmup=1)
    cpu = {name: side.cpu_seconds[1:] for name, side in sides.items()}
    return {name: overhead(times, steps) for name, times in (("wall", wall), ("cpu", cpu))}


def overhead(times: dict[str, list[float]], steps: int) -> dict[str, Any]:
    """Milliseconds of a step of both sides, and by how much of the bare one the loop's is longer."""
    return {
        "bare_milliseconds": quartiles(1e3 * seconds / steps for seconds in times["bare"]).to_dict(),
        "loop_milliseconds": quartiles(1e3 * seconds / steps for seconds in times["loop"]).to_dict(),
        "overhead": ratio(times, "loop", "bare").map(lambda over: over - 1).to_dict(),
    }


def measure_parts(training: Training, rounds: int) -> dict[str, float]:
    """Milliseconds of what a step is made of, each by itself."""
    settings, model = training.settings, training.model
    batch = training.stream.rows(0, settings.batch_size)
    inputs = {"input_ids": batch.input_ids, "document_ids": batch.document_ids, "use_cache": False}
    logits = model(**inputs).logits.detach().requires_grad_()

    def cross_entropy() -> None:
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()

    model(**inputs, shift_labels=batch.targets).loss.backward()
    rows = iter(range(0, 10**9, settings.batch_size))
    parts: dict[str, Callable[[], object]] = {
        "rows of the stream": lambda: training.stream.rows(next(rows), settings.batch_size),
        "cross-entropy, forward and backward": cross_entropy,
        "clipping": lambda: training.processes.clip(model.parameters(), 1.0),
    }
    for name, form in {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}.items():
        parts[f"AdamW, {name}"] = torch.optim.AdamW(model.parameters(), lr=0.0, **form).step
    times = take_turns(parts, rounds=rounds)
    model.zero_grad(set_to_none=True)

    def checkpoint() -> None:
        training.progress.step += 1
        with training.clock.running():
            Training._checkpoint(training)

    times |= take_turns({"checkpoint, with fsync": checkpoint}, rounds=min(5, rounds))
    return {name: 1e3 * quartiles(seconds).median for name, seconds in times.items()}


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
    parser = arguments("The overhead of the training loop.")
    parser.add_argument("--models", default="gated_conv,transformer")
    parser.add_argument("--params", default="300k")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--steps", type=int, default=5, help="steps in a block")
    given = parser.parse_args()
    if given.quick:
        given.params, given.context, given.models = "20k", 32, "gated_conv"
    rounds = given.rounds or (3 if given.quick else 15)
    busy, results = OtherProcesses(), {}
    with with_threads(given.threads):
        for model in given.models.split(","):
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                training = prepare(model, given, Path(folder))
                results[model] = {
                    **measure_overhead(training, rounds, given.steps),
                    "parts_milliseconds": measure_parts(training, rounds),
                }
                training.close()
        settings = {key: value for key, value in vars(given).items() if key not in ("out", "json")}
        document = {"settings": settings, "environment": environment(), "busy": busy.warning(), "models": results}
    goals = [
        Goal(
            what=f"{model}, {clock} time of a step over the bare one",
            value=1 + found[clock]["overhead"]["median"],
            at_least=1.05,
            aim=1.05,
            smaller=True,
        )
        for model, found in results.items()
        for clock in ("wall", "cpu")
    ]
    parts = [
        f"{model}: {name} {milliseconds:.2f} ms"
        for model, found in results.items()
        for name, milliseconds in found["parts_milliseconds"].items()
    ]
    finish(given, goals, document, [*parts, *([document["busy"]] if document["busy"] else [])])


if __name__ == "__main__":
    main()
