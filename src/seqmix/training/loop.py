"""Training one model: the loop, and what is around a step.

while the budget lasts:
    forward, backward in pieces -> clip -> AdamW -> record
    evaluate and make a checkpoint when their time has come; their time is not counted
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqmix.data import Corpus, open_stream
from seqmix.evaluation import Evaluation, evaluate
from seqmix.models.contenders import LanguageModel, layers_of
from seqmix.training.board import Board
from seqmix.training.memory import PeakMemory, freed_memory_kept
from seqmix.training.metrics import MetricsLog
from seqmix.training.optimizer import make_optimizer, set_rate
from seqmix.training.processes import Processes
from seqmix.training.progress import Progress, Reporter, Stopwatch
from seqmix.training.run_folder import RunFolder
from seqmix.training.schedule import Budget, Schedule
from seqmix.training.settings import TrainSettings
from seqmix.training.stopping import StopRequest

GRADIENT_RECORDS = 10
"""How often, spread evenly over the budget, the gradient norm of every layer is written down."""

_SECONDS_BETWEEN_REPORTS = 0.2


class _StoppedError(Exception):
    """A stop was requested in the middle of an evaluation."""


class _Step(NamedTuple):
    """A step that was started; on a GPU its loss may not be known yet."""

    step: int
    seconds: float
    learning_rate: float
    loss: Tensor
    gradient_norm: Tensor


@dataclass(kw_only=True)
class Training:
    """A run in hand. `go_on` and `run` do the work; everything else is given.

    model: what is saved. corpus: its data. run: its folder. peak_rate: the highest learning rate.
    message: is told what the user should know. show: is told what goes on beside the steps.
    """

    settings: TrainSettings
    model: LanguageModel
    corpus: Corpus
    run_folder: RunFolder
    device: torch.device
    peak_rate: float
    processes: Processes
    memory: PeakMemory
    reporter: Reporter | None
    message: Callable[[str], None]
    show: Callable[[str], None]

    def __post_init__(self) -> None:
        settings = self.settings
        self.budget = Budget.of(settings)
        self.schedule = Schedule(
            peak=self.peak_rate, warmup_share=settings.warmup_share, min_lr_share=settings.min_lr_share
        )
        self.stream = open_stream(self.corpus.train, settings.context, settings.seed)
        self.module = self.processes.wrap(self.model)
        self._forward: Callable[..., Any] = self.module
        self.optimizer = make_optimizer(self.model, weight_decay=settings.weight_decay, betas=settings.betas)
        self.progress = Progress()
        self.metrics: MetricsLog | None = None
        self.board: Board | None = None
        self._unread: list[_Step] = []
        # Reading a loss waits for the GPU, so there several steps are read at once.
        self._steps_between_reads = 1 if self.device.type == "cpu" else 10
        self._last_report = self._last_checkpoint = time.monotonic()
        self._checkpoint_step = 0

    def go_on(self, *, resume: bool) -> int | None:
        """Takes up the newest good checkpoint, where there is one, and opens the records. Returns its step."""
        found = self.processes.newest(self.run_folder.checkpoints, self.message) if resume else None
        length = 0
        if found is not None:
            self.progress, length = self.processes.load(found, self.model, self.optimizer)
            self._checkpoint_step = self.progress.step
        self.clock = Stopwatch(self.progress.seconds)
        if self.processes.writes_files:
            self.metrics = MetricsLog(self.run_folder.metrics, length)
            if self.metrics.missing:
                self.message(f"metrics.jsonl lacks {self.metrics.missing} bytes that the checkpoint had written")
            if self.settings.tensorboard:
                self.board = Board(self.run_folder.path / "tensorboard", self.progress.step)
        if not resume:
            return None
        step = self.progress.step
        self.message(f"resumed from step {step}" if found else "no checkpoint to resume from: starting at step 0")
        self._write({"kind": "resume", "step": step, "tokens": self.tokens, "seconds": self.progress.seconds})
        return step

    @property
    def tokens(self) -> int:
        """Training tokens read so far."""
        return self.progress.rows * self.settings.context

    def run(self, stop: StopRequest) -> bool:
        """Trains until the budget is spent or the task solved, or until a stop is requested.

        Returns:
            Whether the training is over.
        """
        self.model.train()
        (seconds,) = self.processes.agree(self.clock.seconds)
        share = self._share(seconds)
        if self.settings.compile and share < 1:
            self._compile()
        with freed_memory_kept(self.device), self.clock.running():
            # A run that was stopped when an evaluation was due makes it now.
            if share < 1:
                self._evaluate_when_due(share, stop)
                share = self._share(seconds)
            while share < 1:
                self._step(share, seconds)
                if len(self._unread) >= self._steps_between_reads:
                    self._read_steps()
                seconds, is_stopping, is_checkpoint_due = self.processes.agree(
                    self.clock.seconds, stop.requested, self._is_checkpoint_due()
                )
                share = self._share(seconds)
                if is_stopping:
                    break
                if share < 1 and self._evaluate_when_due(share, stop):
                    share = self._share(seconds)
                    (is_stopping,) = self.processes.agree(stop.requested)
                    if is_stopping and share < 1:
                        break
                if share < 1 and is_checkpoint_due:
                    self._checkpoint()
            self._checkpoint()
        if self.reporter is not None:
            self._report(self.reporter)
        return share >= 1

    def _share(self, seconds: float) -> float:
        """The share of the budget that is spent; a solved task needs no more of it."""
        return 1.0 if self.progress.is_solved else self.budget.share(self.progress.step, seconds)

    def _step(self, share: float, seconds: float) -> None:
        settings, progress = self.settings, self.progress
        rate = self.schedule.learning_rate(self.budget.share_of_next(progress.step, seconds))
        set_rate(self.optimizer, rate)
        rows = settings.batch_size // settings.accumulate
        loss = torch.zeros((), device=self.device)
        for piece in range(settings.accumulate):
            last = piece == settings.accumulate - 1
            with self.processes.accumulating(self.module, last=last):
                part = self._loss(progress.rows + piece * rows, rows) / settings.accumulate
                part.backward()
            loss += part.detach()
        if share * GRADIENT_RECORDS >= progress.gradient_records:
            self._record_gradients()
        norm = self.processes.clip(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.rows += settings.batch_size
        self._unread.append(_Step(progress.step, self.clock.seconds, rate, loss, norm))

    def _loss(self, first_row: int, rows: int) -> Tensor:
        """The mean loss over this process's part of some rows of the stream."""
        batch = self.stream.rows(*self.processes.rows(first_row, rows))
        documents = None if batch.document_ids is None else self._place(batch.document_ids)
        with self._autocast():
            return self._forward(
                input_ids=self._place(batch.input_ids),
                shift_labels=self._place(batch.targets),
                document_ids=documents,
                use_cache=False,
                return_logits=False,
            ).loss

    def _place(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _compile(self) -> None:
        """Compiles the model and pays for that now: a budget in seconds is for training."""
        self._forward = torch.compile(self.module)
        generators = torch.get_rng_state()
        self._loss(self.progress.rows, self.settings.batch_size // self.settings.accumulate).backward()
        self.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(generators)

    def _read_steps(self) -> None:
        """Records the steps since the last time; a loss that went wrong ends the run here."""
        records = []
        try:
            for one in self._unread:
                loss, norm = self.processes.mean(one.loss).item(), one.gradient_norm.item()
                self.progress.monitor.watch(one.step, loss, norm)
                records.append(
                    {
                        "kind": "step",
                        "step": one.step,
                        "tokens": one.step * self.settings.tokens_per_step,
                        "seconds": one.seconds,
                        "loss": loss,
                        "learning_rate": one.learning_rate,
                        "gradient_norm": norm,
                    }
                )
        finally:
            self._unread.clear()
            self._write(*records)
        now = time.monotonic()
        if self.reporter is not None and now - self._last_report >= _SECONDS_BETWEEN_REPORTS:
            self._last_report = now
            self._report(self.reporter)

    def _report(self, reporter: Reporter) -> None:
        step, seconds = self.progress.step, self.clock.seconds
        reporter(
            step=step,
            tokens=self.tokens,
            seconds=seconds,
            loss=self.progress.monitor.smoothed or 0.0,
            time_left=self.budget.time_left(step, seconds, seconds / max(1, step)),
        )

    def _record_gradients(self) -> None:
        """Writes down the gradient norm of every layer, before clipping."""
        self.progress.gradient_records += 1
        norms = [
            self.processes.norm([p.grad for p in layer.parameters() if p.grad is not None])
            for layer in layers_of(self.model)
        ]
        values = [norm if torch.isfinite(norm) else None for norm in norms]
        if None not in values:
            record = {"kind": "gradients", "step": self.progress.step + 1, "norms": [float(norm) for norm in norms]}
            self._write(record)

    def _evaluate_when_due(self, share: float, stop: StopRequest) -> bool:
        """Evaluates if it is time, and returns whether it was; a stop leaves the evaluation for later."""
        count, every = self.progress.evaluations, self.settings.evaluate_every
        if share < (count + 1) * every:
            return False
        self._read_steps()
        with self.clock.paused(), suppress(_StoppedError):
            result = self.evaluate(self.settings.evaluate_tokens, stop=stop)
            self.progress.evaluations = max(count + 1, int(share / every))
            target = self.settings.stop_at_accuracy
            if target is not None and result.accuracy is not None and result.accuracy >= target:
                self.progress.is_solved = True
                self.message(f"solved at step {self.progress.step}: an accuracy of {result.accuracy:.4f}")
        return True

    def _is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint >= self.settings.checkpoint_every_seconds

    @property
    def final_reads_more(self) -> bool:
        """Whether the final evaluation reads other tokens than those on the way; they are then not comparable."""
        settings, everything = self.settings, self.corpus.valid_targets
        on_the_way, final = (
            everything if limit is None else min(limit, everything)
            for limit in (settings.evaluate_tokens, settings.final_evaluate_tokens)
        )
        return on_the_way != final

    def evaluate(self, max_tokens: int | None, *, final: bool = False, stop: StopRequest | None = None) -> Evaluation:
        """Measures the model on about `max_tokens` of the held-out part and writes that down."""

        def show(share: float) -> None:
            if stop is not None and any(self.processes.agree(stop.requested)):
                raise _StoppedError
            self.show(f"evaluating, {share:.0%}")

        with self.memory.excluded():
            result = evaluate(
                self.model,
                self.corpus.valid,
                context=self.settings.context,
                batch_size=self.settings.batch_size,
                device=self.device,
                max_tokens=max_tokens,
                show=show,
                part=self.processes,
            )
        if not (final and self.final_reads_more):
            best, accuracy = self.progress.best, self.progress.best_accuracy
            if result.bits_per_byte is not None:
                self.progress.best = result.bits_per_byte if best is None else min(best, result.bits_per_byte)
            if result.accuracy is not None:
                self.progress.best_accuracy = max(accuracy or 0.0, result.accuracy)
        self._write(
            {
                "kind": "evaluation",
                "step": self.progress.step,
                "tokens": self.tokens,
                "seconds": self.clock.seconds,
                "bits_per_byte": result.bits_per_byte,
                **({} if result.accuracy is None else {"accuracy": result.accuracy}),
                "loss": result.loss,
                "held_out_tokens": result.tokens,
                "final": final,
            }
        )
        return result

    def _checkpoint(self) -> None:
        """Makes a checkpoint of this step, where there is none. A loss that went wrong never gets into one."""
        self._read_steps()
        with self.clock.paused():
            progress = self.progress
            progress.seconds = self.clock.seconds
            (peak,) = self.processes.agree(self.memory.peak())
            progress.peak_memory = max(progress.peak_memory, int(peak))
            if self._checkpoint_step != progress.step:
                length = 0 if self.metrics is None else self.metrics.sync()
                self.processes.save(self.run_folder.checkpoints, self.model, self.optimizer, progress, length)
                self._checkpoint_step = progress.step
            self._last_checkpoint = time.monotonic()

    def _write(self, *records: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(*records)
        if self.board is not None:
            self.board.add(*records)

    def close(self) -> None:
        """Closes the records."""
        if self.metrics is not None:
            self.metrics.close()
        if self.board is not None:
            self.board.close()
