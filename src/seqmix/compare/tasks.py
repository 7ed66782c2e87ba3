"""What is done in a process of its own; every function takes a JSON document and a reporter and returns one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from seqmix.compare.matrix_images import SIDE, matrix_images
from seqmix.compare.results import Curve, Evaluations
from seqmix.data import ExampleStore, TokenStore, load_corpus
from seqmix.errors import InputError
from seqmix.evaluation import evaluate
from seqmix.evaluation.speed import measure_speeds
from seqmix.models.contenders import LanguageModel, config_of_document, make_model
from seqmix.models.loading import open_model
from seqmix.training import TrainSettings, read_metrics, train
from seqmix.training.run import choose_device

CURVE_POINTS = 120
SPEED_FIELDS = ("state_bytes", "decode_tokens_per_second", "prefill_tokens_per_second")

Report = Callable[[dict[str, Any]], None]


def train_contender(argument: dict[str, Any], report: Report) -> dict[str, Any]:
    """Trains, or goes on training, one contender and measures what is its own.

    Args:
        argument: train (TrainSettings), training_flops (for one token), per_hour, measure (False for a trial of a
            learning rate: the training alone).

    Returns:
        status, and fields of `Contender` when it is "finished".
    """
    settings = TrainSettings(**argument["train"])

    def on_step(*, step: int, tokens: int, seconds: float, loss: float, time_left: float) -> None:
        report({"seconds": seconds, "time_left": time_left, "loss": loss, "tokens": tokens})

    result = train(settings, resume=True, reporter=on_step, message=print)
    if result.status != "finished":
        return {"status": result.status}
    per_hour, flops = argument["per_hour"], argument["training_flops"]
    fields: dict[str, Any] = {
        "status": "finished",
        "learning_rate": result.learning_rate,
        "tokens": result.tokens,
        "train_seconds": result.seconds,
        "train_money": result.seconds / 3600 * per_hour,
        "bits_per_byte": result.bits_per_byte,
        "accuracy": result.accuracy,
    }
    if not argument["measure"]:
        return fields | {"loss": result.final_loss}
    report({"note": "measuring"})
    steps = read_metrics(Path(result.folder) / "metrics.jsonl", "step")
    gradients = [record["norms"] for record in read_metrics(Path(result.folder) / "metrics.jsonl", "gradients")]
    fields |= {
        "train_flops": result.tokens * flops,
        "tokens_per_second": result.tokens / result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "best_bits_per_byte": result.best_bits_per_byte,
        "best_accuracy": result.best_accuracy,
        "curve": training_curve(steps, flops, per_hour),
        "evaluations": _evaluations(read_metrics(Path(result.folder) / "metrics.jsonl", "evaluation")),
        # The median over the whole training: a single batch tells little.
        "gradient_norm_by_depth": [median(norms) for norms in zip(*gradients, strict=True)],
    }
    return fields | _measure_quality(settings, result.folder)


def training_curve(steps: Sequence[dict[str, Any]], flops: float, per_hour: float) -> Curve:
    """The records of training steps as at most `CURVE_POINTS` points, each the mean loss of neighbouring steps."""
    per_point = max(1, math.ceil(len(steps) / CURVE_POINTS))
    groups = [steps[first : first + per_point] for first in range(0, len(steps), per_point)]
    tokens = [group[-1]["tokens"] for group in groups]
    seconds = [group[-1]["seconds"] for group in groups]
    return {
        "tokens": tokens,
        "flops": [count * flops for count in tokens],
        "seconds": seconds,
        "money": [second / 3600 * per_hour for second in seconds],
        "loss": [fmean(step["loss"] for step in group) for group in groups],
    }


def _evaluations(records: Sequence[dict[str, Any]]) -> Evaluations:
    found: Evaluations = {
        "tokens": [record["tokens"] for record in records],
        "seconds": [record["seconds"] for record in records],
        "bits_per_byte": [record["bits_per_byte"] for record in records],
    }
    if any("accuracy" in record for record in records):
        found["accuracy"] = [record["accuracy"] for record in records]
    return found


def _measure_quality(settings: TrainSettings, folder: str) -> dict[str, Any]:
    """What needs the trained weights and the held-out text."""
    device = _prepare(settings.to_dict())
    corpus = load_corpus(settings.data, valid=settings.valid, tokenizer=settings.tokenizer)
    model = open_model(folder, device=device)
    quality = evaluate(
        model,
        corpus.valid,
        context=settings.context,
        batch_size=settings.batch_size,
        device=device,
        max_tokens=settings.final_evaluate_tokens,
    )
    answers = quality.answers
    return {
        "perplexity": _finite(quality.perplexity),
        "word_perplexity": _finite(quality.word_perplexity),
        "example_accuracy": None if answers is None else answers.example_accuracy,
        "accuracy_by_distance": quality.to_dict().get("accuracy_by_distance", {}),
        "error_by_block": [] if answers is None else answers.error_by_block,
        "loss_by_position": {
            "position": quality.loss_by_position_bins.positions,
            "bits": quality.loss_by_position_bins.bits,
        },
        "bits_by_block": quality.bits_by_block,
        "matrix_images": matrix_images(model, _first_text(corpus.valid).to(device)),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, which the perplexity of words can reach."""
    return value if value is not None and math.isfinite(value) else None


def _first_text(store: TokenStore | ExampleStore) -> torch.Tensor:
    """(1, time) tokens of the first document that is long enough for a picture, else of the longest; of a task, of its
    first row."""
    if isinstance(store, ExampleStore):
        return torch.from_numpy(store.read(np.arange(1)).tokens[:, :SIDE])
    lengths = store.documents[1:] - store.documents[:-1]
    enough = [index for index, length in enumerate(lengths) if length >= SIDE]
    document = enough[0] if enough else int(lengths.argmax())
    first = int(store.documents[document])
    last = min(first + SIDE, int(store.documents[document + 1]))
    return torch.tensor(store.tokens[first:last].astype("int64"))[None]


def measure_models(argument: dict[str, Any], report: Report) -> dict[str, Any]:
    """Speed and state of trained models by context, all measured in turn.

    Args:
        argument: folders (of runs, by model), contexts, seconds (in all), device, threads.

    Returns:
        By model: fields of `Contender`, and left_out, the contexts that were not measured with the reason.
    """
    device = _prepare(argument)
    models = {name: open_model(folder, device=device) for name, folder in argument["folders"].items()}
    speeds = measure_speeds(
        models,
        argument["contexts"],
        budget_seconds=argument["seconds"],
        show=lambda share, note: report({"share": share, "note": note}),
    )
    measured = {name: speed.to_dict() for name, speed in speeds.items()}
    return {name: {field: one[field] for field in (*SPEED_FIELDS, "left_out")} for name, one in measured.items()}


def time_decoding(argument: dict[str, Any], report: Report) -> dict[str, Any]:
    """Seconds for one generated token of untrained models with `context` tokens read, measured in turn.

    Args:
        argument: configs, context, seconds (in all), device, threads.
    """
    device = _prepare(argument)
    models: dict[str, LanguageModel] = {}
    for number, config in enumerate(argument["configs"]):
        with device:
            models[str(number)] = make_model(config_of_document(config))
    context = argument["context"]
    speeds = measure_speeds(models, [context], budget_seconds=argument["seconds"])
    for speed in speeds.values():
        if context in speed.left_out:
            raise InputError(f"the time of a token at context {context} cannot be measured: {speed.left_out[context]}")
    return {"seconds": [1 / speed.decode_tokens_per_second[context] for speed in speeds.values()]}


def _prepare(argument: dict[str, Any]) -> torch.device:
    """Sets the threads and returns the device."""
    if argument["threads"] is not None:
        torch.set_num_threads(argument["threads"])
    return choose_device(argument["device"])
