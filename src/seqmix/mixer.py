"""The contract of every sequence mixer: y = readout(M(x) · values(x)).

Shapes: B batch, T time (targets), S source, D model width, H heads, W width of a head's values.

A mixer answers five questions: what comes out of a sequence (`forward`), what comes out of one more token
(`step`), who listens to whom (`mixing`, `links`), how far back it sees (`receptive_field`) and what it
costs (`cost`). `seqmix.conformance` checks each answer against the others.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from seqmix.cost import Cost
from seqmix.errors import InputError, unknown_name
from seqmix.kernels.documents import Placement, place_piece


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a mixer promises about itself; the conformance kit holds it to each promise.

    causal: no output depends on a later input; a causal mixer has `step`.
    content_dependent: the matrix M depends on x.
    state_growth: "constant" or "linear" in the positions read; None for a mixer without state.
    matrix: "exact" where readout(M · values) equals forward; "jacobian" where M is the norm of dy_t/dx_s.
    reach: values and the readout's gates at s depend on inputs s - reach + 1 ... s only (1 for most; a short
        convolution adds).
    cross: forward and mixing also take `memory=`, a second sequence that keys and values come from.
    resamples: the output has another length than the input (stride, padding).
    """

    causal: bool
    content_dependent: bool
    state_growth: Literal["constant", "linear"] | None
    matrix: Literal["exact", "jacobian"] = "exact"
    reach: int = 1
    cross: bool = False
    resamples: bool = False


def _map_tensors(function: Callable[..., Tensor], *values: Any) -> Any:
    """Applies a function to the tensors at the same place of equal structures; other fields are kept."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, State):
        fields = {
            field.name: _map_tensors(function, *(getattr(value, field.name) for value in values))
            for field in dataclasses.fields(first)
        }
        return type(first)(**fields)
    if isinstance(first, tuple):
        return tuple(_map_tensors(function, *parts) for parts in zip(*values, strict=True))
    if any(value != first for value in values[1:]):
        raise InputError(f"states with different settings ({first!r} and others) cannot be joined: keep them apart")
    return first


@dataclass
class State:
    """What a causal mixer remembers of the sequence so far: tensors with the batch first.

    Subclasses add fields: tensors, tuples of tensors, further States, or plain settings.

    position: (batch,) int64, the offset of the next token within its document.
    document: (batch,) int64, the id of the document that the last token belonged to.
    """

    position: Tensor
    document: Tensor

    def select(self, rows: Tensor) -> Self:
        """The state of the given rows (int64 indices, repeats allowed), copied."""
        return _map_tensors(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), self)

    def clone(self) -> Self:
        """A copy that `step` can consume while this one stays as it is."""
        return _map_tensors(Tensor.clone, self)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The state on another device or with other floating-point types, as `Tensor.to`; integers keep their type."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else moved.to(tensor.dtype)

        return _map_tensors(move, self)

    def cat(self, *others: Self) -> Self:
        """The rows of this state followed by those of the others."""
        fields = {
            field.name: _join(*(getattr(state, field.name) for state in (self, *others)))
            for field in dataclasses.fields(self)
        }
        return type(self)(**fields)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, bookkeeping included."""
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        _map_tensors(count, self)
        return total


def _join(*values: Any) -> Any:
    """The rows of equal structures one after another; a state within a state is joined by its own `cat`."""
    first = values[0]
    if isinstance(first, State):
        return first.cat(*values[1:])
    if isinstance(first, tuple):
        return tuple(_join(*parts) for parts in zip(*values, strict=True))
    return _map_tensors(lambda *tensors: torch.cat(tensors), *values)


BOOKKEEPING_BYTES = 16
"""The bytes a row's position and document take in every State."""


class Mixed(NamedTuple):
    """What forward and step return: y (batch, time, dim) or (batch, dim), and the state after it.

    The state is None for a mixer without one.
    """

    y: Tensor
    state: Any


class Mixing(NamedTuple):
    """Who listens to whom: matrix (1 or batch, heads, time, source), values (batch, heads, source, width).

    The leading size of the matrix is 1 where it is the same for every input. A Jacobian mixer has no
    values: None.
    """

    matrix: Tensor
    values: Tensor | None


def place(x: Tensor, state: State | None, document_ids: Tensor | None) -> Placement:
    """Finds the borders of documents in a piece x (batch, time, dim) that continues `state`; see `place_piece`."""
    position, document = (None, None) if state is None else (state.position, state.document)
    return place_piece(x.shape[0], x.shape[1], x.device, position, document, document_ids)


class Mixer(nn.Module, ABC):
    """Moves information between the positions of a sequence: y = readout(M(x) · values(x)).

    A subclass names its frozen config dataclass as `config_class`, calls
    `super().__init__(dim, config)` and answers the five questions below. All tensors are batch first.

    Args:
        dim: the width of the model, D.
        config: an instance of `config_class`; None takes its defaults.
    """

    config_class: ClassVar[type]

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__()
        if dim < 1:
            raise InputError(f"dim is {dim}: a mixer needs a width of at least 1")
        self.dim = dim
        self.config = self.config_class() if config is None else config

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        """Small (dim, options) pairs that between them use every option; the conformance kit runs them all."""
        return [(12, {})]

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What this mixer promises; see `Traits`."""

    @property
    @abstractmethod
    def receptive_field(self) -> int | None:
        """The span in positions, the present one included; None where there is no bound.

        For a non-causal mixer: the span from the earliest to the latest input that one output depends on.
        It covers the inputs, so a `reach` above 1 counts.
        """

    @property
    def lags(self) -> Sequence[int] | None:
        """How far back the inputs of one output stand: 0 is the position itself, negative is ahead; None for all."""
        return None if self.receptive_field is None else range(self.receptive_field)

    @property
    def period(self) -> int:
        """After how many positions outputs see the same again: the block of links that are made of blocks, else 1."""
        return 1

    def lags_at(self, position: int) -> Sequence[int] | None:
        """The lags of the outputs at `position`, counted from where a period begins; see `lags`."""
        return self.lags

    @property
    def sees_everything(self) -> bool:
        """Whether every output is linked to every earlier position, which is more than having no bound on the span."""
        return self.receptive_field is None

    @property
    def positions_seen(self) -> int | None:
        """How many positions of the receptive field are really seen (a dilated kernel skips some)."""
        return None if self.lags is None else len(self.lags)

    @property
    def head_spans(self) -> Sequence[int | None] | None:
        """The span of each head, in the order of `mixing`; None where every head has the mixer's receptive field.

        It covers what matrix @ values of the head depends on: the links of its matrix, the reach of the values before
        them, and the output's own position (which a mixer that resamples has not). An entry is None without a bound.
        """
        return None

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        """Mixes a sequence x (batch, time, dim), continuing `state` where one is given.

        Args:
            document_ids: (batch, time) integers; nothing crosses a place where the id changes.
            capacity: the number of positions a growing state is made for; None grows as it must. It
                has no effect on a constant state. Running over a capacity raises an InputError.
        """

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first token, for `batch` rows. Causal mixers override this."""
        raise InputError(f"{type(self).__name__} is not causal and has no state: use forward on whole sequences")

    def step(self, x: Tensor, state: State) -> Mixed:
        """Mixes one more token x (batch, dim) of the state's document. May write into `state`: clone it to branch."""
        raise InputError(f"{type(self).__name__} is not causal and has no step: use forward on whole sequences")

    @abstractmethod
    def mixing(self, x: Tensor) -> list[Mixing]:
        """The matrices and values of x (batch, time, dim), one document a row; heads of one width are one Mixing."""

    @abstractmethod
    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        """From [matrix @ values for each Mixing] back to y (batch, time, dim), position by position.

        Of x, the readout at t may look at the positions within `reach`: a gate that comes from a short convolution.
        """

    @abstractmethod
    def links(self, time: int) -> Tensor:
        """bool (time, source): the positions whose values can reach a target, over all heads."""

    @abstractmethod
    def cost(self, batch: int, time: int) -> Cost:
        """The cost of forward over `batch` rows of `time` positions from an empty state; see `Cost`."""

    def step_cost(self, batch: int, position: int) -> Cost:
        """The cost of one `step` with `position` tokens already read; the state is counted after it."""
        after = self.cost(batch, position + 1)
        before = self.cost(batch, position) if position else Cost()
        one = self.cost(batch, 1)
        return Cost(
            product_flops=after.product_flops - before.product_flops,
            other_flops=after.other_flops - before.other_flops,
            parameters=after.parameters,
            state_bytes=after.state_bytes,
            bytes_moved=one.bytes_moved - one.state_bytes + after.state_bytes,
        )

    def check_context(self, context: int) -> None:
        """Raises an InputError where the options can never be met in sequences of up to `context` positions."""

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the constructor does; a mixer with parameters of its own extends this."""
        for child in self.modules():
            if isinstance(child, nn.Linear):
                child.reset_parameters()

    def no_decay(self) -> set[str]:
        """The names of parameters that weight decay must leave alone, besides biases and norms."""
        return set()

    def rate_scales(self) -> dict[str, float]:
        """Factors on the learning rate, by name, of parameters that the source trains faster or slower than others."""
        return {}

    @property
    def num_parameters(self) -> int:
        """The number of trainable values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in dataclasses.asdict(self.config).items())
        return f"dim={self.dim}" + (f", {options}" if options else "")


class SharingMixer(Mixer):
    """A mixer whose first layer hands something on to the layers above, such as RWKV-7's first values.

    `forward`, `step`, `mixing` and `readout` without it are those of a first layer. What is handed on is
    (batch, time, dim), or (batch, dim) in a step; it belongs to the same positions as x.
    """

    @property
    @abstractmethod
    def needs_shared(self) -> bool:
        """Whether this is a layer above the first one: `shared` must then be given (else an InputError says so)."""

    @abstractmethod
    def forward_sharing(
        self,
        x: Tensor,
        state: State | None,
        shared: Tensor | None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> tuple[Mixed, Tensor]:
        """As `forward`, with what the first layer handed on (None in that layer itself), and what to hand on."""

    @abstractmethod
    def step_sharing(self, x: Tensor, state: State, shared: Tensor | None) -> tuple[Mixed, Tensor]:
        """As `step`, likewise."""

    @abstractmethod
    def mixing(self, x: Tensor, shared: Tensor | None = None) -> list[Mixing]: ...

    @abstractmethod
    def readout(self, mixed: list[Tensor], x: Tensor, shared: Tensor | None = None) -> Tensor: ...

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        return self.forward_sharing(x, state, None, document_ids=document_ids, capacity=capacity)[0]

    def step(self, x: Tensor, state: State) -> Mixed:
        return self.step_sharing(x, state, None)[0]


def build_config(config_class: type, options: Mapping[str, Any], owner: str) -> Any:
    """An instance of a config dataclass; an option it does not have raises an InputError with the nearest one."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {owner}", option, known)
    return config_class(**options)


def causal_mask(time: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """bool (time, time): source at or before the target, and less than `window` positions back."""
    steps = torch.arange(time, device=device)
    distance = steps[:, None] - steps[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)
