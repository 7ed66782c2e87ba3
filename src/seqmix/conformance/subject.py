"""The mixer under test: built from one of its own examples, with its float64 copy as the oracle.

Shapes: B batch, T time, S source, D model width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seqmix.mixer import Mixed, Mixer, Mixing, SharingMixer, State, Traits, build_config

LONGEST = 100
"""Every example must take sequences of this many positions; no check but the receptive field's uses longer ones."""

STAGES = 8
"""Reductions that follow one another inside a mixer: in-projection, short convolution, values, matrix, their
product, norm, gate, out-projection."""


class CheckFailure(AssertionError):
    """A promise of the contract that the mixer does not keep; the message says which and by how much."""


def expect(condition: bool, message: str) -> None:
    """Raises a CheckFailure with the message unless the condition holds."""
    if not condition:
        raise CheckFailure(message)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs a block from a known state of the global random numbers, and puts them back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64 that are exact in float32, so that both precisions read the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).double()


def rounding(dtype: torch.dtype, reduction: int) -> float:
    """The relative error that rounding explains.

    A sum of n terms in any order is off by at most n * eps times the sum of their sizes; a mixer is at most
    STAGES sums in a row, each over at most `reduction` terms. Nothing else enters, and no mixer has its own.
    """
    return STAGES * reduction * torch.finfo(dtype).eps


def label(options: Mapping[str, Any], dim: int) -> str:
    """An example in words."""
    return ", ".join([f"dim={dim}", *(f"{key}={value!r}" for key, value in options.items())])


def stir(mixer: Mixer) -> None:
    """Moves every parameter whose values are all equal off that value, and single zeros: they would hide an absence."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif bool((parameter == 0).any()):
                parameter.add_((parameter == 0) * 0.1 * torch.randn_like(parameter))


def given_first(mixer_class: type[SharingMixer]) -> type[Mixer]:
    """The class as a layer above the first one: what that would hand on is a function of x at each position."""

    def handed_on(x: Tensor) -> Tensor:
        return 0.7 * x.flip(-1)

    class Given(mixer_class):  # type: ignore[misc, valid-type]  # a class that is an argument
        def forward(self, x: Tensor, state: State | None = None, **where: Any) -> Mixed:
            return self.forward_sharing(x, state, handed_on(x), **where)[0]

        def step(self, x: Tensor, state: State) -> Mixed:
            return self.step_sharing(x, state, handed_on(x))[0]

        def mixing(self, x: Tensor, shared: Tensor | None = None) -> list[Mixing]:
            return super().mixing(x, handed_on(x) if shared is None else shared)

        def readout(self, mixed: list[Tensor], x: Tensor, shared: Tensor | None = None) -> Tensor:
            return super().readout(mixed, x, handed_on(x) if shared is None else shared)

    Given.__name__ = mixer_class.__name__
    return Given


class Subject:
    """One example of a mixer class, with what the checks need of it.

    mixer: in float32 and eval mode; oracle: its deep copy in float64. with_memory: whether forward and mixing get
    a second sequence, which a cross mixer takes.
    """

    def __init__(
        self, mixer_class: type[Mixer], dim: int, options: Mapping[str, Any], *, with_memory: bool = False
    ) -> None:
        self.with_memory = with_memory
        self.mixer_class = given_first(mixer_class) if issubclass(mixer_class, SharingMixer) else mixer_class
        self.dim = dim
        self.options = dict(options)
        self.config = build_config(mixer_class.config_class, self.options, mixer_class.__name__)
        self.mixer = self.build(seed=0)
        self.oracle = copy.deepcopy(self.mixer).double()

    def build(self, seed: int) -> Mixer:
        """Another mixer of the same class and options, with other numbers for another seed."""
        with seeded(seed):
            mixer = self.mixer_class(self.dim, self.config)
            stir(mixer)
        return mixer.eval()

    @cached_property
    def traits(self) -> Traits:
        return self.mixer.traits

    @property
    def is_plain(self) -> bool:
        """Whether it maps a sequence to one of the same length with no second sequence."""
        return not (self.with_memory or self.traits.resamples)

    @property
    def starts_sharing(self) -> bool:
        """Whether a sharing mixer can be the first layer, which nothing is handed on to."""
        assert isinstance(self.mixer, SharingMixer)
        return not self.mixer.needs_shared

    @property
    def precisions(self) -> list[tuple[torch.dtype, Mixer]]:
        """The oracle first, then the mixer as it is used."""
        return [(torch.float64, self.oracle), (torch.float32, self.mixer)]

    def dtype_of(self, module: Mixer) -> torch.dtype:
        """The precision that the oracle, or the mixer, reads."""
        return torch.float64 if module is self.oracle else torch.float32

    @property
    def probe_time(self) -> int:
        """A length that passes the receptive field where it can, so that every ring buffer goes round."""
        span = self.mixer.receptive_field
        return 33 if span is None else min(max(span + 5, 13), LONGEST)

    def reduction(self, time: int) -> int:
        """The most terms one sum has: the sequence, or a linear layer as wide as four times the model."""
        return max(time, 4 * self.dim)

    def x(self, batch: int, time: int, seed: int = 0) -> Tensor:
        """A random sequence (batch, time, dim) in float64."""
        return normal(batch, time, self.dim, seed=1000 + seed)

    def memory(self, batch: int, seed: int = 0) -> Tensor:
        """A random second sequence, of another length than any the checks use."""
        return normal(batch, 11, self.dim, seed=2000 + seed)

    def extra(self, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """The further arguments that forward and mixing need for x."""
        return {"memory": self.memory(len(x), seed).to(x.dtype)} if self.with_memory else {}

    def forward(self, module: Mixer, x: Tensor, seed: int = 0) -> Mixed:
        """The forward pass without state, over the second sequence if there is one."""
        return module(x, **self.extra(x, seed))

    def mixing(self, module: Mixer, x: Tensor, seed: int = 0) -> list[Mixing]:
        """The matrices, over the second sequence if there is one."""
        return module.mixing(x, **self.extra(x, seed))

    def close(
        self,
        actual: Tensor,
        expected: Tensor,
        what: str,
        time: int,
        *,
        slack: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Fails unless the two agree up to rounding, relative to the largest value.

        The precision is that of `actual`, or `dtype` where what was computed in that is stored in another one.
        """
        expect(
            actual.shape == expected.shape,
            f"{what} has shape {tuple(actual.shape)} where {tuple(expected.shape)} is expected",
        )
        if not expected.numel():
            return
        actual, expected = actual.detach(), expected.detach()
        expect(bool(torch.isfinite(actual).all()), f"{what} holds NaN or infinite values")
        error = float((actual.double() - expected.double()).abs().max())
        size = float(expected.abs().max())
        allowed = slack * rounding(dtype or actual.dtype, self.reduction(time)) * size
        expect(
            error <= allowed,
            f"{what} is off by {error:.2g} ({actual.dtype}); rounding explains {allowed:.2g} at a size of {size:.2g}",
        )


def tensors_of(value: Any, name: str = "state") -> dict[str, Tensor]:
    """All tensors of a state by the path of their field."""
    if isinstance(value, Tensor):
        return {name: value}
    found: dict[str, Tensor] = {}
    if isinstance(value, State):
        for field in dataclasses.fields(value):
            found |= tensors_of(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            found |= tensors_of(part, f"{name}[{index}]")
    return found


def compare_states(subject: Subject, module: Mixer, actual: State, expected: State, what: str) -> None:
    """Fails unless a state of `module` has the oracle's position and, where it is constant, the same numbers.

    A growing state may hold room to spare, so its tensors are not compared; `compare_futures` is for that.
    """
    expect(type(actual) is type(expected), f"{what} is a {type(actual).__name__}, not a {type(expected).__name__}")
    expect(
        torch.equal(actual.position, expected.position),
        f"{what} says position {actual.position.tolist()} where {expected.position.tolist()} is expected",
    )
    if subject.traits.state_growth != "constant":
        return
    one, other = tensors_of(actual, what), tensors_of(expected, what)
    expect(one.keys() == other.keys(), f"{what} has other fields than the state of forward")
    for name, tensor in one.items():
        if tensor.is_floating_point():
            time = int(expected.position.max()) + 1
            subject.close(tensor, other[name], name, time, dtype=subject.dtype_of(module))


FUTURE = 5
"""The positions that `compare_futures` reads; a capacity must leave room for them."""


def compare_futures(subject: Subject, module: Mixer, actual: State, expected: State, what: str) -> None:
    """Fails unless a state of `module` goes on as the oracle's does, through a piece and then through steps."""
    batch, time = len(actual.position), int(expected.position.max())
    x = subject.x(batch, FUTURE, seed=77)
    dtype = subject.dtype_of(module)
    mixed, oracle = module(x[:, :3].to(dtype), actual), subject.oracle(x[:, :3], expected)
    subject.close(mixed.y, oracle.y, f"the piece that continues {what}", time + 3)
    for index in (3, 4):
        mixed, oracle = module.step(x[:, index].to(dtype), mixed.state), subject.oracle.step(x[:, index], oracle.state)
        subject.close(mixed.y, oracle.y, f"the step that continues {what}", time + index + 1)
