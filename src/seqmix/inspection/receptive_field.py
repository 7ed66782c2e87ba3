"""How far back a model sees: by formula, by gradient, and how much of the gradient comes from where.

The receptive field is the span of the inputs that an output depends on at all. The effective receptive field is where
the norm of its gradient really lies: it is measured as the gradient of a random combination of one output's channels
with respect to every input, averaged over outputs (Luo et al. 2016, arXiv 1701.04128, section 3.1).

Shapes: N targets, T time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.inspection.field_widths import Widths, by_distance, widths
from seqmix.inspection.gradients import embed, normal, output_of, probe_of, seen_from, sizes_at, span_seen, streams
from seqmix.inspection.head_fields import HeadField, head_fields
from seqmix.inspection.layers import Place, Slot, mixer_places
from seqmix.inspection.subject import Subject
from seqmix.mixer import Mixer
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM
from seqmix.models.reach import receptive_field

BEYOND = 3
"""Positions before the receptive field that are read too, to see that nothing comes from there."""
UNBOUNDED = 64
"""How many positions are read where the receptive field has no bound."""
LONGEST = 32768
LAST_SHARE = 8
"""Targets stand in the last eighth of a text, so that nearly every distance lies inside it."""
BELOW = 24
"""Backward passes that the layers below the last share for their curves."""
FARTHEST = 8192
SEARCHED = 1024
"""The farthest distance where paths must be searched among links that leave gaps."""
SIGNIFICANT = 1e-5
"""Of the largest gradient: rounding in float32, a Fourier transform's too, stays far below; what is less, float64
decides.
"""
NARROW = 64
"""Below this width all channels of an activation may be off at once, so that a second, random text is read too."""


@dataclass(frozen=True)
class LayerField:
    """formula, measured: of this mixer alone. stack_formula, stack_measured: of the model from its embeddings up to
    the output of this layer. curve: the share of its gradient's norm at distance 0, 1, ...
    """

    layer: int
    slot: Slot
    name: str
    formula: int | None
    measured: int
    stack_formula: int | None
    stack_measured: int
    curve: list[float]
    widths: Widths
    heads: list[HeadField]


@dataclass(frozen=True)
class Curve:
    """curve: the share of the gradient's norm at distance 0, 1, ..., which sums to 1; widths: of it."""

    curve: list[float]
    widths: Widths


@dataclass(frozen=True)
class Steps:
    """The fewest mixers that carry something over each distance; None where none can."""

    distances: list[int]
    mixers: list[int | None]


@dataclass(frozen=True)
class ReceptiveField:
    """How far back a model sees on a text.

    formula, positions_seen: what it says of itself, None for no bound. measured: by gradient, of the text at most.
    fills_text: whether the last token depends on the first. curve, widths: of the gradient's norm with the weights as
    they are. targets, directions: how many outputs it is the mean of, and random combinations of each.
    untrained: the same for freshly drawn weights, where the model is trained.
    """

    formula: int | None
    positions_seen: int | None
    measured: int
    fills_text: bool
    curve: list[float]
    targets: int
    directions: int
    widths: Widths
    steps: Steps
    layers: list[LayerField]
    untrained: Curve | None


def measured_lags(
    model: SeqmixForCausalLM, time: int | None = None, draws: int = 3, *, as_it_is: bool = False
) -> list[int]:
    """How far back the tokens stand that the last output depends on, by gradient in float64, nearest first.

    Args:
        time: tokens to read; None reads a little more than the receptive field, or up to 64 where that has no bound.
        draws: random texts; what any of them shows counts, because an activation may be off by chance.
        as_it_is: a weight of exactly zero lets nothing through; by default it counts as one that will be trained.

    Raises:
        InputError: time is below 1, or None where the receptive field is longer than can be read.
    """
    if time is None:
        time = _time_to_read(model)
    if time < 1 or draws < 1:
        raise InputError(f"time is {time} and draws is {draws}: each must be at least 1")
    generator = torch.Generator().manual_seed(0)
    probe = probe_of(model, as_it_is=as_it_is)
    leaf = embed(probe, torch.randint(model.config.vocab_size, (draws, time), generator=generator))
    with torch.enable_grad():
        output = probe.model.mix(leaf)[0]
    seen = seen_from(output, leaf, time - 1, generator)
    return (time - 1 - seen.nonzero().flatten()).flip(0).tolist()


def measured_receptive_field(
    model: SeqmixForCausalLM, time: int | None = None, draws: int = 3, *, as_it_is: bool = False
) -> int:
    """The span that the last output depends on, by gradient in float64; arguments as of `measured_lags`."""
    return max(measured_lags(model, time, draws, as_it_is=as_it_is), default=-1) + 1


def mixer_lags(mixer: Mixer, x: Tensor, target: int) -> list[int]:
    """How far back the inputs stand that a mixer's output at `target` depends on; negative is ahead.

    Args:
        x: (rows, time, dim) in the precision of the mixer; what any row shows counts.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = mixer(leaf).y
    seen = seen_from(output, leaf, target, torch.Generator().manual_seed(0))
    return (target - seen.nonzero().flatten()).flip(0).tolist()


def receptive_fields(
    subject: Subject | SeqmixForCausalLM, input_ids: Tensor, *, targets: int = 8, directions: int = 2
) -> ReceptiveField:
    """The receptive field of a model, of its layers and of their heads, by formula and measured on a text.

    Args:
        subject: a model counts as untrained; the subject of a trained run adds the curve of drawn weights.
        input_ids: (1, T) of one document.
        targets: outputs in the last eighth of the text whose gradients are averaged.
        directions: random combinations of the channels of each; the layers below the last take one, and fewer
            targets.
    """
    model, is_trained = (subject.model, subject.is_trained) if isinstance(subject, Subject) else (subject, False)
    if input_ids.dim() != 2 or len(input_ids) != 1 or not input_ids.numel():
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}: give the tokens of one text, (1, time)")
    if targets < 1 or directions < 1:
        raise InputError(f"targets is {targets} and directions is {directions}: each must be at least 1")
    time = input_ids.shape[1]
    chosen = _targets(time, targets)
    curves, fills = _stack_curves(model, input_ids, chosen, directions)
    probe = probe_of(model, as_it_is=is_trained)
    places = mixer_places(probe, input_ids)
    spans = _stack_spans(probe, input_ids, fills)
    # In float32 as well, whose forms are fast, and with the same tiny weights in the place of zeros.
    quick = mixer_places(copy.deepcopy(probe).float(), input_ids)
    alone = [_span_alone(*both) for both in zip(quick, places, strict=True)]
    layers = [
        LayerField(
            layer=place.layer,
            slot=place.slot,
            name=place.name,
            formula=place.mixer.receptive_field,
            measured=alone[number],
            stack_formula=receptive_field([below.mixer for below in places[: number + 1]]),
            stack_measured=spans[number],
            curve=curve.tolist(),
            widths=widths(curve),
            heads=head_fields(place, chosen, alone[number]),
        )
        for number, (place, curve) in enumerate(zip(places, curves, strict=True))
    ]
    return ReceptiveField(
        formula=model.receptive_field,
        positions_seen=model.positions_seen,
        measured=spans[-1],
        fills_text=spans[-1] == time,
        curve=layers[-1].curve,
        targets=len(chosen),
        directions=directions,
        widths=layers[-1].widths,
        steps=_steps(model),
        layers=layers,
        untrained=_untrained(model, input_ids, chosen) if is_trained else None,
    )


def _time_to_read(model: SeqmixForCausalLM) -> int:
    span, longest = model.receptive_field, model.longest_context
    time = min(UNBOUNDED, model.config.max_position_embeddings) if span is None else span + BEYOND
    if longest is not None:
        return min(time, longest)
    if time > LONGEST:
        raise InputError(f"the receptive field is {span} tokens, too long to measure: give a time of at most {LONGEST}")
    return time


def _targets(time: int, count: int) -> list[int]:
    """At most `count` positions in the last part of a text, the last one among them."""
    places = torch.linspace(time - 1 - (time - 1) // LAST_SHARE, time - 1, count)
    return sorted({round(place) for place in places.tolist()})


def _stack_curves(
    model: SeqmixForCausalLM, input_ids: Tensor, targets: Sequence[int], directions: int
) -> tuple[list[Tensor], list[bool]]:
    """The curve (T,) of each layer's output with respect to the embeddings; below the last it is coarser.

    And whether the last output of each depends on the first embedding by more than rounding explains.
    """
    generator = torch.Generator().manual_seed(0)
    waits = any(mixer.traits.matrix == "jacobian" for mixer in model.mixers)
    leaf = embed(model, input_ids.expand(len(targets) if waits else 1, -1))
    found = streams(model, leaf)
    curves, fills = [], []
    for number, output in enumerate(found):
        is_last = number == len(found) - 1
        here = targets if is_last or waits else targets[-max(1, BELOW // len(found)) :]
        sizes = sizes_at(output, leaf, here, directions if is_last else 1, generator)
        curves.append(by_distance(sizes[None], here)[0])
        fills.append(_reaches_the_first(sizes[-1]))
    return curves, fills


def _reaches_the_first(sizes: Tensor) -> bool:
    """Whether the gradient sizes (T,) of the last output, in float32, tell that it depends on the first input."""
    return bool(sizes[0] > SIGNIFICANT * sizes.max())


def _untrained(model: SeqmixForCausalLM, input_ids: Tensor, targets: Sequence[int]) -> Curve:
    """The curve of the same model with the weights that training would start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(model)(cast(SeqmixConfig, model.config)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    leaf = embed(fresh, input_ids)
    curve = by_distance(sizes_at(streams(fresh, leaf)[-1], leaf, targets, 1, generator)[None], targets)[0]
    return Curve(curve.tolist(), widths(curve))


def _stack_spans(probe: SeqmixForCausalLM, input_ids: Tensor, fills: Sequence[bool]) -> list[int]:
    """How many positions back the last output of each layer depends on the embeddings.

    Args:
        fills: of each layer, whether it is known already that it depends on the first one.
    """
    generator = torch.Generator().manual_seed(0)
    time = input_ids.shape[1]
    if all(fills):
        return [time] * len(fills)
    other = torch.randint(probe.config.vocab_size, (1, time), generator=generator).to(input_ids)
    leaf = embed(probe, torch.cat([input_ids, other]) if probe.config.hidden_size < NARROW else input_ids)
    outputs = streams(probe, leaf)

    def span_of(number: int) -> int:
        return time if fills[number] else span_seen(seen_from(outputs[number], leaf, time - 1, generator), time - 1)

    last = span_of(len(outputs) - 1)
    spans: list[int] = []
    for number in range(len(outputs) - 1):
        # The residual hands on whatever a layer has seen, so that those above see as much at least.
        spans.append(last if spans and spans[-1] == last else span_of(number))
    return [*spans, last]


def _span_alone(place: Place, probe: Place) -> int:
    """The span of inputs that the last output of a mixer depends on, on what it reads and on noise.

    Args:
        place: in float32, which is asked first. probe: the same in float64.
    """
    generator = torch.Generator().manual_seed(0)
    leaf = place.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = output_of(place, leaf)
    if _reaches_the_first(sizes_at(output, leaf, [leaf.shape[1] - 1], 1, generator)[0]):
        return leaf.shape[1]
    return _exact_span(probe)


def _exact_span(place: Place) -> int:
    """The same from float64 alone."""
    generator = torch.Generator().manual_seed(0)
    noise = normal(*place.x.shape, generator=generator).to(place.x)
    leaf = torch.cat([place.x, noise]) if place.mixer.dim < NARROW else place.x.clone()
    leaf = leaf.detach().requires_grad_()
    with torch.enable_grad():
        output = output_of(place, leaf)
    return span_seen(seen_from(output, leaf, leaf.shape[1] - 1, generator), leaf.shape[1] - 1)


def _steps(model: SeqmixForCausalLM) -> Steps:
    """The path lengths at powers of two that the model can read."""
    follows = model.receptive_field is not None or any(mixer.sees_everything for mixer in model.mixers)
    longest = FARTHEST if follows else SEARCHED
    if model.longest_context is not None:
        longest = min(longest, model.longest_context - 1)
    distances = [2**power for power in range(FARTHEST.bit_length()) if 2**power <= longest]
    return Steps(distances, [model.path_length(distance) for distance in distances])
