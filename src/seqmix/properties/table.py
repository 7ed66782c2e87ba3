"""The row of one mixer, and of one stack of layers, in the table of properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.mixer import Mixer
from seqmix.mixers import create_mixer, mixer_class
from seqmix.properties.growth import Polynomial, Variable, exponent, fit, is_linearithmic
from seqmix.properties.order import Depth, depth
from seqmix.properties.paths import DISTANCES, formula, hops, span_by_layers
from seqmix.properties.position import Position, position

WIDTH = 64
"""The width at which what does not depend on it is looked at; fits take its multiples, so that heads stay whole."""
LENGTH_OPTIONS = ("max_length", "length")
"""Options that say how long a sequence may be; the fits make room with them, and show what they cost."""
KERNEL_OPTION = "kernel"
LONG = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a count grows, for one row of n positions at width d.

    polynomial: exactly, None where it is none. in_time, in_width: exponents, by doubling n or d where both are large.
    extra: what comes on top of the polynomial, in words; empty for nothing.
    """

    polynomial: Polynomial | None
    in_time: float
    in_width: float
    extra: str = ""

    def __str__(self) -> str:
        has_terms = self.polynomial is not None and (self.polynomial.terms or not self.extra)
        parts = [str(self.polynomial.leading(small=["K"]))] if self.polynomial is not None and has_terms else []
        parts += [self.extra] if self.extra else []
        return " + ".join(parts) or "~" + _power("n", self.in_time) + _power("d", self.in_width)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        whole = None if self.polynomial is None else str(self.polynomial)
        return {"leading": str(self), "polynomial": whole, "exponents": {"n": self.in_time, "d": self.in_width}}


def _power(symbol: str, value: float) -> str:
    """A rounded power; nothing for the power 0."""
    number = f"{abs(value):.1f}".removesuffix(".0")
    return "" if number == "0" else symbol if number == "1" else f"{symbol}^{number}"


@dataclass(frozen=True, kw_only=True)
class MixerProperties:
    """What follows from a mixer's contract.

    name, options: which mixer. depth: steps that wait for one another, "1", "log n" or "n".
    hops: the fewest layers of it between two positions, by their distance; None where no number of layers is enough.
    parameters: in the width d, the kernel K and the longest length N, where it has these options.
    product_flops, bytes_moved, state_bytes: of one layer, in n and d; no state for a mixer that is not causal.
    receptive_field: by the number of layers; None for every earlier position. further_by_layer: how many positions
        each layer adds to it, in K and N; None where it is bounded by neither.
    """

    name: str
    options: dict[str, Any]
    causal: bool
    depth: Depth
    hops: dict[int, int | None]
    parameters: Growth
    product_flops: Growth
    bytes_moved: Growth
    state_bytes: Growth | None
    state_growth: str | None
    receptive_field: dict[int, int | None]
    further_by_layer: Polynomial | None
    content_dependent: bool
    position: Position

    @property
    def is_parallel(self) -> bool:
        """Whether the positions of a sequence can be computed at once, or in a scan."""
        return self.depth != "n"

    @property
    def path(self) -> str:
        """The hops over a distance n, in words."""
        return formula(self.hops)

    @property
    def span(self) -> str:
        """The receptive field of L layers, in words."""
        one = self.receptive_field[1]
        if one is None:
            return "all"
        if self.further_by_layer is None or not self.further_by_layer.terms:
            return f"1 + {one - 1}L"
        further = str(self.further_by_layer)
        return "1 + L" if one == 2 and further == "1" else f"1 + ({further})L" if " " in further else f"1 + {further}L"

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return {
            "name": self.name,
            "options": self.options,
            "causal": self.causal,
            "parallel_over_time": self.is_parallel,
            "sequential_steps": self.depth,
            "path_length": {"formula": self.path, "by_distance": self.hops},
            "parameters": self.parameters.to_dict(),
            "product_flops": self.product_flops.to_dict(),
            "bytes_moved": self.bytes_moved.to_dict(),
            "state_bytes": None if self.state_bytes is None else self.state_bytes.to_dict(),
            "state_growth": self.state_growth,
            "receptive_field": {"formula": self.span, "by_layers": self.receptive_field},
            "content_dependent": self.content_dependent,
            "position": self.position,
        }


class _Family:
    """The mixers of a name and options at any width, kernel and longest length, each made once."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        fields = {field.name: field.default for field in dataclasses.fields(mixer_class(name).config_class)}
        kernel = options.get(KERNEL_OPTION, fields.get(KERNEL_OPTION))
        self.kernel = kernel if isinstance(kernel, int) else None
        self.length_option = next((option for option in LENGTH_OPTIONS if option in fields), None)
        self._made: dict[tuple[int, int | None, int | None], Mixer] = {}

    def make(self, width: int, kernel: int | None = None, length: int | None = None) -> Mixer:
        """The mixer; None for an option takes the given or the default one."""
        key = (width, kernel, length)
        if key not in self._made:
            options = dict(self.options)
            if kernel is not None:
                options[KERNEL_OPTION] = kernel
            if length is not None and self.length_option is not None:
                options[self.length_option] = length
            self._made[key] = create_mixer(self.name, width, **options)
        return self._made[key]

    def long(self, width: int, time: int) -> Mixer:
        """The mixer with room for a sequence of this length, and no more."""
        return self.make(width, length=None if self.length_option is None else time)


def mixer_of_length(name: str, width: int, length: int, **options: Any) -> Mixer:
    """A new mixer with room for a sequence of this length, where its options limit that."""
    return _Family(name, options).long(width, length)


def mixer_properties(name: str, **options: Any) -> MixerProperties:
    """The properties of a registered mixer, computed from what it answers.

    Args:
        name: one of `list_mixers()`.
        options: fields of its config; sizes that follow from the width are better left out.
    """
    family = _Family(name, options)
    mixer = family.long(WIDTH, 2 * max(DISTANCES) + 1).eval()
    traits = mixer.traits
    return MixerProperties(
        name=name,
        options=options,
        causal=traits.causal,
        depth=depth(mixer),
        hops={distance: hops([mixer], distance, repeat=True) for distance in DISTANCES},
        parameters=_parameters(family),
        product_flops=_of_time(family, lambda cost: cost.product_flops, other=lambda cost: cost.other_flops),
        bytes_moved=_of_time(family, lambda cost: cost.bytes_moved - cost.state_bytes),
        state_bytes=_of_time(family, lambda cost: cost.state_bytes) if traits.causal else None,
        state_growth=traits.state_growth,
        receptive_field=span_by_layers(mixer),
        further_by_layer=None if mixer.lags is None else _in_sizes(family, _further, in_width=False),
        content_dependent=traits.content_dependent,
        position=position(mixer),
    )


def _further(mixer: Mixer) -> int:
    """How many positions a layer of the mixer adds to the receptive field."""
    return (span_by_layers(mixer, [1])[1] or 1) - 1


def _in_sizes(family: _Family, answer: Callable[[Mixer], int], *, in_width: bool) -> Polynomial | None:
    """What a mixer answers as a polynomial in the sizes it is made with: d, the kernel K, the longest length N."""
    variables = [Variable(symbol="d", points=(WIDTH, 2 * WIDTH, 3 * WIDTH), check=5 * WIDTH)] if in_width else []
    if family.kernel is not None:
        # Held to the kernel that the mixer has, which its other options are made for.
        usual = family.kernel if family.kernel not in (3, 5) else 9
        variables.append(Variable(symbol="K", points=(3, 5), check=usual))
    if family.length_option is not None:
        variables.append(Variable(symbol="N", points=(256, 512, 768), check=1280))
    symbols = [variable.symbol for variable in variables]

    def count(*values: int) -> int:
        given = dict(zip(symbols, values, strict=True))
        return answer(family.make(given.get("d", WIDTH), given.get("K"), given.get("N")))

    return fit(count, variables)


def _parameters(family: _Family) -> Growth:
    found = _in_sizes(family, lambda mixer: mixer.num_parameters, in_width=True)
    in_width = exponent(lambda width: family.make(width).num_parameters, 4 * WIDTH)
    return Growth(polynomial=found, in_time=0.0, in_width=in_width)


def _of_time(family: _Family, part: Callable[[Cost], int], other: Callable[[Cost], int] | None = None) -> Growth:
    """How a part of the cost of one row grows in n and d; `other` is added in words where it is more than linear."""

    def cost(time: int, width: int) -> Cost:
        return family.long(width, time).cost(1, time)

    longest = _longest(family, cost)
    unit = longest // 8
    variables = [
        Variable(symbol="n", points=(unit, 2 * unit, 4 * unit), check=8 * unit),
        Variable(symbol="d", points=(WIDTH, 2 * WIDTH, 3 * WIDTH), check=5 * WIDTH),
    ]
    found = fit(lambda time, width: part(cost(time, width)), variables)
    is_extra = other is not None and is_linearithmic(lambda time: other(cost(time, WIDTH)), unit)
    return Growth(
        polynomial=found,
        in_time=exponent(lambda time: part(cost(time, WIDTH)), longest // 2),
        in_width=exponent(lambda width: part(cost(unit, width)), 4 * WIDTH),
        extra="n log n" if is_extra else "",
    )


def _longest(family: _Family, cost: Callable[[int, int], Cost]) -> int:
    """The longest sequence of a power of two, at most LONG, whose cost the mixer states; 1024 where room is bought."""
    longest = 1024 if family.length_option is not None else LONG
    while longest > 8:
        try:
            cost(longest, WIDTH)
        except InputError:
            longest //= 2
        else:
            return longest
    raise InputError(f"mixer {family.name!r} states no cost for 8 positions: give it a longer length")


@dataclass(frozen=True, kw_only=True)
class StackProperties:
    """What follows for the layers of a model together.

    layers: how many mixers. depth: of the one that waits longest. hops: the fewest layers between two positions, each
    layer taken once, in order. receptive_field: None for every earlier position. knows_order: whether any of them
    does by itself, without positions in the embedding. state_bytes: of one sequence, by the positions read.
    """

    layers: int
    depth: Depth
    hops: dict[int, int | None]
    receptive_field: int | None
    knows_order: bool
    state_bytes: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return {**dataclasses.asdict(self), "parallel_over_time": self.depth != "n"}


def stack_properties(mixers: Sequence[Mixer], positions: Sequence[int] = (1 << 10, 1 << 15)) -> StackProperties:
    """The properties of mixers that stand one above another, first layer first."""
    steps: list[Depth] = ["1", "log n", "n"]
    alike = {repr(mixer): mixer for mixer in mixers}
    spans = [mixer.receptive_field for mixer in mixers]
    bounded = [span for span in spans if span is not None]
    return StackProperties(
        layers=len(mixers),
        depth=max((depth(mixer) for mixer in alike.values()), key=steps.index),
        hops={distance: hops(mixers, distance) for distance in DISTANCES},
        receptive_field=None if len(bounded) < len(spans) else 1 + sum(span - 1 for span in bounded),
        knows_order=any(position(mixer) != "none" for mixer in alike.values()),
        state_bytes={at: sum(mixer.cost(1, at).state_bytes for mixer in mixers) for at in positions},
    )
