"""Where models cross by their formulas alone: bytes of state, FLOPs and whatever else a model costs at a context.

A context is the number of tokens that have been read: the state is the one after them, and a generated token is the
one that a step adds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from typing import NamedTuple

from seqmix.compare.crossings import Crossing, formula_crossings
from seqmix.compare.matching import ContenderPlan, config_of
from seqmix.compare.results import Crossover
from seqmix.compare.summary import crossover
from seqmix.models.contenders import LanguageModel, on_meta
from seqmix.models.language_model import SeqmixForCausalLM

LONGEST = 1 << 20
"""Contexts beyond this are not looked at."""

Line = Callable[[LanguageModel, int], float]

STATE = "state_bytes"
LINES: dict[str, Line] = {
    STATE: lambda model, context: model.cost(1, context).state_bytes,
    "flops_per_generated_token": lambda model, context: model.step_cost(1, context).product_flops,
    "flops_per_token": lambda model, context: model.cost(1, context).product_flops / context,
}
"""What a model costs with that many tokens read, by quantity."""


class Found(NamedTuple):
    """`below` has the lower value below the crossing, `above` from it on."""

    quantity: str
    below: str
    above: str
    crossing: Crossing


def all_crossings(models: Mapping[str, LanguageModel], lines: Mapping[str, Line]) -> list[Found]:
    """Every context up to `LONGEST` from which on the order of two models is the other one, by quantity and pair.

    A constant state that is smaller than a growing one at the first token crosses there: it is so from there on.
    """
    found = []
    for quantity, line in lines.items():
        at = {name: cache(partial(line, model)) for name, model in models.items()}
        for a, b in combinations(models, 2):
            crossings = formula_crossings(at[a], at[b], low=1, high=LONGEST)
            if not crossings and quantity == STATE:
                crossings = _smaller_at_once(at, a, b, models)
            for crossing in crossings:
                below, above = (a, b) if crossing.first_is_lower_before else (b, a)
                found.append(Found(quantity, below, above, crossing))
    return found


def _smaller_at_once(
    at: Mapping[str, Callable[[int], float]], a: str, b: str, models: Mapping[str, LanguageModel]
) -> list[Crossing]:
    """A crossing at the first token where a constant state is smaller than a growing one from there on."""
    if grows(models[a]) == grows(models[b]) or at[a](1) == at[b](1):
        return []
    is_a_lower = at[a](1) < at[b](1)
    return [Crossing(at=1, first_is_lower_before=not is_a_lower)] if grows(models[b]) == is_a_lower else []


def grows(model: LanguageModel) -> bool:
    """Whether the state of a model grows with the context."""
    if not isinstance(model, SeqmixForCausalLM):
        return model.has_growing_state
    return any(block.mixer.traits.state_growth == "linear" for block in model.model.layers)


def formula_crossovers(plans: Sequence[ContenderPlan], vocab_size: int, context: int) -> list[Crossover]:
    """The crossings of the models of a comparison in state bytes (a growing against a constant one) and in FLOPs."""
    models = {plan.model: on_meta(config_of(plan, vocab_size, context)) for plan in plans}
    lines = {quantity: LINES[quantity] for quantity in (STATE, "flops_per_generated_token")}
    return [
        crossover(one.quantity, "context", "formula", one.below, one.above, _from_below(one.crossing))
        for one in all_crossings(models, lines)
        if one.quantity != STATE or grows(models[one.below]) != grows(models[one.above])
    ]


def _from_below(crossing: Crossing) -> Crossing:
    """The same, with the model that is lower below it named first."""
    return Crossing(at=crossing.at, first_is_lower_before=True)
