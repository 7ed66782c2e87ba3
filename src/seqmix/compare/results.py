"""What a comparison writes: the schema of results.json, and reading and writing it without ever losing it.

results.json is complete at every moment: contenders that have not run yet are there with the status "pending"
and None in what is not known. Contexts are keys in words ("128") because JSON has no other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from seqmix.errors import InputError
from seqmix.files import write_json

FORMAT = 1
"""Raised when a reader of the old form would misread the new one."""

RESULTS_NAME = "results.json"

Status = Literal["pending", "running", "finished", "failed", "interrupted"]


class Curve(TypedDict):
    """The smoothed training loss (nats a token) against what was spent; lists of equal length."""

    tokens: list[int]
    flops: list[float]
    seconds: list[float]
    money: list[float]
    loss: list[float]


class Evaluations(TypedDict):
    """Bits per byte of held-out text during training, or the accuracy of a task; lists of equal length."""

    tokens: list[int]
    seconds: list[float]
    bits_per_byte: list[float | None]
    accuracy: NotRequired[list[float]]


class LossByPosition(TypedDict):
    """Mean bits a token at a place in the context (0 = first); places are averaged in growing bins."""

    position: list[float]
    bits: list[float]


class MatrixImage(TypedDict):
    """A picture of |M| of one head on held-out text, square root scaled, its own maximum darkest."""

    layer: int
    head: int
    mixer: str
    png: str


class Contender(TypedDict):
    """One model trained with one seed. What is not known (yet, or because it failed) is None or empty.

    parameters: without the embedding and the head. flops_per_token: forward, at the context.
    train_flops: three forwards for every token. train_seconds: training steps only. *_money: in the price's unit.
    state_bytes, decode_tokens_per_second, prefill_tokens_per_second, decode_money_per_million_tokens: by context,
    batch 1, measured once for a model (the same for all its seeds).
    receptive_field, positions_seen: None where every earlier token is seen. path_length: layers until the first
    token of the context can reach the last output; None where it never can.
    bits_by_block: bits a byte of consecutive blocks of held-out text, the same blocks for all contenders.
    accuracy, best_accuracy, example_accuracy: of a synthetic task, the share of right answers at the end, the highest
    on the way, and the share of rows that are all right; accuracy_by_distance: where the task has distances.
    error_by_block: the share of wrong answers of consecutive blocks. None or empty for text. Of a task, in turn,
    bits_per_byte, best_bits_per_byte and word_perplexity are None, since it has no bytes.
    gradient_norm_by_depth: norm of the loss's gradient in the residual stream, from the embedding upwards.
    """

    model: str
    seed: int
    status: Status
    error: str | None
    folder: str
    parameters: int | None
    total_parameters: int | None
    width: int | None
    depth: int | None
    flops_per_token: float | None
    learning_rate: float | None
    tokens: int | None
    train_flops: float | None
    train_seconds: float | None
    train_money: float | None
    accelerator_days: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    bits_per_byte: float | None
    best_bits_per_byte: float | None
    perplexity: float | None
    word_perplexity: float | None
    accuracy: float | None
    best_accuracy: float | None
    example_accuracy: float | None
    accuracy_by_distance: dict[str, float]
    error_by_block: list[float]
    state_bytes: dict[str, int]
    decode_tokens_per_second: dict[str, float]
    prefill_tokens_per_second: dict[str, float]
    decode_money_per_million_tokens: dict[str, float]
    receptive_field: int | None
    positions_seen: int | None
    path_length: int | None
    is_reach_known: bool
    curve: Curve | None
    evaluations: Evaluations | None
    loss_by_position: LossByPosition | None
    bits_by_block: list[float]
    gradient_norm_by_depth: list[float]
    matrix_images: list[MatrixImage]


class Matched(TypedDict):
    """What was held equal: the quantity, its target, each model's value, and spread = (highest - lowest) / lowest."""

    quantity: str
    unit: str
    target: float | None
    spread: float | None
    tolerance: float | None
    reached: dict[str, float]


class NotMatched(TypedDict):
    """A quantity that differs between the models: means over seeds, the lowest and the highest."""

    quantity: str
    unit: str
    low: float
    low_model: str
    high: float
    high_model: str


class ModelSummary(TypedDict):
    """One model over its seeds: mean bits per byte, of a task mean accuracy, and the seeds' lowest and highest."""

    model: str
    finished: int
    failed: int
    bits_per_byte: float | None
    accuracy: float | None
    lowest: float | None
    highest: float | None


class Comparison(TypedDict):
    """The difference a - b with its 95 % interval (None with one seed): in bits per byte, of a task in the share of
    wrong answers."""

    a: str
    b: str
    difference: float
    low: float | None
    high: float | None
    separable: bool
    seeds: int


class Crossover(TypedDict):
    """Where the order of two models flips: below `at` on the axis, a has the lower value (is better), above it b.

    quantity: such as "state_bytes", "decode_money_per_million_tokens", "total_money". axis: "context" or
    "served tokens". source: "measured" (interpolated between measured points) or "formula".
    """

    quantity: str
    axis: str
    source: str
    a: str
    b: str
    at: float
    text: str


class Trial(TypedDict):
    """One trial of a learning rate, before the real runs. accuracy: of a task. loss: at the end of the training."""

    model: str
    learning_rate: float
    status: Status
    error: str | None
    tokens: int | None
    train_seconds: float | None
    train_money: float | None
    bits_per_byte: float | None
    accuracy: NotRequired[float | None]
    loss: NotRequired[float | None]
    chosen: bool


class CorpusSummary(TypedDict):
    """The text: sizes of the two parts, what was evaluated of the held-out one, and what was noticed in reading.

    Of a synthetic task the bytes are None, and train_tokens too where it draws rows without end.
    """

    name: str
    fingerprint: str
    tokenizer: str
    vocab_size: int
    train_bytes: int | None
    train_tokens: int | None
    valid_bytes: int | None
    valid_tokens: int
    evaluated_tokens: int | None
    notes: list[str]


class Environment(TypedDict):
    """Where it ran: commit (None outside of a checkout), versions by package, hardware, threads and date (UTC)."""

    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    threads: int
    date: str


class Results(TypedDict):
    """All of results.json.

    status: "finished" when every contender is finished or failed and all is measured.
    plans: the shape and the budget of each model (`matching.ContenderPlan`), decided before training.
    notes: what went otherwise than asked, in sentences; the verdict ends with them.
    """

    format: int
    status: Status
    command: str
    settings: dict[str, Any]
    environment: Environment
    prices: dict[str, Any]
    corpus: CorpusSummary
    plans: list[dict[str, Any]]
    matched: Matched
    not_matched: list[NotMatched]
    models: list[ModelSummary]
    contenders: list[Contender]
    tuning: list[Trial]
    comparisons: list[Comparison]
    crossovers: list[Crossover]
    verdict: list[str]
    notes: list[str]


def new_contender(model: str, seed: int, folder: str) -> Contender:
    """A contender of which nothing is known yet."""
    return {
        "model": model,
        "seed": seed,
        "status": "pending",
        "error": None,
        "folder": folder,
        "parameters": None,
        "total_parameters": None,
        "width": None,
        "depth": None,
        "flops_per_token": None,
        "learning_rate": None,
        "tokens": None,
        "train_flops": None,
        "train_seconds": None,
        "train_money": None,
        "accelerator_days": None,
        "tokens_per_second": None,
        "peak_memory_bytes": None,
        "bits_per_byte": None,
        "best_bits_per_byte": None,
        "perplexity": None,
        "word_perplexity": None,
        "accuracy": None,
        "best_accuracy": None,
        "example_accuracy": None,
        "accuracy_by_distance": {},
        "error_by_block": [],
        "state_bytes": {},
        "decode_tokens_per_second": {},
        "prefill_tokens_per_second": {},
        "decode_money_per_million_tokens": {},
        "receptive_field": None,
        "positions_seen": None,
        "path_length": None,
        "is_reach_known": True,
        "curve": None,
        "evaluations": None,
        "loss_by_position": None,
        "bits_by_block": [],
        "gradient_norm_by_depth": [],
        "matrix_images": [],
    }


def read_json(path: Path) -> Any:
    """The document of a JSON file; None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): remove the folder or choose another --out") from error


def write_results(folder: Path, results: Results) -> None:
    """Writes results.json of a comparison's folder, atomically."""
    write_json(folder / RESULTS_NAME, results)


def read_results(folder: Path) -> Results | None:
    """results.json of a comparison's folder; None where there is none.

    What an earlier version did not know of a contender is filled in as not known.

    Raises:
        InputError: it is not results.json of this format.
    """
    path = folder / RESULTS_NAME
    document = read_json(path)
    if document is None:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise InputError(f"{path} has format {found!r}, this seqmix reads {FORMAT}: choose another --out")
    document["contenders"] = [
        {**new_contender(one["model"], one["seed"], one["folder"]), **one} for one in document["contenders"]
    ]
    return document  # type: ignore[return-value]
