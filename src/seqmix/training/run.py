"""From settings to a finished run: `train` puts the parts together, and `TrainResult` says what came out."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from seqmix.data import Corpus, load_corpus
from seqmix.errors import InputError
from seqmix.models import SeqmixConfig, SeqmixForCausalLM, create_model
from seqmix.models.contenders import LanguageModel, config_of_document, contender, document_of, make_model
from seqmix.models.loading import open_model, require_mixers
from seqmix.training.board import require_tensorboard
from seqmix.training.distributed import join_processes, own_device
from seqmix.training.environment import describe_environment
from seqmix.training.loop import Training
from seqmix.training.memory import PeakMemory, memory_errors
from seqmix.training.processes import Processes
from seqmix.training.progress import Reporter
from seqmix.training.random_state import seed_everything
from seqmix.training.run_folder import RunFolder, open_run
from seqmix.training.settings import TrainSettings
from seqmix.training.stopping import stop_on_signal
from seqmix.training.weights import load_weights, read_run_weights, weight_tensors


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to.

    status: "finished", or "interrupted" by a signal, with a checkpoint to go on from; the evaluations are then None.
    tokens, steps: trained on. seconds: spent in training steps.
    bits_per_byte: of the final weights on the held-out part (`final_evaluate_tokens` of it).
    best_bits_per_byte: the lowest on `evaluate_tokens` of it, on the way or at the end.
    accuracy, best_accuracy: likewise of a synthetic task, whose bits per byte are None; None for text.
    is_solved: whether the training ended before its budget, at `stop_at_accuracy`.
    final_loss: training loss at the end, nats per token, smoothed over about 20 steps.
    peak_memory_bytes: see `PeakMemory`. resumed_from: the step at which this call took up the run, or None.
    parameters: without the embedding. learning_rate: the peak.
    """

    folder: str
    status: Literal["finished", "interrupted"]
    steps: int
    tokens: int
    seconds: float
    bits_per_byte: float | None
    best_bits_per_byte: float | None
    accuracy: float | None = None
    best_accuracy: float | None = None
    is_solved: bool = False
    final_loss: float | None
    peak_memory_bytes: int
    resumed_from: int | None
    parameters: int
    learning_rate: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON value."""
        return dataclasses.asdict(self)


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    message: Callable[[str], None] | None = None,
    show: Callable[[str], None] | None = None,
    processes: Processes | None = None,
) -> TrainResult:
    """Trains one model and leaves a run folder behind.

    Args:
        resume: go on from the newest good checkpoint in `settings.out`; where there is none yet, start.
        reporter: is told how it goes, a few times a second.
        message: is told what the user should know; None writes it to stderr.
        show: is told what goes on beside the steps: reading the data, evaluating.
        processes: who trains the same model together; None is those that torchrun started, or this one alone. All
            of them call this; messages, progress and files are the first one's.

    Raises:
        InputError: settings, data or the folder cannot be used.
        SeqmixError: the loss went wrong, or memory or the disk ran out. The last checkpoint stays.
    """
    device = own_device(choose_device(settings.device))
    with (
        join_processes(settings, device) if processes is None else nullcontext(processes) as group,
        _open(settings, resume, group) as run,
        _threads(settings.threads),
        memory_errors(settings.batch_size, settings.context),
    ):
        is_first = group.writes_files
        say = _nothing if not is_first else _to_stderr if message is None else message
        is_finished, is_started = group.agree(is_first and run.is_finished, is_first and run.is_started)
        if is_finished:
            say(f"the run in {str(run.path)!r} is finished already")
            return TrainResult(**{**run.read_result()["result"], "folder": str(run.path)})
        is_going_on = resume and bool(is_started)
        seed_everything(settings.seed)
        with group.together(), group.in_turn():
            corpus = load_corpus(settings.data, valid=settings.valid, tokenizer=settings.tokenizer, progress=show)
            stored = run.read_settings() if is_going_on else None
            if stored is not None:
                _check_same(stored, run, corpus, device, group.count, say)
        _check_equal(corpus, group)
        memory = PeakMemory(device)
        model = group.build(
            lambda: _create_model(settings, corpus, stored),
            lambda model: _start_from(settings.init_from, model),
            device,
        )
        training = Training(
            settings=settings,
            model=model,
            corpus=corpus,
            run_folder=run,
            device=device,
            peak_rate=_peak_rate(settings, model) if stored is None else stored["learning_rate"],
            processes=group,
            memory=memory,
            reporter=reporter if is_first else None,
            message=say,
            show=show or _nothing,
        )
        if not is_going_on and is_first:
            if resume:
                say(f"there is no run in {str(run.path)!r} yet: starting at step 0")
            run.write_settings(_describe(settings, corpus, training))
        return _carry_out(training, resume=is_going_on)


@contextmanager
def _open(settings: TrainSettings, resume: bool, processes: Processes) -> Iterator[RunFolder]:
    """The run folder, opened by the process that writes to it."""
    with ExitStack() as stack:
        with processes.together():
            if settings.tensorboard:
                require_tensorboard()
            run = (
                stack.enter_context(open_run(settings, resume=resume))
                if processes.writes_files
                else RunFolder(settings.out)
            )
        yield run


def _carry_out(training: Training, *, resume: bool) -> TrainResult:
    """Trains, evaluates and writes the result."""
    with closing(training):
        resumed_from = training.go_on(resume=resume)
        with stop_on_signal() as stop:
            is_done = training.run(stop)
        progress, settings = training.progress, training.settings
        run = training.run_folder
        result = TrainResult(
            folder=str(run.path),
            status="interrupted",
            steps=progress.step,
            tokens=training.tokens,
            seconds=progress.seconds,
            bits_per_byte=None,
            best_bits_per_byte=progress.best,
            best_accuracy=progress.best_accuracy,
            is_solved=progress.is_solved,
            final_loss=progress.monitor.smoothed,
            peak_memory_bytes=progress.peak_memory,
            resumed_from=resumed_from,
            parameters=training.model.non_embedding_parameters,
            learning_rate=training.peak_rate,
        )
        if not is_done:
            training.message(
                f"stopped at step {progress.step} with a checkpoint: "
                f"continue with seqmix train --resume --out {run.path}"
            )
            return result
        if training.final_reads_more:
            training.evaluate(settings.evaluate_tokens)
        last = training.evaluate(settings.final_evaluate_tokens, final=True)
        result = dataclasses.replace(
            result,
            status="finished",
            bits_per_byte=last.bits_per_byte,
            best_bits_per_byte=progress.best,
            accuracy=last.accuracy,
            best_accuracy=progress.best_accuracy,
        )
        model = training.processes.whole(training.model)
        if model is not None and training.metrics is not None:
            training.metrics.sync()
            run.finish(
                lambda folder: _save_model(model, training.corpus.tokenizer, folder), {"result": result.to_dict()}
            )
        return result


def _save_model(model: LanguageModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shows_bars:
            transformers_logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)


def choose_device(name: str | None) -> torch.device:
    """The device of a name; None is a GPU where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known: use cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs are seen): use --device cpu")
    if device.type not in ("cpu", "cuda", "mps", "xpu"):
        raise InputError(f"device {name!r} cannot train: use cpu or cuda")
    return device


def _create_model(settings: TrainSettings, corpus: Corpus, stored: dict[str, Any] | None) -> LanguageModel:
    """A new model, or the one that settings.json describes: a preset may change from one version to the next."""
    if stored is not None:
        config = config_of_document(stored["model"]["config"])
        if isinstance(config, SeqmixConfig):
            require_mixers(config, stored["settings"].get("imports", []), f"the run in {settings.out!r}")
        return make_model(config)
    model = create_model(
        settings.model,
        vocab_size=corpus.vocab_size,
        params=settings.params,
        context=settings.context,
        **settings.options,
    )
    if corpus.task is not None:
        # The config's own are those of bytes, which the vocabulary of a task need not reach.
        words = corpus.tokenizer
        model.config.update(
            {
                "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id,
            }
        )
    return model


def _start_from(folder: str | None, model: LanguageModel) -> None:
    if folder is None:
        return
    if isinstance(model, SeqmixForCausalLM):
        load_weights(model, read_run_weights(Path(folder)), f"the run {folder!r}")
    else:
        # Files of transformers may name weights otherwise than the model does.
        load_weights(model, weight_tensors(open_model(folder)), f"the run {folder!r}")


def _peak_rate(settings: TrainSettings, model: LanguageModel) -> float:
    if settings.learning_rate is not None:
        return settings.learning_rate
    return contender(settings.model).learning_rate(model.non_embedding_parameters)


def _describe(settings: TrainSettings, corpus: Corpus, training: Training) -> dict[str, Any]:
    """What settings.json holds: everything that decided the run."""
    return {
        "settings": settings.to_dict(),
        "environment": describe_environment(training.device),
        "processes": training.processes.count,
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "vocab_size": corpus.vocab_size,
            "train_tokens": corpus.train_tokens,
            "valid_tokens": corpus.valid_tokens,
        },
        "model": {
            "config": document_of(training.model.config),
            "non_embedding_parameters": training.model.non_embedding_parameters,
            "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        },
        "learning_rate": training.peak_rate,
    }


def _check_same(
    stored: dict[str, Any], run: RunFolder, corpus: Corpus, device: torch.device, count: int, say: Callable[[str], None]
) -> None:
    """Refuses to go on with other data; other software or hardware only changes the last digits, and is said."""
    if stored["corpus"]["fingerprint"] != corpus.fingerprint:
        raise InputError(
            f"the data of the run in {str(run.path)!r} have changed since it was started: "
            "bring them back, or start a new run with another --out"
        )
    before, now = stored["environment"], describe_environment(device)
    pairs = {
        "torch": (before["versions"]["torch"], now["versions"]["torch"]),
        "threads": (before["threads"], now["threads"]),
        "processes": (stored.get("processes", 1), count),
        "device": (before["hardware"]["device"], now["hardware"]["device"]),
    }
    for name, (old, new) in pairs.items():
        if old != new:
            say(f"the run was started with {name} {old} and goes on with {new}: the last digits may differ")


def _check_equal(corpus: Corpus, processes: Processes) -> None:
    """Refuses machines that read different data under the same name."""
    number = int.from_bytes(hashlib.sha256(corpus.fingerprint.encode()).digest()[:6])
    greatest, negative_least = processes.agree(number, -number)
    with processes.together():
        if greatest != -negative_least:
            raise InputError(f"the data {corpus.name!r} are not the same on all machines: copy them from one of them")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nothing(text: str) -> None:
    pass


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
