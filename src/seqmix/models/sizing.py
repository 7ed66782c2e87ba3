"""Sizes: reading them, and finding the width and depth at which a preset has one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch

from seqmix.errors import InputError
from seqmix.models.block import Block, make_norm
from seqmix.models.config import SeqmixConfig
from seqmix.models.contenders import AnyConfig, Contender, contender, on_meta
from seqmix.models.huggingface import config_document, config_from_document, context_of, fitted_field

TOLERANCE = 0.02
"""How far a solved size may be from its target."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_size(text: str | int) -> int:
    """The number that a size such as "300k", "10M" or "3B" stands for."""
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-zA-Z]?)\s*", text)
        if match is None or match[2].lower() not in _UNITS:
            raise InputError(f"size {text!r} cannot be read: write a number such as 50k, 10M or 3B")
        size = round(float(match[1]) * _UNITS[match[2].lower()])
    if size < 1:
        raise InputError(f"size {text!r} is below 1: give a positive number such as 300k")
    return size


def layers_for(parameters: float) -> float:
    """The depth that goes with a number of parameters: 4 at 300k, 12 to 15 at 100M, about 30 at 3B."""
    return max(1.0, 4 * (parameters / 3e5) ** 0.22)


def measure_config(config: AnyConfig, measure: Literal["params", "flops"]) -> float:
    """Non-embedding parameters, or forward product FLOPs per token at the config's context; nothing is allocated."""
    context = context_of(config)
    if not isinstance(config, SeqmixConfig):
        return _measure_huggingface(json.dumps(config_document(config), sort_keys=True), measure, context)
    kinds: dict[str, float] = {}
    total = 0.0
    with torch.device("meta"):
        for layer in range(config.num_hidden_layers):
            kind = config.kind_of_layer(layer)
            if kind not in kinds:
                cost = Block(config, layer).cost(1, context)
                kinds[kind] = cost.parameters if measure == "params" else cost.product_flops / context
            total += kinds[kind]
        if measure == "params":
            norm = make_norm(config).parameters() if config.norm_position == "pre" else ()
            return total + sum(parameter.numel() for parameter in norm)
    return total + 2 * config.hidden_size * config.vocab_size


@cache
def _measure_huggingface(document: str, measure: str, context: int) -> float:
    """`measure_config` of a config of Hugging Face."""
    model = on_meta(config_from_document(json.loads(document)))
    return model.non_embedding_parameters if measure == "params" else model.cost(1, context).product_flops / context


def solve(
    name: str,
    target: int | str,
    *,
    measure: Literal["params", "flops"] = "params",
    vocab_size: int,
    context: int,
    **options: Any,
) -> AnyConfig:
    """The config of a model whose size is within 2 % of a target.

    Args:
        name: what a command calls it; see `seqmix.models.contenders`.
        target: non-embedding parameters ("params"), or product FLOPs of a forward pass per token at the
            context ("flops").
        options: fields of its config to hold fixed, such as `num_hidden_layers` or `hidden_size`.

    Raises:
        InputError: no width and depth come within 2 %; it names the nearest size there is.
    """
    chosen, goal = contender(name), parse_size(target)
    options = chosen.usual(options)
    if chosen.as_is:
        return chosen.own_config(vocab_size=vocab_size, context=context, **options)
    depths = _depths(chosen, goal, measure, vocab_size, context, options)
    best: tuple[float, AnyConfig] | None = None
    refusal: InputError | None = None
    for unit in sorted({chosen.family.width_multiple, 2}, reverse=True):
        for depth in depths:
            try:
                for config in _near(chosen, unit, depth, goal, measure, vocab_size, context, options):
                    error = abs(measure_config(config, measure) / goal - 1)
                    if best is None or error < best[0]:
                        best = error, config
            except InputError as error:
                # Not every width divides into heads; where none does, the reason is told.
                refusal = error
            if best is not None and best[0] <= TOLERANCE / 2:
                return best[1]
    if best is None and refusal is not None:
        raise refusal
    if best is None or best[0] > TOLERANCE:
        quantity = "non-embedding parameters" if measure == "params" else "FLOPs per token"
        nearest = "none" if best is None else f"{measure_config(best[1], measure):,.0f}"
        raise InputError(
            f"{name} cannot be made with {goal:,} {quantity} at context {context}: the nearest size is {nearest}; "
            "choose another size"
        )
    return best[1]


def _depths(
    chosen: Contender, target: int, measure: str, vocab_size: int, context: int, options: dict[str, Any]
) -> list[int]:
    """The depths to try, the preferred one first."""
    if "num_hidden_layers" in options:
        return [options["num_hidden_layers"]]
    parameters = target if measure == "params" else target / 2
    middle = max(1, round(chosen.family.depth_factor * layers_for(parameters)))
    reach = max(2, middle // 3)
    return sorted(range(max(1, middle - reach), middle + reach + 1), key=lambda depth: (abs(depth - middle), depth))


def _near(
    chosen: Contender,
    unit: int,
    depth: int,
    target: int,
    measure: Any,
    vocab_size: int,
    context: int,
    options: dict[str, Any],
) -> Iterator[AnyConfig]:
    """Configs of one depth around the target: the two nearest widths, then the feed-forward made to fit."""
    rest = {key: value for key, value in options.items() if key not in ("num_hidden_layers", "hidden_size")}

    def at(width: int, **more: Any) -> AnyConfig:
        return chosen.config(vocab_size=vocab_size, context=context, width=width, depth=depth, **{**rest, **more})

    if "hidden_size" in options:
        widths = [options["hidden_size"]]
    else:
        below, above = 1, 2
        while measure_config(at(above * unit), measure) < target:
            below, above = above, 2 * above
        while above - below > 1:
            middle = (below + above) // 2
            if measure_config(at(middle * unit), measure) < target:
                below = middle
            else:
                above = middle
        widths = [below * unit, above * unit]
    for width in widths:
        config = at(width)
        yield config
        feed_forward = _feed_forward(config)
        if feed_forward is not None and feed_forward[0] not in options:
            name, inner = feed_forward
            size = measure_config(config, measure)
            step = measure_config(at(width, **{name: inner + 8}), measure) - size
            steps = round((target - size) / step * 8) if step else 0
            # Large products like round sizes; small ones need every step to come near the target.
            fitted = inner + (steps if width < 256 else 8 * round(steps / 8))
            low, high = (width, 4 * width) if isinstance(config, SeqmixConfig) else (inner // 2, 2 * inner)
            if low <= fitted <= high:
                yield at(width, **{name: fitted})


def _feed_forward(config: AnyConfig) -> tuple[str, int] | None:
    """The name and width of the feed-forward that is made to fit a size; None where there is none."""
    if not isinstance(config, SeqmixConfig):
        return fitted_field(config)
    return (
        ("feed_forward", config.feed_forward) if config.feed_forward and isinstance(config.feed_forward, int) else None
    )


def widest_error(sizes: list[float]) -> float:
    """The spread of sizes around their mean, as a share of it."""
    mean = math.fsum(sizes) / len(sizes)
    return max(abs(size / mean - 1) for size in sizes)
