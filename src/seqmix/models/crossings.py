"""Where models cross by their formulas alone: bytes of state, FLOPs and whatever else a model costs at a context.

A context is the number of tokens that have been read: the state is the one after them, and a generated token is the
one that a step adds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import NamedTuple

from seqmix.models.contenders import LanguageModel
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

ADVANTAGES = {
    STATE: "the {kind_b} state of {b} is smaller than the {kind_a} state of {a}",
    "flops_per_generated_token": "{b} takes fewer FLOPs for a generated token than {a}",
    "flops_per_token": "{b} takes fewer FLOPs a token to train and to read a prompt than {a}",
}
"""What a crossing of a quantity says: `b` has the lower value from there on."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Below `at` the first has the lower value where `first_is_lower_before`, above it the second."""

    at: float
    first_is_lower_before: bool


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


def in_words(found: Found, models: Mapping[str, LanguageModel], words: Mapping[str, str] = ADVANTAGES) -> str:
    """A crossing as a sentence without its full stop; `words` by quantity, as `ADVANTAGES` are."""
    advantage = advantage_of(found.above, found.below, models, words[found.quantity])
    return f"{advantage} from context {found.crossing.at:,} on"


def advantage_of(lower: str, higher: str, models: Mapping[str, LanguageModel], words: str) -> str:
    """That one model has the lower value, in the words of an entry of `ADVANTAGES`."""
    kinds = {name: "growing" if grows(models[name]) else "constant" for name in (lower, higher)}
    return words.format(a=higher, b=lower, kind_a=kinds[higher], kind_b=kinds[lower])


def formula_crossings(
    first: Callable[[int], float], second: Callable[[int], float], low: int = 1, high: int = 1 << 24
) -> list[Crossing]:
    """The whole numbers in low ... high from which on the order of two formulas is the other one.

    Looks at powers of two and narrows each change of order down by bisection; ties belong to the side before.
    """

    def order(place: int) -> int:
        a, b = first(place), second(place)
        return (a > b) - (a < b)

    crossings = []
    before, sign = low, order(low)
    place = low
    while place < high:
        place = min(place * 2, high)
        after_sign = order(place)
        if after_sign == 0 or after_sign == sign:
            before = place if after_sign == sign else before
            continue
        if sign != 0:
            after = place
            while after - before > 1:
                middle = (before + after) // 2
                if order(middle) == after_sign:
                    after = middle
                else:
                    before = middle
            crossings.append(Crossing(at=after, first_is_lower_before=sign < 0))
        before, sign = place, after_sign
    return crossings
