"""What a model costs against the length of the context, and where two models cross."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqmix.mixers.dense import Dense
from seqmix.models.crossings import ADVANTAGES, LINES, LONGEST, STATE, advantage_of, all_crossings, in_words
from seqmix.models.language_model import SeqmixForCausalLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from seqmix.inspection.subject import Subject

LENGTHS = tuple(2**power for power in range(4, 17))
"""16 to 65 536 tokens."""

EQUAL = {
    STATE: "the states of {a} and {b} are equally large",
    "flops_per_generated_token": "{a} and {b} take as many FLOPs for a generated token",
    "flops_per_token": "{a} and {b} take as many FLOPs a token to train and to read a prompt",
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Formulas of `Mixer.cost`, for one row, with that many tokens read; None beyond what the model can read.

    forward_flops: product FLOPs a token of a forward over the whole length. step_flops: of one more token.
    state_bytes: of the state after the length. parameters: all of them, embedding included.
    longest: the tokens a document may have; None for no bound.
    note: what the lengths mean for this model.
    """

    lengths: list[int]
    forward_flops: list[float | None]
    step_flops: list[float | None]
    state_bytes: list[float | None]
    parameters: int
    longest: int | None
    note: str


def cost_curves(model: SeqmixForCausalLM) -> Costs:
    """The costs of a model at `LENGTHS`."""
    bound = longest_document(model)
    made_for = model.config.max_position_embeddings

    def curve(quantity: str) -> list[float | None]:
        line = LINES[quantity]
        return [line(model, length) if bound is None or length <= bound else None for length in LENGTHS]

    note = f"The model is made for a context of {made_for:,} tokens: "
    if bound is None:
        note += "lengths beyond it are formulas alone."
    else:
        note += f"a document can have {bound:,} tokens at most, and the lines end there."
    return Costs(
        lengths=list(LENGTHS),
        forward_flops=curve("flops_per_token"),
        step_flops=curve("flops_per_generated_token"),
        state_bytes=curve(STATE),
        parameters=model.cost(1, 1).parameters,
        longest=bound,
        note=note,
    )


def longest_document(model: SeqmixForCausalLM) -> int | None:
    """The tokens that a document may have: as many as there are learned positions, or rows of a learned matrix."""
    bounds = [module.config.max_length for module in model.modules() if isinstance(module, Dense)]
    learned = model.longest_context
    return min([*bounds, *([] if learned is None else [learned])], default=None)


def crossovers(one: Subject, other: Subject) -> list[str]:
    """From which context on the order of two models is the other one: exactly, by bisection on their formulas.

    A sentence for each crossing of the state's bytes, the FLOPs of a generated token, and those of a token read; where
    the order never changes, one that says so. Contexts reach up to 2^20 tokens, or to the shorter model's bound.
    """
    names = [one.name, other.name]
    if one.name == other.name:
        names = [f"{one.name} (first)", f"{other.name} (second)"]
    models = dict(zip(names, (one.model, other.model), strict=True))
    bounds = [bound for model in models.values() if (bound := longest_document(model)) is not None]
    longest = min([LONGEST, *bounds])
    found = [crossing for crossing in all_crossings(models, LINES) if crossing.crossing.at <= longest]
    sentences = []
    for quantity in LINES:
        own = [crossing for crossing in found if crossing.quantity == quantity]
        texts = [in_words(crossing, models) for crossing in own] or [_all_along(quantity, models, longest)]
        sentences += [f"{text[0].upper() if text.startswith('the ') else text[0]}{text[1:]}." for text in texts]
    return sentences


def _all_along(quantity: str, models: Mapping[str, SeqmixForCausalLM], longest: int) -> str:
    """What holds where no order turns round: one model is lower at every context, or equal up to one."""
    (a, first), (b, second) = models.items()
    line = LINES[quantity]

    def difference(context: int) -> float:
        return line(first, context) - line(second, context)

    if difference(longest) == 0:
        return f"{EQUAL[quantity].format(a=a, b=b)} at every context up to {longest:,}"
    lower, higher = (a, b) if difference(longest) < 0 else (b, a)
    advantage = advantage_of(lower, higher, models, ADVANTAGES[quantity])
    if difference(1) != 0:
        return f"{advantage} at every context up to {longest:,}"
    equal, differs = 1, longest
    while differs - equal > 1:
        middle = (equal + differs) // 2
        equal, differs = (middle, differs) if difference(middle) == 0 else (equal, middle)
    return f"{advantage} from context {differs:,} on; up to there the two are equal"
