"""How well what should be equal is equal, and what a matched total of money says about more served tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from seqmix.compare import units
from seqmix.compare.matching import MONEY_TOLERANCE, ContenderPlan, plan_budgets, spread
from seqmix.compare.results import Contender, Crossover, Evaluations, Matched, Results
from seqmix.compare.settings import Budget, CompareSettings
from seqmix.compare.summary import by_context, finished, mean_of
from seqmix.models.contenders import contender
from seqmix.models.sizing import TOLERANCE, parse_size

QUANTITIES = {
    "params": ("parameters", "", TOLERANCE),
    "flops": ("FLOPs per token", "", TOLERANCE),
    "train-flops": ("training FLOPs", "", TOLERANCE),
    "train-seconds": ("training time", "seconds", TOLERANCE),
    "train-money": ("training money", "", TOLERANCE),
    "decode-money": ("money per million generated tokens", "", MONEY_TOLERANCE),
    "total-money": ("money for training and serving", "", MONEY_TOLERANCE),
}


def matched(settings: CompareSettings, plans: Sequence[ContenderPlan], results: Results) -> Matched:
    """The quantity that was held equal, each model's value, and their spread; None while it is not known."""
    quantity, unit, tolerance = QUANTITIES[settings.match]
    values = {plan.model: _reached(settings, plan, results) for plan in plans}
    reached = {model: value for model, value in values.items() if value is not None}
    return {
        "quantity": quantity,
        "unit": unit or (results["prices"]["unit"] if "money" in settings.match else ""),
        "target": _target(settings, plans, results),
        "spread": spread(list(reached.values())) if reached else None,
        "tolerance": tolerance,
        "reached": reached,
    }


def _reached(settings: CompareSettings, plan: ContenderPlan, results: Results) -> float | None:
    fields = {"train-flops": "train_flops", "train-seconds": "train_seconds", "train-money": "train_money"}
    if settings.match == "params":
        return plan.parameters
    if settings.match == "flops":
        return plan.flops_per_token
    if settings.match in fields:
        return mean_of(results, plan.model, fields[settings.match])
    decode = by_context(results, plan.model, "decode_money_per_million_tokens").get(settings.context)
    if settings.match == "decode-money" or decode is None:
        return decode
    train = mean_of(results, plan.model, "train_money")
    return None if train is None else train + (settings.serve_tokens or 0) * decode / 1e6


def _target(settings: CompareSettings, plans: Sequence[ContenderPlan], results: Results) -> float | None:
    budget = Budget.parse(settings.budget)
    if settings.match == "params":
        return plans[0].parameters if contender(settings.models[0]).as_is else parse_size(settings.params)
    if settings.match == "flops":
        return plans[0].flops_per_token
    if settings.match == "train-flops":
        filled = plan_budgets(plans[:1], settings, per_hour=results["prices"]["per_hour"])[0]
        return budget.amount if budget.kind == "flops" else plans[0].training_flops * (filled.tokens or 0)
    if settings.match == "train-seconds":
        return 60 * budget.amount
    if settings.match == "train-money" and budget.kind == "minutes":
        return budget.amount / 60 * results["prices"]["per_hour"]
    if settings.match == "decode-money":
        return _reached(settings, plans[0], results)
    return budget.amount


def served_tokens_crossover(settings: CompareSettings, results: Results) -> list[Crossover]:
    """Where the best model changes when the same total of money must serve more tokens than was asked.

    Serving more leaves less for training; what a model reaches with less is read off its evaluations on the way,
    interpolated in the logarithm of the money. Their learning rate had not yet fallen, so this is a lower bound.
    """
    if settings.match != "total-money" or settings.serve_tokens is None:
        return []
    total = Budget.parse(settings.budget).amount
    lines: dict[str, tuple[list[tuple[float, float]], float]] = {}
    for model in settings.models:
        decode = by_context(results, model, "decode_money_per_million_tokens").get(settings.context)
        points = _quality_by_money(finished(results, model), results["prices"]["per_hour"])
        if decode is not None and len(points) > 1:
            lines[model] = (points, decode / 1e6)

    def best_at(served: float) -> str | None:
        reached = {model: _interpolate(points, total - served * cost) for model, (points, cost) in lines.items()}
        known = {model: bits for model, bits in reached.items() if bits is not None}
        return min(known, key=known.__getitem__) if len(known) > 1 else None

    served, before = settings.serve_tokens, best_at(settings.serve_tokens)
    while before is not None and (after := best_at(served * 1.02)) is not None:
        served *= 1.02
        if after != before:
            return [
                {
                    "quantity": "bits_per_byte_at_equal_total",
                    "axis": "served tokens",
                    "source": "measured",
                    "a": before,
                    "b": after,
                    "at": served,
                    "text": f"With the same total, {after} would be ahead of {before} from about "
                    f"{units.number(served)} generated tokens on.",
                }
            ]
    return []


def _quality_by_money(contenders: Sequence[Contender], per_hour: float) -> list[tuple[float, float]]:
    """(training money, bits per byte) at each evaluation, the mean over seeds."""
    lists = [contender["evaluations"] for contender in contenders if contender["evaluations"] is not None]
    if not lists:
        return []
    count = min(len(one["seconds"]) for one in lists)
    return [
        (
            fmean(one["seconds"][index] for one in lists) / 3600 * per_hour,
            fmean(_scores(one)[index] for one in lists),
        )
        for index in range(count)
    ]


def _scores(evaluations: Evaluations) -> list[float]:
    """What ranks, lower is better: bits per byte, of a task the share of wrong answers."""
    if "accuracy" in evaluations:
        return [1 - accuracy for accuracy in evaluations["accuracy"]]
    return [bits for bits in evaluations["bits_per_byte"] if bits is not None]


def _interpolate(points: Sequence[tuple[float, float]], money: float) -> float | None:
    """Bits per byte at some money; a little beyond the last point counts as the last; None outside."""
    if money < points[0][0] or money > 1.15 * points[-1][0]:
        return None
    for (low, bits), (high, next_bits) in pairwise(points):
        if low <= money <= high:
            share = math.log(money / low) / math.log(high / low) if high > low else 1.0
            return bits + share * (next_bits - bits)
    return points[-1][1]


def decode_money(seconds: Mapping[str, float], per_hour: float) -> dict[str, float]:
    """Money for a million generated tokens, from the seconds of one."""
    return {model: 1e6 * each / 3600 * per_hour for model, each in seconds.items()}
