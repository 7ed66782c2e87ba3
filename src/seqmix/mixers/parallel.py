"""Several mixers side by side on one input: the matrix is all of theirs, head beside head.

    sum:     y = sum_i mixer_i(x)
    concat:  u_1, u_2, ... = W_in x;   y = W_out [mixer_1(u_1), mixer_2(u_2), ...]

A hybrid inside a layer, as Hymba's heads of attention beside heads of a state space (arXiv 2411.13676, section 2.1):
each position mixes in several ways at once, where a stack of different layers mixes in one way after another. With
"concat" every mixer has a width of its own and reads the whole input through its own part of W_in; both projections
work position by position, so that the matrices of the parts stay what they are.

Shapes: B batch, T time, D model width, U widths of all parts together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError, unknown_name
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, SharingMixer, State, Traits, place
from seqmix.mixers import create_mixer

WAYS = ("sum", "concat")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """mixers: two or more of {"name": MIXER, OPTION: VALUE, ...}. combine: "sum" or "concat".

    widths: with "concat" the width of each mixer, None to share dim out as equally as can be.
    """

    mixers: tuple[Mapping[str, Any], ...] = ({"name": "attention"}, {"name": "gated_conv"})
    combine: str = "sum"
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(_as_json(entry) for entry in self.mixers))
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.mixers) < 2:
            raise InputError(f"mixers has {len(self.mixers)} entries: give at least two to stand side by side")
        for entry in self.mixers:
            if not isinstance(entry, dict) or "name" not in entry:
                raise InputError(f'{entry!r} names no mixer: give {{"name": MIXER, OPTION: VALUE, ...}}')
        if self.combine not in WAYS:
            raise unknown_name("combine", self.combine, WAYS)
        if self.widths is None:
            return
        if self.combine != "concat":
            raise InputError(f'widths is {self.widths} with combine={self.combine!r}: only "concat" has widths')
        if len(self.widths) != len(self.mixers):
            raise InputError(f"widths has {len(self.widths)} entries for {len(self.mixers)} mixers: give one for each")
        if min(self.widths) < 1:
            raise InputError(f"widths is {self.widths}: each must be at least 1")


def _as_json(value: Any) -> Any:
    """The value as it comes back from JSON, which has lists and no tuples, so that configs compare equal."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class ParallelState(State):
    """parts: the state of each mixer, in their order."""

    parts: tuple[State, ...]


class Parallel(Mixer):
    """The sum of mixers on x, or their outputs side by side between an in- and an out-projection.

    Raises:
        InputError: a mixer whose matrix is a Jacobian, one that changes the length, one that waits for a first layer.
    """

    config_class = ParallelConfig
    config: ParallelConfig

    def __init__(self, dim: int, config: ParallelConfig | None = None) -> None:
        super().__init__(dim, config)
        joins = self.config.combine == "concat"
        self.widths = self._own_widths() if joins else [dim] * len(self.config.mixers)
        self.mixers = nn.ModuleList(
            create_mixer(entry["name"], width, **{key: value for key, value in entry.items() if key != "name"})
            for entry, width in zip(self.config.mixers, self.widths, strict=True)
        )
        for entry, mixer in zip(self.config.mixers, self._parts(), strict=True):
            traits = mixer.traits
            if isinstance(mixer, SharingMixer) and mixer.needs_shared:
                raise InputError(
                    f"mixer {entry['name']!r} waits for what a first layer hands on, and mixers side by side hand "
                    "nothing on: give it the options of a first layer"
                )
            if traits.matrix != "exact":
                raise InputError(
                    f"mixer {entry['name']!r} is not linear in a stream of values, so its matrix cannot stand beside "
                    "another's: give it a layer of its own"
                )
            if traits.resamples:
                raise InputError(f"mixer {entry['name']!r} changes the length: leave out its stride and padding")
        total = sum(self.widths)
        self.in_proj = nn.Linear(dim, total, bias=False) if joins else None
        self.out_proj = nn.Linear(total, dim, bias=False) if joins else None

    def _own_widths(self) -> list[int]:
        if self.config.widths is not None:
            return list(self.config.widths)
        count = len(self.config.mixers)
        if self.dim < count:
            raise InputError(f"dim is {self.dim}, too small to share out to {count} mixers: give widths")
        return [self.dim // count + (part < self.dim % count) for part in range(count)]

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        conv = {"name": "depthwise_conv", "kernel": 3, "dilation": (1, 3), "heads": 2}
        window = {"name": "attention", "heads": 2, "window": 4}
        return [
            (6, {"mixers": ({"name": "gated_conv", "kernel": 3}, {"name": "attention", "heads": 1})}),
            (7, {"mixers": (conv, window), "combine": "concat", "widths": (3, 4)}),
            (8, {"mixers": ({"name": "mamba2", "state_size": 4, "head_dim": 4}, window), "combine": "concat"}),
            (6, {"mixers": ({**conv, "causal": False}, {**window, "causal": False})}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for mixer in self._parts():
            mixer.reset_parameters()

    def no_decay(self) -> set[str]:
        return {f"mixers.{index}.{name}" for index, mixer in enumerate(self._parts()) for name in mixer.no_decay()}

    def _parts(self) -> list[Mixer]:
        return [part for part in self.mixers if isinstance(part, Mixer)]

    def check_context(self, context: int) -> None:
        for mixer in self._parts():
            mixer.check_context(context)

    def _all_traits(self) -> list[Traits]:
        return [mixer.traits for mixer in self._parts()]

    @property
    def traits(self) -> Traits:
        parts = self._all_traits()
        causal = all(part.causal for part in parts)
        grows = any(part.state_growth == "linear" for part in parts)
        return Traits(
            causal=causal,
            content_dependent=any(part.content_dependent for part in parts),
            state_growth=None if not causal else "linear" if grows else "constant",
            reach=max(part.reach for part in parts),
        )

    @property
    def receptive_field(self) -> int | None:
        lags = self.lags
        return None if lags is None else max(lags) - min(lags) + 1

    @property
    def sees_everything(self) -> bool:
        return any(mixer.sees_everything for mixer in self._parts())

    @property
    def lags(self) -> list[int] | None:
        return self._joined([mixer.lags for mixer in self._parts()])

    @property
    def period(self) -> int:
        return math.lcm(*(mixer.period for mixer in self._parts()))

    def lags_at(self, position: int) -> list[int] | None:
        return self._joined([mixer.lags_at(position) for mixer in self._parts()])

    def _joined(self, parts: Sequence[Sequence[int] | None]) -> list[int] | None:
        """The lags of any part."""
        found: set[int] = set()
        for mixer, lags in zip(self._parts(), parts, strict=True):
            if lags is None:
                return None
            found.update(lags if mixer.traits.causal else _lags_around(mixer, len(lags)))
        return sorted(found)

    @property
    def head_spans(self) -> list[int | None]:
        spans: list[int | None] = []
        for mixer in self._parts():
            own = mixer.head_spans
            spans += [mixer.receptive_field] * _count_heads(mixer) if own is None else own
        return spans

    def _inputs(self, x: Tensor) -> Sequence[Tensor]:
        """What each mixer reads of x (..., D): x itself, or its part of W_in x (..., U)."""
        return [x] * len(self.widths) if self.in_proj is None else self.in_proj(x).split(self.widths, dim=-1)

    def _join(self, outputs: Sequence[Tensor]) -> Tensor:
        if self.out_proj is not None:
            return self.out_proj(torch.cat(list(outputs), dim=-1))
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        if state is not None and not self.traits.causal:
            raise InputError("not all mixers side by side are causal, so they take no state: give whole sequences")
        before = [None] * len(self.widths) if state is None else _states(state)
        outputs, after = [], []
        for mixer, part, own in zip(self._parts(), self._inputs(x), before, strict=True):
            mixed = mixer(part, own, document_ids=document_ids, capacity=capacity)
            outputs.append(mixed.y)
            after.append(mixed.state)
        y = self._join(outputs)
        if not self.traits.causal:
            return Mixed(y, None)
        placement = place(x, state, document_ids)
        return Mixed(y, ParallelState(placement.position, placement.document, tuple(after)))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        if not self.traits.causal:
            return super().init_state(batch, capacity, device=device, dtype=dtype)
        parts = tuple(mixer.init_state(batch, capacity, device=device, dtype=dtype) for mixer in self._parts())
        return ParallelState(parts[0].position.clone(), parts[0].document.clone(), parts)

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.traits.causal:
            return super().step(x, state)
        steps = [
            mixer.step(part, own)
            for mixer, part, own in zip(self._parts(), self._inputs(x), _states(state), strict=True)
        ]
        after = ParallelState(state.position + 1, state.document, tuple(mixed.state for mixed in steps))
        return Mixed(self._join([mixed.y for mixed in steps]), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [
            mixing for mixer, part in zip(self._parts(), self._inputs(x), strict=True) for mixing in mixer.mixing(part)
        ]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        outputs, taken = [], 0
        for mixer, part in zip(self._parts(), self._inputs(x), strict=True):
            # How many matrices a mixer has does not depend on the sequence: one position tells.
            with torch.no_grad():
                count = len(mixer.mixing(part[:1, :1]))
            outputs.append(mixer.readout(mixed[taken : taken + count], part))
            taken += count
        return self._join(outputs)

    def links(self, time: int) -> Tensor:
        return torch.stack([mixer.links(time) for mixer in self._parts()]).any(dim=0)

    def _around(self, positions: int) -> Cost:
        """The cost of the projections, or of the sum, for `positions` vectors."""
        if self.in_proj is None:
            return Cost(other_flops=positions * self.dim * (len(self.widths) - 1))
        total, size = sum(self.widths), self.in_proj.weight.element_size()
        weights = 2 * self.dim * total
        return Cost(
            product_flops=linear_flops(positions, self.dim, 2 * total),
            parameters=weights,
            bytes_moved=size * (weights + 2 * positions * self.dim),
        )

    def cost(self, batch: int, time: int) -> Cost:
        causal = self.traits.causal
        total = self._around(batch * time)
        for mixer in self._parts():
            cost = mixer.cost(batch, time)
            kept = cost.state_bytes if causal else 0
            total = total + Cost(
                product_flops=cost.product_flops,
                other_flops=cost.other_flops,
                parameters=cost.parameters,
                state_bytes=kept,
                bytes_moved=cost.bytes_moved - cost.state_bytes + kept,
            )
        return total + self._bookkeeping(batch) if causal else total

    def step_cost(self, batch: int, position: int) -> Cost:
        total = self._around(batch) + self._bookkeeping(batch)
        for mixer in self._parts():
            total = total + mixer.step_cost(batch, position)
        return total

    @staticmethod
    def _bookkeeping(batch: int) -> Cost:
        return Cost(state_bytes=batch * BOOKKEEPING_BYTES, bytes_moved=batch * BOOKKEEPING_BYTES)


def _states(state: State) -> tuple[State, ...]:
    if isinstance(state, ParallelState):
        return state.parts
    raise InputError(f"the state is a {type(state).__name__}, which parallel did not make: begin with init_state")


def _count_heads(mixer: Mixer) -> int:
    """The heads of all matrices; like the matrices, they do not depend on the sequence: one position tells."""
    like = next(mixer.parameters())
    with torch.no_grad():
        parts = mixer.mixing(torch.zeros(1, 1, mixer.dim, dtype=like.dtype, device=like.device))
    return sum(part.matrix.shape[1] for part in parts)


def _lags_around(mixer: Mixer, span: int) -> set[int]:
    """The lags of a mixer that sees both sides of a position, within `span` of it; read off its links."""
    sources = mixer.links(2 * span + 1)[span].nonzero()[:, 0].tolist()
    return {span - source + back for source in sources for back in range(mixer.traits.reach)}
