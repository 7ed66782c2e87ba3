"""A comparison from its settings to its verdict.

Order: shapes and budgets; trials of learning rates, if any; then seed after seed all models in turn, so that a
machine that changes its speed does so for all; then all speeds side by side. results.json is written after each step,
and a comparison that is started again with the same settings goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from seqmix.compare import units
from seqmix.compare.formulas import formula_crossovers
from seqmix.compare.held_equal import matched, served_tokens_crossover
from seqmix.compare.opening import TRIAL_SHARE, begin, file_name, stored_plans, stored_results, train_settings
from seqmix.compare.prices import Prices, default_accelerator, prices
from seqmix.compare.process import TaskFailedError, run_apart
from seqmix.compare.progress import Display, Pace
from seqmix.compare.results import Contender, Results, Status, Trial, write_results
from seqmix.compare.settings import CompareSettings
from seqmix.compare.summary import finished, model_names, score, summarize
from seqmix.compare.tasks import SPEED_FIELDS
from seqmix.compare.verdict import verdict
from seqmix.data import load_corpus, open_stream
from seqmix.errors import InputError, SeqmixError
from seqmix.models.contenders import AnyConfig, document_of
from seqmix.training.run import choose_device

SPEED_CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TIMING_SECONDS = 1.5
"""What timing the decoding of one untrained model may take."""

REPORT_NAME = "report.html"

_OPEN: tuple[Status, ...] = ("pending", "running", "interrupted")


def run_comparison(settings: CompareSettings, out: str | os.PathLike[str], display: Display) -> Results:
    """Runs a comparison, or what is left of it, in the folder `out`; a finished one is only read.

    Raises:
        InputError: settings, data or folder cannot be used; nothing has been written then.
        KeyboardInterrupt: it was stopped (Ctrl-C, SIGTERM); the same call goes on.
    """
    folder = Path(out)
    results = stored_results(folder, settings)
    if results is not None and results["status"] == "finished":
        if not (folder / REPORT_NAME).exists():
            write_page(results, folder, display)
        return results
    device = choose_device(settings.device)
    charged = choose_prices(settings, device)
    display.update(0.0, label="reading the text")
    corpus = load_corpus(settings.data, valid=settings.valid, tokenizer=settings.tokenizer, progress=display.message)
    # Refuses a text that is too short for the context.
    open_stream(corpus.train, settings.context)
    if results is None:
        display.update(0.0, label="solving for sizes")
        results = begin(
            settings, folder, corpus, charged, str(device), lambda configs: decode_seconds(settings, configs)
        )
    elif results["corpus"]["fingerprint"] != corpus.fingerprint:
        raise InputError(f"the text has changed since {str(folder)!r} was begun: bring it back or choose another --out")
    else:
        done = sum(contender["status"] not in _OPEN for contender in results["contenders"])
        display.message(f"continuing in {folder}: {done} of {len(results['contenders'])} contenders are done")
    with _held(folder), _interrupt_on_terminate():
        Comparison(settings, folder, results, display).run()
    return results


def choose_prices(settings: CompareSettings, device: torch.device) -> Prices:
    """The prices of the accelerator that was named, else of the one that the device is."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return prices(settings.accelerator or default_accelerator(kind), price=settings.price)


def decode_seconds(settings: CompareSettings, configs: Sequence[AnyConfig]) -> list[float]:
    """The seconds that each of some models takes for a token at its context, measured in turn in a process apart."""
    argument = {
        "configs": [document_of(config) for config in configs],
        "context": settings.context,
        "seconds": TIMING_SECONDS * len(configs),
        "device": settings.device,
        "threads": settings.threads,
    }
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        return run_apart("time_decoding", argument, log, lambda report: None, imports=settings.imports)["seconds"]


def write_page(results: Results, folder: Path, display: Display) -> None:
    """Writes report.html; where that fails, the results are kept and the reason is shown."""
    from seqmix.compare.report import write_report

    display.update(1.0, label="writing the report")
    try:
        write_report(results, folder / REPORT_NAME)
    except SeqmixError as error:
        display.message(f"there is no report: {error}; the same command writes it then")


class Comparison:
    """The part of a comparison that writes: it carries out what `results` says is still open."""

    def __init__(self, settings: CompareSettings, folder: Path, results: Results, display: Display) -> None:
        self.settings = settings
        self.folder = folder
        self.results = results
        self.display = display
        self.plans = {plan.model: plan for plan in stored_plans(results)}
        self.pace = Pace(results)

    def run(self) -> None:
        """Trials, contenders, speeds, then what follows from them."""
        for name in ("runs", "trials", "logs"):
            (self.folder / name).mkdir(exist_ok=True)
        self.save("running")
        try:
            for trial in self.results["tuning"]:
                if trial["status"] in _OPEN:
                    self._try_rate(trial)
            self._choose_rates()
            for contender in self.results["contenders"]:
                if contender["status"] in _OPEN:
                    self._train(contender)
            self._measure_speeds()
        except KeyboardInterrupt:
            self.save("interrupted")
            raise
        self._conclude("finished")
        write_page(self.results, self.folder, self.display)

    def save(self, status: Status) -> None:
        """Writes results.json."""
        self.results["status"] = status
        write_results(self.folder, self.results)

    def _try_rate(self, trial: Trial) -> None:
        plan, rate = self.plans[trial["model"]], trial["learning_rate"]
        name = f"{file_name(plan.model, self.settings.models)}-{rate:g}"
        train = train_settings(
            self.settings, plan, self.folder / "trials" / name, seed=0, learning_rate=rate, share=TRIAL_SHARE
        )
        label = f"{plan.model}, trial of learning rate {rate:.2g}"
        fields = self._run_training(trial, label, name, train.to_dict(), measure=False)
        for field in ("tokens", "train_seconds", "train_money", "bits_per_byte", "accuracy", "loss"):
            trial[field] = fields.get(field)
        self.save("running")

    def _choose_rates(self) -> None:
        """Marks the best trial of each model; contenders that have not begun take its rate."""
        for model in self.plans:
            trials = [trial for trial in self.results["tuning"] if trial["model"] == model]
            # Short trials of a task may all answer nothing right: the loss then decides.
            scores = [(score(trial), trial.get("loss") or 0.0, trial) for trial in trials]
            known = [one for one in scores if one[0] is not None]
            if not known:
                continue
            best = min(known, key=lambda one: one[:2])[2]
            best["chosen"] = True
            for contender in self.results["contenders"]:
                if contender["model"] == model:
                    contender["learning_rate"] = best["learning_rate"]
            if best in (trials[0], trials[-1]):
                rate = f"{best['learning_rate']:.2g}"
                self._note(f"{model} was best at the edge of its trials ({rate}): a larger --tune may help it.")

    def _note(self, text: str) -> None:
        if text not in self.results["notes"]:
            self.results["notes"].append(text)

    def _train(self, contender: Contender) -> None:
        plan = self.plans[contender["model"]]
        train = train_settings(
            self.settings,
            plan,
            self.folder / contender["folder"],
            seed=contender["seed"],
            learning_rate=contender["learning_rate"],
        )
        name = Path(contender["folder"]).name
        label = f"{plan.model}, seed {contender['seed']}"
        contender.update(self._run_training(contender, label, name, train.to_dict(), measure=True))  # type: ignore[typeddict-item]
        if contender["train_flops"] is not None:
            charged = Prices(**self.results["prices"])
            contender["accelerator_days"] = charged.accelerator_days(contender["train_flops"])
        self._conclude("running")

    def _run_training(
        self, entry: Contender | Trial, label: str, name: str, train: dict[str, Any], *, measure: bool
    ) -> dict[str, Any]:
        """Trains in a process apart; returns fields, none when it failed. Sets the entry's status."""
        argument = {
            "train": train,
            "training_flops": self.plans[entry["model"]].training_flops,
            "per_hour": self.results["prices"]["per_hour"],
            "measure": measure,
        }
        entry["status"] = "running"
        self.save("running")
        self.pace.begin(entry["model"], TRIAL_SHARE if not measure else 1.0)
        try:
            fields = run_apart(
                "train_contender",
                argument,
                self.folder / "logs" / f"{name}.txt",
                lambda report: self.pace.show(self.display, label, report),
                imports=self.settings.imports,
            )
        except TaskFailedError as error:
            entry["status"], entry["error"] = "failed", str(error)
            self.display.message(f"{label} failed: {error}")
            return {}
        except KeyboardInterrupt:
            entry["status"] = "interrupted"
            raise
        finally:
            self.pace.end()
        if fields["status"] == "interrupted":
            entry["status"] = "interrupted"
            raise KeyboardInterrupt
        entry["status"] = "finished"
        return fields

    def _measure_speeds(self) -> None:
        """Speeds and states of all models side by side; every seed of a model gets the same."""
        models = [model for model in model_names(self.results) if finished(self.results, model)]
        if not models:
            return
        self.display.update(self.pace.share, label="measuring speed and memory", time_left=self.pace.speed_seconds)
        argument = {
            "folders": {model: str(self.folder / finished(self.results, model)[0]["folder"]) for model in models},
            "contexts": sorted({*SPEED_CONTEXTS, self.settings.context}),
            "seconds": self.settings.speed_seconds * len(models),
            "device": self.settings.device,
            "threads": self.settings.threads,
        }
        try:
            measured = run_apart(
                "measure_models",
                argument,
                self.folder / "logs" / "speed.txt",
                lambda report: self.pace.show_speed(self.display, report),
                imports=self.settings.imports,
            )
        except TaskFailedError as error:
            self._note(f"The speeds could not be measured: {error}.")
            return
        per_second = self.results["prices"]["per_hour"] / 3600
        for contender in self.results["contenders"]:
            if contender["status"] == "finished":
                speed = measured[contender["model"]]
                for field in SPEED_FIELDS:
                    contender[field] = speed[field]  # type: ignore[literal-required]
                contender["decode_money_per_million_tokens"] = {
                    context: 1e6 / rate * per_second for context, rate in speed["decode_tokens_per_second"].items()
                }
        for model, speed in measured.items():
            for context, reason in list(speed["left_out"].items())[:1]:
                place = units.count(int(context))
                self._note(f"The speed of {model} was not measured from context {place} on: {reason}.")

    def _conclude(self, status: Status) -> None:
        """Derives everything that follows from the contenders so far, and writes it."""
        plans = list(self.plans.values())
        results = self.results
        results["matched"] = matched(self.settings, plans, results)
        alive = [plan for plan in plans if finished(results, plan.model)]
        formula = formula_crossovers(alive, results["corpus"]["vocab_size"], self.settings.context)
        summarize(results, [*formula, *served_tokens_crossover(self.settings, results)])
        results["verdict"] = verdict(results)
        self.save(status)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other comparisons out of it; a killed process lets go by itself."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be made ({error.strerror}): choose another --out") from error
    try:
        if descriptor is not None:
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SeqmixError(
                    f"another comparison is running in {str(folder)!r}: wait for it or choose another --out"
                ) from error
            except OSError:
                # Some network file systems have no locks; one writer is then up to the user.
                pass
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def _interrupt_on_terminate() -> Iterator[None]:
    """SIGTERM, as schedulers send it, stops as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
