"""Sizes: reading them, and finding the width and depth at which a preset has one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch

from seqmix.errors import InputError
from seqmix.models.block import Block, make_norm
from seqmix.models.config import SeqmixConfig
from seqmix.models.presets import Preset, preset

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


def measure_config(config: SeqmixConfig, measure: Literal["params", "flops"]) -> float:
    """Non-embedding parameters, or forward product FLOPs per token at the config's context; nothing is allocated."""
    context = config.max_position_embeddings
    kinds: dict[str, float] = {}
    total = 0.0
    with torch.device("meta"):
        for layer in range(config.num_hidden_layers):
            kind = repr((config.mixer_of_layer(layer), config.feed_forward_of_layer(layer)))
            if kind not in kinds:
                cost = Block(config, layer).cost(1, context)
                kinds[kind] = cost.parameters if measure == "params" else cost.product_flops / context
            total += kinds[kind]
        if measure == "params":
            norm = make_norm(config).parameters() if config.norm_position == "pre" else ()
            return total + sum(parameter.numel() for parameter in norm)
    return total + 2 * config.hidden_size * config.vocab_size


def solve(
    name: str,
    target: int | str,
    *,
    measure: Literal["params", "flops"] = "params",
    vocab_size: int,
    context: int,
    **options: Any,
) -> SeqmixConfig:
    """The config of a preset whose size is within 2 % of a target.

    Args:
        name: the preset.
        target: non-embedding parameters ("params"), or product FLOPs of a forward pass per token at the
            context ("flops").
        options: fields of SeqmixConfig to hold fixed, such as `num_hidden_layers` or `hidden_size`.

    Raises:
        InputError: no width and depth come within 2 %; it names the nearest size there is.
    """
    chosen, goal = preset(name), parse_size(target)
    depths = _depths(chosen, goal, measure, vocab_size, context, options)
    best: tuple[float, SeqmixConfig] | None = None
    for unit in sorted({chosen.width_multiple, 2}, reverse=True):
        for depth in depths:
            for config in _near(chosen, unit, depth, goal, measure, vocab_size, context, options):
                error = abs(measure_config(config, measure) / goal - 1)
                if best is None or error < best[0]:
                    best = error, config
            if best is not None and best[0] <= TOLERANCE / 2:
                return best[1]
    if best is None or best[0] > TOLERANCE:
        quantity = "non-embedding parameters" if measure == "params" else "FLOPs per token"
        nearest = "none" if best is None else f"{measure_config(best[1], measure):,.0f}"
        raise InputError(
            f"{name} cannot be made with {goal:,} {quantity} at context {context}: the nearest size is {nearest}; "
            "choose another size"
        )
    return best[1]


def _depths(
    chosen: Preset, target: int, measure: str, vocab_size: int, context: int, options: dict[str, Any]
) -> list[int]:
    """The depths to try, the preferred one first."""
    if "num_hidden_layers" in options:
        return [options["num_hidden_layers"]]
    parameters = target if measure == "params" else target / 2
    middle = max(1, round(chosen.depth_factor * layers_for(parameters)))
    reach = max(2, middle // 3)
    return sorted(range(max(1, middle - reach), middle + reach + 1), key=lambda depth: (abs(depth - middle), depth))


def _near(
    chosen: Preset,
    unit: int,
    depth: int,
    target: int,
    measure: Any,
    vocab_size: int,
    context: int,
    options: dict[str, Any],
) -> Iterator[SeqmixConfig]:
    """Configs of one depth around the target: the two nearest widths, then the feed-forward made to fit."""
    rest = {key: value for key, value in options.items() if key not in ("num_hidden_layers", "hidden_size")}

    def at(width: int, **more: Any) -> SeqmixConfig:
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
        if isinstance(config.feed_forward, int) and config.feed_forward and "feed_forward" not in options:
            step = measure_config(at(width, feed_forward=config.feed_forward + 8), measure) - measure_config(
                config, measure
            )
            steps = round((target - measure_config(config, measure)) / step * 8)
            # Large products like round sizes; small ones need every step to come near the target.
            fitted = config.feed_forward + (steps if width < 256 else 8 * round(steps / 8))
            if width <= fitted <= 4 * width:
                yield at(width, feed_forward=fitted)


def widest_error(sizes: list[float]) -> float:
    """The spread of sizes around their mean, as a share of it."""
    mean = math.fsum(sizes) / len(sizes)
    return max(abs(size / mean - 1) for size in sizes)
