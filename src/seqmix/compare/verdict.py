"""The verdict: what a comparison measured, in sentences that a reader can act on."""

from __future__ import annotations

from seqmix.compare import units
from seqmix.compare.results import Comparison, Crossover, Results
from seqmix.compare.summary import by_context, cheapest, common_contexts, finished, mean_of, model_names, score

CLOSE = 1.05
"""Costs within this factor of the lowest are called equal to it."""


_TOLD = ("decode_money_per_million_tokens", "total_money", "bits_per_byte_at_equal_total")
"""The crossings that the verdict tells of the best model; the others stand in `crossovers` alone."""


def verdict(results: Results) -> list[str]:
    """The sentences, the most important first."""
    models = [model for model in model_names(results) if finished(results, model)]
    if not models:
        return ["No contender finished, so there is nothing to compare.", *_failures(results), *results["notes"]]
    return [
        *_quality(results, models),
        *_training(results, models),
        *_serving(results, models),
        *_crossing(results, models),
        *_equality(results),
        *_failures(results),
        *results["notes"],
    ]


def _quality(results: Results, models: list[str]) -> list[str]:
    ranked = [entry for entry in results["models"] if score(entry) is not None]
    ranked.sort(key=lambda entry: score(entry) or 0.0)
    best = ranked[0]
    reached = (
        f"{best['bits_per_byte']:.3f} bits per byte"
        if best["accuracy"] is None
        else f"an accuracy of {best['accuracy']:.3f}"
    )
    if len(ranked) == 1:
        return [f"{best['model']} is the only model that finished: {reached}."]
    seeds = len({contender["seed"] for contender in finished(results)})
    over = "with one seed" if seeds == 1 else f"mean of {seeds} seeds"
    sentence = f"At {_condition(results)}, {best['model']} is best with {reached} ({over})"
    pairs = [pair for pair in results["comparisons"] if pair["a"] == best["model"]]
    if not pairs:
        return [sentence + "; no other model shares a seed with it."]
    sentences = [f"{sentence}; {_pair(pairs[0])}."]
    ties = [pair["b"] for pair in pairs[1:] if pair["low"] is not None and not pair["separable"]]
    if ties:
        sentences.append(f"It is not separable from {units.listed(ties)} either.")
    separable = [pair["b"] for pair in pairs if pair["separable"]]
    if separable and not pairs[0]["separable"]:
        sentences.append(f"It is separable from {units.listed(separable)}.")
    if pairs[0]["low"] is None:
        sentences.append("One seed gives no interval, so this order is a hint: repeat it with --seeds 3.")
    elif seeds == 2:
        sentences.append("Two seeds make wide intervals: more --seeds separate smaller differences.")
    return sentences


def _pair(pair: Comparison) -> str:
    behind = f"{pair['b']} is {_negated(pair['difference'])} behind"
    if pair["difference"] > 0:
        behind = f"{pair['b']} is {pair['difference']:.3f} ahead on the seeds that both finished"
    if pair["low"] is None or pair["high"] is None:
        return behind
    interval = f"95 % interval {_negated(pair['high'])} to {_negated(pair['low'])}"
    if pair["separable"]:
        return f"{behind} ({interval}), which is separable"
    return f"{behind}, which is not separable ({interval} contains zero)"


def _negated(value: float) -> str:
    """Minus a number in three decimals; of zero without a sign."""
    return f"{round(-value, 3) + 0.0:.3f}"


def _condition(results: Results) -> str:
    matched = results["matched"]
    target = ""
    if matched["target"] is not None:
        target = f" ({units.number(matched['target'])} {matched['unit']}".rstrip() + ")"
    return f"equal {matched['quantity']}{target} and a budget of {results['settings']['budget']}"


def _training(results: Results, models: list[str]) -> list[str]:
    unit = results["prices"]["unit"]
    costs = {model: mean_of(results, model, "train_money") for model in models}
    best = cheapest(costs)
    if best is None or len(models) == 1:
        return []
    model, cost = best
    dearest = max((value, name) for name, value in costs.items() if value is not None)
    if dearest[0] < CLOSE * cost:
        return [f"All cost about the same to train: {units.money(cost, unit)} a run."]
    time = units.duration(mean_of(results, model, "train_seconds"))
    spent = f"{units.money(cost, unit)} and {time} a run"
    return [f"{model} was the cheapest to train: {spent}, against {units.money(dearest[0], unit)} for {dearest[1]}."]


def _serving(results: Results, models: list[str]) -> list[str]:
    field = "decode_money_per_million_tokens"
    contexts = common_contexts(results, models, field)
    if not contexts or len(models) == 1:
        return []
    unit = results["prices"]["unit"]
    sentences = []
    for context in dict.fromkeys((contexts[0], contexts[-1])):
        lines = {model: by_context(results, model, field).get(context) for model in models}
        best = cheapest(lines)
        if best is None:
            continue
        near = [model for model, cost in lines.items() if cost is not None and cost < CLOSE * best[1]]
        others = {model: cost for model, cost in lines.items() if cost is not None and model not in near}
        verb = "is the cheapest" if len(near) == 1 else "are the cheapest (within 5 %)"
        against = ""
        if others:
            dearest = max(others, key=others.__getitem__)
            against = f", against {units.money(others[dearest], unit)} for {dearest}"
        sentences.append(
            f"At context {units.count(context)}, {units.listed(near)} {verb} to serve: "
            f"{units.money(best[1], unit)} per million generated tokens{against}."
        )
    return sentences


def _crossing(results: Results, models: list[str]) -> list[str]:
    """Crossings with the best model, then what a constant state means; all of them stand in `crossovers`."""
    known = [(found, entry["model"]) for entry in results["models"] if (found := score(entry)) is not None]
    best = min(known)[1] if known else None
    state = [crossing for crossing in results["crossovers"] if crossing["quantity"] == "state_bytes"]
    others = [
        crossing
        for crossing in results["crossovers"]
        if crossing["quantity"] in _TOLD and best in (crossing["a"], crossing["b"])
    ]
    return [crossing["text"] for crossing in others] + _state(state)


def _state(crossings: list[Crossover]) -> list[str]:
    """One sentence for each model whose state grows: from where on which constant states are smaller."""
    sentences = []
    for growing in dict.fromkeys(crossing["a"] for crossing in crossings):
        constants = sorted((crossing["at"], crossing["b"]) for crossing in crossings if crossing["a"] == growing)
        parts = [f"{units.count(at)} on ({model})" for at, model in constants]
        places = units.listed(parts)
        sentences.append(f"A constant state is smaller than the KV cache of {growing} from context {places}.")
    return sentences


def _equality(results: Results) -> list[str]:
    matched = results["matched"]
    sentences = []
    if matched["spread"] is not None and len(matched["reached"]) > 1:
        tolerance = matched["tolerance"]
        kept = ""
        if tolerance is not None:
            kept = f" (asked: within {units.share(tolerance)})"
            if matched["spread"] > tolerance:
                kept = f", more than the {units.share(tolerance)} asked for: read the order with care"
        sentences.append(f"Held equal: {matched['quantity']}, with a spread of {units.share(matched['spread'])}{kept}.")
    parts = []
    for entry in results["not_matched"]:
        low, high = _value(entry["low"], entry["unit"]), _value(entry["high"], entry["unit"])
        parts.append(f"{entry['quantity']} ({low} for {entry['low_model']} to {high} for {entry['high_model']})")
    if parts:
        sentences.append(f"Not held equal: {'; '.join(parts)}.")
    return sentences


def _value(value: float, unit: str) -> str:
    if unit == "bytes":
        return units.size(value)
    if unit == "seconds":
        return units.duration(value)
    return f"{units.number(value)} {unit}" if unit in ("tokens/s",) else units.number(value)


def _failures(results: Results) -> list[str]:
    failed = [contender for contender in results["contenders"] if contender["status"] == "failed"]
    sentences = [f"{c['model']} with seed {c['seed']} failed: {c['error']}" for c in failed]
    for trial in results["tuning"]:
        if trial["status"] == "failed":
            rate = f"{trial['learning_rate']:.2g}"
            sentences.append(f"A trial of {trial['model']} at learning rate {rate} failed: {trial['error']}")
    return sentences
