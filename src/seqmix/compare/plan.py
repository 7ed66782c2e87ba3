"""What models of a size cost and how far they see, from formulas alone: nothing is trained and no weight is allocated.

Training takes three forwards a token. Costs by context are those of the model as it is made for its own context, read
on beyond it where the context is longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any, Literal

import torch
from torch import nn

from seqmix.compare import units
from seqmix.compare.crossings import Crossing, formula_crossings
from seqmix.compare.prices import Prices
from seqmix.errors import InputError, unknown_name
from seqmix.models import SeqmixConfig, SeqmixForCausalLM, list_models
from seqmix.models.sizing import measure_config, parse_size, solve

TOKENS_PER_PARAMETER = 20
"""Training tokens a parameter where none are given, after Hoffmann et al. 2022 (arXiv 2203.15556)."""

VOCABULARY = 258
SHORTEST = 128
LONGEST = 1 << 20
"""The contexts between which lines are drawn; crossovers are looked for from 1 to the longest."""

ADVANTAGES = {
    "state_bytes": "the {kind_b} state of {b} is smaller than the {kind_a} state of {a}",
    "flops_per_generated_token": "{b} takes fewer FLOPs for a generated token than {a}",
    "flops_per_token": "{b} takes fewer FLOPs a token to train and to read a prompt than {a}",
    "decode_money_per_million_tokens": "{b} is cheaper to serve than {a}",
}


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is planned for.

    models: names of presets. params: non-embedding parameters of the first model or of all. context: tokens in a row.
    match: "params" or "flops" (per token at the context, those of the first model). tokens: training tokens; None is
    20 a parameter, model by model. vocab_size: tokens of the vocabulary (bytes by default).
    """

    models: tuple[str, ...]
    params: str = "300k"
    context: int = 256
    match: Literal["params", "flops"] = "params"
    tokens: int | None = None
    vocab_size: int = VOCABULARY

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError(f"models is empty: name at least one of {', '.join(list_models())}")
        for position, model in enumerate(self.models):
            if model not in list_models():
                raise unknown_name("model", model, list_models())
            if model in self.models[:position]:
                raise InputError(f"model {model!r} is named twice: name each model once")
        if self.match not in ("params", "flops"):
            raise unknown_name("match", self.match, ("params", "flops"))
        sizes = (("context", self.context, 2), ("tokens", self.tokens, 1), ("vocab", self.vocab_size, 2))
        for name, value, least in sizes:
            if value is not None and value < least:
                raise InputError(f"{name} is {value}: it must be at least {least}")


def make_plan(settings: PlanSettings, prices: Prices) -> dict[str, Any]:
    """The plan as a JSON value: settings, prices, one entry for each model, and the crossovers.

    Of a model: parameters (without the embedding), total_parameters, width, depth; at the context: flops_per_token
    (forward, products), state_bytes (one row), path_length (layers until the first token of the context can reach the
    last; None when it cannot), receptive_field and positions_seen (None for all); train_tokens, train_flops,
    train_seconds, train_money, accelerator_days; decode_money_per_million_tokens (None where it does not fit into
    memory) and decode_batch; and by_context, a list with the costs at powers of two.

    Raises:
        InputError: a model, a size or a setting that cannot be had.
    """
    built = {model: _on_meta(config, prices) for model, config in _configs(settings).items()}
    contexts = _contexts(settings.context)
    return {
        "context": settings.context,
        "params": parse_size(settings.params),
        "match": settings.match,
        "vocab_size": settings.vocab_size,
        "prices": prices.to_dict(),
        "models": [_describe(name, model, settings, prices, contexts) for name, model in built.items()],
        "crossovers": _crossovers(built, prices),
    }


def _configs(settings: PlanSettings) -> dict[str, SeqmixConfig]:
    known: dict[str, Any] = {"vocab_size": settings.vocab_size, "context": settings.context}
    first, *others = settings.models
    configs = {first: solve(first, settings.params, **known)}
    for model in others:
        if settings.match == "flops":
            target = round(measure_config(configs[first], "flops"))
            configs[model] = solve(model, target, measure="flops", **known)
        else:
            configs[model] = solve(model, settings.params, **known)
    return configs


def _on_meta(config: SeqmixConfig, prices: Prices) -> SeqmixForCausalLM:
    """The model without memory, in the precision that is paid for."""
    with torch.device("meta"):
        model = SeqmixForCausalLM(config)
    nn.Module.to(model, getattr(torch, prices.precision))
    return model


def _contexts(context: int) -> list[int]:
    """Powers of two from the shortest to 16384, or two octaves beyond the context, and the context itself."""
    last = min(LONGEST, max(16384, 4 * context))
    powers = [SHORTEST << step for step in range(LONGEST.bit_length()) if SHORTEST << step <= last]
    return sorted({*powers, context})


def _describe(
    name: str, model: SeqmixForCausalLM, settings: PlanSettings, prices: Prices, contexts: Sequence[int]
) -> dict[str, Any]:
    context = settings.context
    parameters = model.non_embedding_parameters
    tokens = TOKENS_PER_PARAMETER * parameters if settings.tokens is None else settings.tokens
    cost = model.cost(1, context)
    train_flops = model.training_flops(tokens, context)
    train_seconds = prices.train_seconds(train_flops)
    return {
        "model": name,
        "parameters": parameters,
        "total_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "width": model.config.hidden_size,
        "depth": model.config.num_hidden_layers,
        "flops_per_token": cost.product_flops / context,
        "state_bytes": cost.state_bytes,
        "path_length": model.path_length(context - 1),
        "receptive_field": model.receptive_field,
        "positions_seen": model.positions_seen,
        "train_tokens": tokens,
        "train_flops": train_flops,
        "train_seconds": train_seconds,
        "train_money": prices.money(train_seconds),
        "accelerator_days": prices.accelerator_days(train_flops),
        "decode_money_per_million_tokens": _finite(prices.decode_money_per_million(model, context)),
        "decode_batch": prices.largest_batch(model, context),
        "by_context": [
            {
                "context": place,
                "flops_per_token": model.cost(1, place).product_flops / place,
                "flops_per_generated_token": model.step_cost(1, place).product_flops,
                "state_bytes": model.cost(1, place).state_bytes,
                "path_length": model.path_length(place - 1),
                "decode_money_per_million_tokens": _finite(prices.decode_money_per_million(model, place)),
                "decode_batch": prices.largest_batch(model, place),
            }
            for place in contexts
        ],
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _crossovers(models: dict[str, SeqmixForCausalLM], prices: Prices) -> list[dict[str, Any]]:
    """Where the order of two models flips, exactly: by bisection on the formulas, over whole contexts."""
    lines: dict[str, Callable[[SeqmixForCausalLM, int], float]] = {
        "state_bytes": lambda model, context: model.cost(1, context).state_bytes,
        "flops_per_generated_token": lambda model, context: model.step_cost(1, context).product_flops,
        "flops_per_token": lambda model, context: model.cost(1, context).product_flops / context,
        "decode_money_per_million_tokens": prices.decode_money_per_million,
    }
    found = []
    for quantity, line in lines.items():
        at = {name: cache(partial(line, model)) for name, model in models.items()}
        for a, b in combinations(models, 2):
            crossings = formula_crossings(at[a], at[b], low=1, high=LONGEST)
            if not crossings and quantity == "state_bytes":
                crossings = _smaller_at_once(at, a, b, models)
            found += [_crossover(quantity, a, b, crossing, models) for crossing in crossings]
    return found


def _smaller_at_once(
    at: Mapping[str, Callable[[int], float]], a: str, b: str, models: Mapping[str, SeqmixForCausalLM]
) -> list[Crossing]:
    """A crossing at the first token where a constant state is smaller than a growing one from there on."""
    if _grows(models[a]) == _grows(models[b]) or at[a](1) == at[b](1):
        return []
    is_a_lower = at[a](1) < at[b](1)
    return [Crossing(at=1, first_is_lower_before=not is_a_lower)] if _grows(models[b]) == is_a_lower else []


def _grows(model: SeqmixForCausalLM) -> bool:
    return any(block.mixer.traits.state_growth == "linear" for block in model.model.layers)


def _crossover(
    quantity: str, a: str, b: str, crossing: Crossing, models: Mapping[str, SeqmixForCausalLM]
) -> dict[str, Any]:
    """A crossing in words: `a` has the lower value below it, `b` from it on."""
    below, above = (a, b) if crossing.first_is_lower_before else (b, a)
    kinds = {name: "growing" if _grows(models[name]) else "constant" for name in (below, above)}
    words = ADVANTAGES[quantity].format(a=below, b=above, kind_a=kinds[below], kind_b=kinds[above])
    return {
        "quantity": quantity,
        "axis": "context",
        "source": "formula",
        "a": below,
        "b": above,
        "at": crossing.at,
        "text": f"{words} from context {units.count(crossing.at)} on",
    }
