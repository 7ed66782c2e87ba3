"""Crossings that follow from formulas alone: bytes of state and FLOPs of a generated token, by context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

from seqmix.compare.crossings import Crossing, formula_crossings
from seqmix.compare.matching import ContenderPlan, config_of, on_meta
from seqmix.compare.results import Crossover
from seqmix.compare.summary import crossover
from seqmix.models.language_model import SeqmixForCausalLM

LONGEST = 1 << 20
"""Contexts beyond this are not looked at."""


def formula_crossovers(plans: Sequence[ContenderPlan], vocab_size: int, context: int) -> list[Crossover]:
    """All crossings of two models in state bytes (a growing state against a constant one) and in FLOPs."""
    models = {plan.model: on_meta(config_of(plan, vocab_size, context)) for plan in plans}
    found: list[Crossover] = []
    for a, b in combinations(models, 2):
        if _grows(models[a]) != _grows(models[b]):
            growing, constant = (a, b) if _grows(models[a]) else (b, a)
            crossings = formula_crossings(_state(models[growing]), _state(models[constant]), high=LONGEST)
            if not crossings and _state(models[growing])(1) > _state(models[constant])(1):
                crossings = [Crossing(at=1, first_is_lower_before=True)]
            found += [crossover("state_bytes", "context", "formula", growing, constant, one) for one in crossings]
        for one in formula_crossings(_flops(models[a]), _flops(models[b]), high=LONGEST):
            found.append(crossover("flops_per_generated_token", "context", "formula", a, b, one))
    return found


def _grows(model: SeqmixForCausalLM) -> bool:
    return any(block.mixer.traits.state_growth == "linear" for block in model.model.layers)


def _state(model: SeqmixForCausalLM) -> Callable[[int], float]:
    return cache(lambda context: float(model.step_cost(1, context - 1).state_bytes))


def _flops(model: SeqmixForCausalLM) -> Callable[[int], float]:
    return cache(lambda context: float(model.step_cost(1, context - 1).product_flops))
