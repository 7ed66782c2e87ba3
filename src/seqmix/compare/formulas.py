"""The crossings that a comparison tells of, from the formulas of its models."""

from __future__ import annotations

from collections.abc import Sequence

from seqmix.compare.matching import ContenderPlan, config_of
from seqmix.compare.results import Crossover
from seqmix.compare.summary import crossover
from seqmix.models.contenders import on_meta
from seqmix.models.crossings import LINES, STATE, Crossing, all_crossings, grows


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
