"""What is held equal: from the settings to one plan for each model, its shape and when its training stops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqmix.compare.settings import Budget, CompareSettings
from seqmix.errors import InputError
from seqmix.models.contenders import AnyConfig, config_of_shape, contender, on_meta, shape_of
from seqmix.models.huggingface import HuggingFaceModel, context_of
from seqmix.models.sizing import TOLERANCE, measure_config, parse_size, solve

MONEY_TOLERANCE = 0.10
"""How far measured money may be from its target."""

MeasureSeconds = Callable[[Sequence[AnyConfig]], Sequence[float]]
"""Seconds that each of some models takes to generate one token at their context, measured in turn."""


@dataclass(frozen=True, kw_only=True)
class ContenderPlan:
    """The shape of a model and when its training stops (in tokens or in seconds of training steps).

    shape: hidden_size, num_hidden_layers and feed_forward, with the user's options, or all of a config of Hugging
    Face: what `create_model` needs to build the same model again. width, depth: of it.
    training_flops: for one token, three forwards at the context.
    is_reach_known: whether receptive_field, positions_seen and path_length are known, None included.
    separates_documents: whether nothing crosses the borders of documents that are packed in a row.
    """

    model: str
    shape: dict[str, Any]
    parameters: int
    total_parameters: int
    flops_per_token: float
    training_flops: float
    receptive_field: int | None
    positions_seen: int | None
    path_length: int | None
    learning_rate: float
    tokens: int | None = None
    seconds: float | None = None
    width: int | None = None
    depth: int | None = None
    is_reach_known: bool = True
    separates_documents: bool = True


def describe(config: AnyConfig, model: str, options: Mapping[str, Any]) -> ContenderPlan:
    """What can be known of a config before anything is trained; the budget is still open."""
    built = on_meta(config)
    context = context_of(config)
    is_theirs = isinstance(built, HuggingFaceModel)
    return ContenderPlan(
        model=model,
        shape=shape_of(config, options),
        parameters=built.non_embedding_parameters,
        total_parameters=sum(parameter.numel() for parameter in built.parameters()),
        flops_per_token=built.cost(1, context).product_flops / context,
        training_flops=built.training_flops(context, context) / context,
        receptive_field=built.receptive_field,
        positions_seen=built.positions_seen,
        path_length=built.path_length(context - 1),
        learning_rate=contender(model).learning_rate(built.non_embedding_parameters),
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        is_reach_known=not is_theirs,
        separates_documents=built.behaviour.separates_documents if isinstance(built, HuggingFaceModel) else True,
    )


def config_of(plan: ContenderPlan, vocab_size: int, context: int) -> AnyConfig:
    """The config that a plan's shape stands for."""
    return config_of_shape(plan.model, plan.shape, vocab_size=vocab_size, context=context)


def plan_shapes(settings: CompareSettings, vocab_size: int, measure_seconds: MeasureSeconds) -> list[ContenderPlan]:
    """The shape of each model: of the size asked for, or with the FLOPs or the decode speed of the first one.

    Args:
        measure_seconds: is called for the match "decode-money" only.

    Raises:
        InputError: a size, or a speed, that a model cannot have.
    """
    target = parse_size(settings.params)
    known: dict[str, Any] = {"vocab_size": vocab_size, "context": settings.context}
    first = settings.models[0]
    configs = {first: solve(first, target, **known, **settings.options.get(first, {}))}
    if contender(first).as_is:
        # What keeps its own size is the target for the others.
        target = round(measure_config(configs[first], "params"))
    for model in settings.models[1:]:
        options = settings.options.get(model, {})
        if settings.match == "flops":
            flops = measure_config(configs[first], "flops")
            configs[model] = solve(model, round(flops), measure="flops", **known, **options)
        elif settings.match == "decode-money":
            configs[model] = _solve_speed(model, target, (first, configs[first]), options, measure_seconds)
        else:
            configs[model] = solve(model, target, **known, **options)
    plans = [describe(config, model, settings.options.get(model, {})) for model, config in configs.items()]
    _check_sizes(settings, plans, target)
    return plans


def _check_sizes(settings: CompareSettings, plans: Sequence[ContenderPlan], target: int) -> None:
    """What is solved by formula must agree, whatever options hold fixed."""
    if settings.match in ("decode-money", "flops"):
        return
    for plan in plans:
        if abs(plan.parameters / target - 1) > TOLERANCE:
            raise InputError(
                f"{plan.model} has {plan.parameters:,} parameters with its options, not {target:,}: "
                "change --params or the options that hold its shape"
            )


def _solve_speed(
    model: str,
    target: int,
    reference: tuple[str, AnyConfig],
    options: Mapping[str, Any],
    measure_seconds: MeasureSeconds,
) -> AnyConfig:
    """The config of a model that generates a token in the time of the first one, starting from the same size.

    At each depth the width is found by bisection; the depth goes down where even the narrowest is too slow, and up
    where the widest that is allowed (16 times the parameters) is too fast. Every measurement times the first model
    again beside the candidate, so that a machine that slows down changes nothing.
    """
    name, first = reference
    context = context_of(first)
    start = solve(model, target, vocab_size=first.vocab_size, context=context, **options)
    chosen = contender(model)
    if chosen.as_is:
        return start
    options = chosen.usual(options)
    rest = {key: value for key, value in options.items() if key not in ("hidden_size", "num_hidden_layers")}
    depth, unit = start.num_hidden_layers, chosen.family.width_multiple
    best: tuple[float, AnyConfig] | None = None
    visited: set[int] = set()

    def at(width: int) -> AnyConfig:
        return chosen.config(vocab_size=first.vocab_size, context=context, width=width, depth=depth, **rest)

    while depth >= 1 and depth not in visited:
        visited.add(depth)
        below, above = 1, max(2, start.hidden_size // unit)
        while measure_config(at(above * unit), "params") < 16 * target:
            above *= 2
        ratios = []
        while True:
            middle = max(1, round((below * above) ** 0.5))
            candidate = at(middle * unit)
            seconds, of_first = measure_seconds([candidate, first])
            ratio = seconds / of_first
            ratios.append(ratio)
            if best is None or abs(ratio - 1) < abs(best[0] - 1):
                best = ratio, candidate
            if abs(ratio - 1) <= MONEY_TOLERANCE / 4 or above - below <= 1 or middle in (below, above):
                break
            below, above = (below, middle) if ratio > 1 else (middle, above)
        if abs(best[0] - 1) <= MONEY_TOLERANCE / 2 or "num_hidden_layers" in options:
            break
        depth += -1 if min(ratios) > 1 else 1
    assert best is not None
    if abs(best[0] - 1) > MONEY_TOLERANCE:
        raise InputError(
            f"{model} cannot be made to generate a token at the cost of {name}: its nearest is "
            f"{best[0]:.2f} times that, choose another --params or leave it out"
        )
    return best[1]


def plan_budgets(
    plans: Sequence[ContenderPlan],
    settings: CompareSettings,
    per_hour: float,
    decode_money: Mapping[str, float] | None = None,
) -> list[ContenderPlan]:
    """The plans with their budget filled in.

    Args:
        per_hour: the price of an hour.
        decode_money: money to generate a million tokens, by model (match "total-money" only).
    """
    budget = Budget.parse(settings.budget)
    step = settings.batch_size * settings.context
    common_flops = budget.amount
    if settings.match == "train-flops" and budget.kind == "tokens":
        common_flops = plans[0].training_flops * _whole_steps(budget.amount, step)
    filled = []
    for plan in plans:
        if budget.kind == "flops" or settings.match == "train-flops":
            filled.append(dataclasses.replace(plan, tokens=_whole_steps(common_flops / plan.training_flops, step)))
        elif budget.kind == "tokens":
            # As many steps as the tokens need, as in `seqmix train`.
            filled.append(dataclasses.replace(plan, tokens=math.ceil(budget.amount / step) * step))
        elif budget.kind == "minutes":
            filled.append(dataclasses.replace(plan, seconds=60 * budget.amount))
        else:
            serving = 0.0
            if settings.match == "total-money":
                assert decode_money is not None
                assert settings.serve_tokens is not None
                serving = decode_money[plan.model] * settings.serve_tokens / 1e6
            if serving >= budget.amount:
                raise InputError(
                    f"generating {settings.serve_tokens:,.0f} tokens with {plan.model} alone costs {serving:.3g}, more "
                    f"than the budget {settings.budget!r}: raise the budget or lower --serve-tokens"
                )
            filled.append(dataclasses.replace(plan, seconds=(budget.amount - serving) / per_hour * 3600))
    return filled


def _whole_steps(tokens: float, step: int) -> int:
    """The nearest number of tokens that whole steps read, at least one step."""
    return max(1, round(tokens / step)) * step


def spread(values: Sequence[float]) -> float:
    """(highest - lowest) / lowest."""
    return max(values) / min(values) - 1
