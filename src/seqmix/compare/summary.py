"""From what the contenders measured to what the comparison says: means, intervals, crossings, ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from statistics import fmean
from typing import Any

from seqmix.compare import statistics, units
from seqmix.compare.crossings import measured_crossings
from seqmix.compare.results import Comparison, Contender, Crossover, ModelSummary, NotMatched, Results, Trial
from seqmix.data import synthetic
from seqmix.models.crossings import Crossing

NOT_MATCHED = {
    "parameters": ("parameters", "without the embedding"),
    "flops_per_token": ("FLOPs per token", "forward"),
    "train_flops": ("training FLOPs", ""),
    "tokens": ("training tokens", ""),
    "train_seconds": ("training time", "seconds"),
    "train_money": ("training money", "money"),
    "tokens_per_second": ("training speed", "tokens/s"),
    "peak_memory_bytes": ("peak memory in training", "bytes"),
}

ADVANTAGES = {
    "decode_money_per_million_tokens": "generates a token for less money",
    "prefill_money_per_million_tokens": "reads a prompt for less money",
    "state_bytes": "keeps a smaller state",
    "flops_per_generated_token": "takes fewer FLOPs for a generated token",
}


def model_names(results: Results) -> list[str]:
    """The models, in the order they were named."""
    return list(dict.fromkeys(contender["model"] for contender in results["contenders"]))


def finished(results: Results, model: str | None = None) -> list[Contender]:
    """The contenders that finished, of one model or of all."""
    return [
        contender
        for contender in results["contenders"]
        if contender["status"] == "finished" and model in (None, contender["model"])
    ]


def mean_of(results: Results, model: str, field: str) -> float | None:
    """The mean over the finished seeds of a model of one field; None where none has it."""
    values: list[Any] = [dict(contender)[field] for contender in finished(results, model)]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def by_context(results: Results, model: str, field: str) -> dict[int, float]:
    """A field that is measured by context, of a model; empty where it was not measured."""
    for contender in finished(results, model):
        values: Mapping[str, float] = dict(contender)[field]  # type: ignore[assignment]
        if values:
            return {int(context): value for context, value in values.items()}
    return {}


def is_task(results: Results) -> bool:
    """Whether the data are a synthetic task, which is ranked by accuracy instead of bits per byte."""
    return synthetic.is_task(results["settings"]["data"])


def score(entry: Contender | Trial | ModelSummary) -> float | None:
    """What ranks, lower is better: bits per byte, of a task the share of wrong answers; None where not known."""
    accuracy = entry.get("accuracy")
    return entry["bits_per_byte"] if accuracy is None else 1 - accuracy


def summarize_models(results: Results) -> list[ModelSummary]:
    """Each model over its seeds."""
    summaries: list[ModelSummary] = []
    for model in model_names(results):
        values = list(_scores(results, model).values())
        if is_task(results):
            values = [1 - value for value in values]
        mean = fmean(values) if values else None
        summaries.append(
            {
                "model": model,
                "finished": len(values),
                "failed": sum(c["model"] == model and c["status"] == "failed" for c in results["contenders"]),
                "bits_per_byte": None if is_task(results) else mean,
                "accuracy": mean if is_task(results) else None,
                "lowest": min(values, default=None),
                "highest": max(values, default=None),
            }
        )
    return summaries


def _scores(results: Results, model: str) -> dict[int, float]:
    return {c["seed"]: found for c in finished(results, model) if (found := score(c)) is not None}


def accuracy_by_octave(results: Results, model: str) -> dict[int, float]:
    """A task's accuracy over the distances 2^n to 2^(n+1) - 1, by n: the mean of them and of the seeds."""
    found: dict[int, list[float]] = {}
    for contender in finished(results, model):
        for distance, accuracy in contender["accuracy_by_distance"].items():
            found.setdefault(int(distance).bit_length() - 1, []).append(accuracy)
    return {octave: fmean(values) for octave, values in sorted(found.items())}


def octave_name(octave: int) -> str:
    """The distances of an octave, in words."""
    first, last = 2**octave, 2 ** (octave + 1) - 1
    return str(first) if first == last else f"{first} to {last}"


def compare_models(results: Results) -> list[Comparison]:
    """The difference of every pair that shares a seed, the better one of the pair first."""
    scores = {model: _scores(results, model) for model in model_names(results)}
    scores = {model: by_seed for model, by_seed in scores.items() if by_seed}
    blocks = {
        model: {c["seed"]: c["error_by_block"] or c["bits_by_block"] for c in finished(results, model)}
        for model in scores
    }
    noise = statistics.run_noise(scores)
    comparisons: list[Comparison] = []
    for a, b in combinations(sorted(scores, key=lambda model: fmean(scores[model].values())), 2):
        found = statistics.difference(scores[a], scores[b], noise, blocks[a], blocks[b])
        if found is not None:
            comparisons.append(
                {
                    "a": a,
                    "b": b,
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "separable": found.separable,
                    "seeds": found.seeds,
                }
            )
    return comparisons


def ranges(results: Results) -> list[NotMatched]:
    """The quantities that were not held equal and differ by more than 1 %."""
    matched = results["matched"]["quantity"]
    found: list[NotMatched] = []
    for field, (quantity, unit) in NOT_MATCHED.items():
        values = {model: mean_of(results, model, field) for model in model_names(results)}
        known = {model: value for model, value in values.items() if value is not None}
        if quantity == matched or len(known) < 2:
            continue
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[high] > 1.01 * known[low]:
            found.append(
                {
                    "quantity": quantity,
                    "unit": results["prices"]["unit"] if unit == "money" else unit,
                    "low": known[low],
                    "low_model": low,
                    "high": known[high],
                    "high_model": high,
                }
            )
    return found


def crossovers_measured(results: Results) -> list[Crossover]:
    """The contexts at which the order of two models flips, between measured points."""
    found: list[Crossover] = []
    for quantity in ("decode_money_per_million_tokens", "prefill_money_per_million_tokens"):
        lines = {model: _money_line(results, model, quantity) for model in model_names(results)}
        for a, b in combinations([model for model, line in lines.items() if line], 2):
            crossings = measured_crossings(lines[a], lines[b])
            if len(crossings) == 1:
                found.append(crossover(quantity, "context", "measured", a, b, crossings[0]))
            elif len(crossings) % 2:
                found.append(_noisy_crossover(quantity, a, b, crossings))
    return found + _total_money_crossovers(results)


def _money_line(results: Results, model: str, quantity: str) -> dict[int, float]:
    if quantity == "decode_money_per_million_tokens":
        return by_context(results, model, quantity)
    speeds = by_context(results, model, "prefill_tokens_per_second")
    per_second = results["prices"]["per_hour"] / 3600
    return {context: 1e6 * per_second / speed for context, speed in speeds.items() if speed}


def _noisy_crossover(quantity: str, a: str, b: str, crossings: list[Crossing]) -> Crossover:
    """One crossing for several: costs that grow by context cross once, so what is between is noise."""
    first, last = crossings[0].at, crossings[-1].at
    middle = Crossing(at=(first * last) ** 0.5, first_is_lower_before=crossings[0].first_is_lower_before)
    found = crossover(quantity, "context", "measured", a, b, middle)
    low, high = (units.count(float(f"{place:.2g}")) for place in (first, last))
    what = f"{found['b']} {ADVANTAGES[quantity]} than {found['a']}"
    found["text"] = f"{what} from a context between {low} and {high} on; the measurement is too noisy to tell where."
    return found


def crossover(quantity: str, axis: str, source: str, a: str, b: str, crossing: Crossing) -> Crossover:
    """A crossing as results.json holds it: `a` is the better one below it."""
    below, above = (a, b) if crossing.first_is_lower_before else (b, a)
    what = ADVANTAGES[quantity]
    at = units.count(crossing.at) if source == "formula" else f"about {units.count(float(f'{crossing.at:.2g}'))}"
    return {
        "quantity": quantity,
        "axis": axis,
        "source": source,
        "a": below,
        "b": above,
        "at": crossing.at,
        "text": f"{above} {what} than {below} from {axis} {at} on.",
    }


def _total_money_crossovers(results: Results) -> list[Crossover]:
    """How many tokens must be served until what a cheaper step saves has paid for a dearer training."""
    context = str(results["settings"]["context"])
    lines: dict[str, tuple[float, float]] = {}
    for model in model_names(results):
        train = mean_of(results, model, "train_money")
        decode = by_context(results, model, "decode_money_per_million_tokens").get(int(context))
        if train is not None and decode is not None:
            lines[model] = (train, decode / 1e6)
    found: list[Crossover] = []
    for a, b in combinations(lines, 2):
        (a_train, a_token), (b_train, b_token) = lines[a], lines[b]
        if (a_train - b_train) * (a_token - b_token) >= 0 or _is_close(a_token, b_token) or _is_close(a_train, b_train):
            continue
        at = (b_train - a_train) / (a_token - b_token)
        below, above = (a, b) if a_train < b_train else (b, a)
        found.append(
            {
                "quantity": "total_money",
                "axis": "served tokens",
                "source": "measured",
                "a": below,
                "b": above,
                "at": at,
                "text": f"{above} costs less in total (training and generating at context {context}) than {below} "
                f"after about {units.number(at)} generated tokens.",
            }
        )
    return found


def _is_close(a: float, b: float) -> bool:
    return max(a, b) < 1.05 * min(a, b)


def summarize(results: Results, formula_crossovers: list[Crossover]) -> None:
    """Fills in everything that follows from the contenders: models, comparisons, crossovers and ranges."""
    results["models"] = summarize_models(results)
    results["comparisons"] = compare_models(results)
    results["not_matched"] = ranges(results)
    results["crossovers"] = crossovers_measured(results) + formula_crossovers


def cheapest(values: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The key of the lowest known value, and that value."""
    known = {key: value for key, value in values.items() if value is not None}
    if not known:
        return None
    best = min(known, key=known.__getitem__)
    return best, known[best]


def common_contexts(results: Results, models: Iterable[str], field: str) -> list[int]:
    """The contexts at which every one of the models has been measured."""
    lines = [set(by_context(results, model, field)) for model in models]
    lines = [line for line in lines if line]
    return sorted(set.intersection(*lines)) if lines else []
