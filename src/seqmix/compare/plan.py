"""What models of a size cost and how far they see, from formulas alone: nothing is trained and no weight is allocated.

Training takes three forwards a token. Costs by context are those of the model as it is made for its own context, read
on beyond it where the context is longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from seqmix.compare.prices import Prices
from seqmix.errors import InputError, unknown_name
from seqmix.models import list_models
from seqmix.models.contenders import AnyConfig, LanguageModel, check_contenders, contender, make_model
from seqmix.models.crossings import ADVANTAGES, LINES, LONGEST, Found, all_crossings, in_words
from seqmix.models.huggingface import HuggingFaceModel
from seqmix.models.sizing import measure_config, parse_size, solve

TOKENS_PER_PARAMETER = 20
"""Training tokens a parameter where none are given, after Hoffmann et al. 2022 (arXiv 2203.15556)."""

VOCABULARY = 258
SHORTEST = 128
"""The first context of a line; the last one is at most that up to which crossovers are looked for."""

WORDS = {**ADVANTAGES, "decode_money_per_million_tokens": "{b} is cheaper to serve than {a}"}


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is planned for.

    models: presets and others, as `seqmix.models.contenders` names them. params: non-embedding parameters of the first
    model or of all. context: tokens in a row. match: "params" or "flops" (per token at the context, those of the first
    model). tokens: training tokens; None is 20 a parameter, model by model. vocab_size: tokens of the vocabulary (bytes
    by default).
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
        check_contenders(self.models)
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
    last; None when it cannot), receptive_field and positions_seen (None for all), where is_reach_known; train_tokens,
    train_flops, train_seconds, train_money, accelerator_days; decode_money_per_million_tokens (None where it does not
    fit into memory) and decode_batch; and by_context, a list with the costs at powers of two.

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


def _configs(settings: PlanSettings) -> dict[str, AnyConfig]:
    known: dict[str, Any] = {"vocab_size": settings.vocab_size, "context": settings.context}
    first, *others = settings.models
    configs = {first: solve(first, settings.params, **known)}
    # What keeps its own size is the target for the others.
    params = round(measure_config(configs[first], "params")) if contender(first).as_is else settings.params
    for model in others:
        if settings.match == "flops":
            target = round(measure_config(configs[first], "flops"))
            configs[model] = solve(model, target, measure="flops", **known)
        else:
            configs[model] = solve(model, params, **known)
    return configs


def _on_meta(config: AnyConfig, prices: Prices) -> LanguageModel:
    """The model without memory, in the precision that is paid for."""
    with torch.device("meta"):
        model = make_model(config)
    nn.Module.to(model, getattr(torch, prices.precision))
    return model


def _contexts(context: int) -> list[int]:
    """Powers of two from the shortest to 16384, or two octaves beyond the context, and the context itself."""
    last = min(LONGEST, max(16384, 4 * context))
    powers = [SHORTEST << step for step in range(LONGEST.bit_length()) if SHORTEST << step <= last]
    return sorted({*powers, context})


def _describe(
    name: str, model: LanguageModel, settings: PlanSettings, prices: Prices, contexts: Sequence[int]
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
        "is_reach_known": not isinstance(model, HuggingFaceModel),
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
                "flops_per_token": LINES["flops_per_token"](model, place),
                "flops_per_generated_token": LINES["flops_per_generated_token"](model, place),
                "state_bytes": LINES["state_bytes"](model, place),
                "path_length": model.path_length(place - 1),
                "decode_money_per_million_tokens": _finite(prices.decode_money_per_million(model, place)),
                "decode_batch": prices.largest_batch(model, place),
            }
            for place in contexts
        ],
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _crossovers(models: dict[str, LanguageModel], prices: Prices) -> list[dict[str, Any]]:
    """Where the order of two models flips, exactly: by bisection on the formulas, over whole contexts."""
    lines = {**LINES, "decode_money_per_million_tokens": prices.decode_money_per_million}
    return [_crossover(found, models) for found in all_crossings(models, lines)]


def _crossover(found: Found, models: Mapping[str, LanguageModel]) -> dict[str, Any]:
    """A crossing in words: `a` has the lower value below it, `b` from it on."""
    return {
        "quantity": found.quantity,
        "axis": "context",
        "source": "formula",
        "a": found.below,
        "b": found.above,
        "at": found.crossing.at,
        "text": in_words(found, models, WORDS),
    }
