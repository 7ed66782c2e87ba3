"""Decoding through a CUDA graph: one step of the model is captured once and replayed for every token.

A small model's step takes longer to launch than to run. The graph reads and writes the same memory every time: the
token, the state and the logits stand in buffers of their own, and what a step returns anew (positions, for example)
is copied back into them inside of the graph.

Only a state of fixed size can be captured: one that grows gets its capacity first, and knows nothing of positions
but what its tensors hold.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.generation.engine import Engine, Logits
from seqmix.generation.weights import WeightType, with_packed_weights
from seqmix.mixer import State
from seqmix.mixers.attention.slots import SlotState, widen
from seqmix.models import ModelState, SeqmixForCausalLM

WARM_UPS = 3
"""Runs before the capture, in which libraries choose their kernels and take their memory."""

CAPACITY = 4096
"""Positions that a state which grows gets room for, where nothing else is asked."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function without arguments and results, and gives what does the same work again on the same memory."""


class Stepping(Protocol):
    """A model, or whatever has its step."""

    def step(self, token_ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]: ...


def capture_on_gpu(function: Callable[[], None]) -> Callable[[], None]:
    """Captures the function as a CUDA graph on the current device, after some runs on a stream apart."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class GraphDecoder:
    """The step of a model on buffers that stay where they are; several rows at once.

    Args:
        model: on a CUDA device and in evaluation mode.
        batch: rows.
        capacity: positions there is room for in states that grow.
        capture: for other devices; see `Capture`.
        stepping: what is captured, where it is not the model itself.

    Attributes:
        capacity: the positions there is room for; None where no state grows.

    Raises:
        InputError: the model is not on a CUDA device, or the capacity or batch is below 1.
    """

    capacity: int | None

    def __init__(
        self,
        model: SeqmixForCausalLM,
        batch: int = 1,
        capacity: int = CAPACITY,
        *,
        capture: Capture | None = None,
        stepping: Stepping | None = None,
    ) -> None:
        if capture is None and model.device.type != "cuda":
            raise InputError(
                f"a CUDA graph needs a model on a CUDA device, and this one is on {model.device}: "
                "move it with model.to('cuda'), or decode with model.step"
            )
        if batch < 1 or capacity < 1:
            raise InputError(f"batch is {batch} and capacity {capacity}: both must be at least 1")
        self.model = model
        self._capture = capture
        self._stepping: Stepping = model if stepping is None else stepping
        with torch.no_grad():
            self._state = _fixed(model.init_state(batch, capacity))
            self._grows = [part.grows for part in _slot_states(model.init_state(batch, device="meta"))]
            slots = [part.slots for part in _slot_states(self._state)]
            self.capacity = min(itertools.compress(slots, self._grows), default=None)
            self._empty = self._state.clone()
            self._tokens = torch.zeros(batch, dtype=torch.int64, device=model.device)
            logits, _ = self._stepping.step(self._tokens, self._state.clone())
            self._logits = torch.empty_like(logits)
            self._replay = self._captured()
        self.reset()

    def _captured(self) -> Callable[[], None]:
        if self._capture is not None:
            return self._capture(self._run)
        with torch.cuda.device(self.model.device):
            return capture_on_gpu(self._run)

    def _run(self) -> None:
        """One step from the buffers into the buffers."""
        logits, after = self._stepping.step(self._tokens, self._state)
        self._logits.copy_(logits)
        write_back(self._state, after)

    @property
    def position(self) -> int:
        """The tokens that the row with the most of them has read."""
        return self._position

    @property
    def state_bytes(self) -> int:
        """The bytes of the state's buffers."""
        return self._state.nbytes

    def reset(self) -> None:
        """Forgets everything."""
        with torch.no_grad():
            write_back(self._state, self._empty)
        self._position = 0

    def state(self) -> ModelState:
        """A copy of the state; it goes on with the model's own `step` and `prefill`, and in `load_state`."""
        copied = self._state.clone()
        for part, grows in zip(_slot_states(copied), self._grows, strict=True):
            least, greatest = part.position.aminmax()
            part.shortest, part.longest, part.grows = int(least), int(greatest), grows
        return copied

    def load_state(self, state: ModelState) -> None:
        """Goes on from a copy of a state that the model's `init_state`, `prefill` or `step` gave.

        Raises:
            InputError: another number of rows, or more positions than there is room for.
        """
        rows, own_rows = len(state.position), len(self._tokens)
        if rows != own_rows:
            raise InputError(f"the state has {rows} rows and the graph {own_rows}: make a decoder with batch={rows}")
        position = int(state.position.max())
        self._check_room(position)
        with torch.no_grad():
            write_back(self._state, _fitted(state.to(self.model.device), self._state))
        self._position = position

    def step(self, token_ids: Tensor) -> Tensor:
        """Logits (batch, vocab) after one more token (batch,). They are valid until the next call.

        Raises:
            InputError: the capacity is reached.
        """
        self._check_room(self._position + 1)
        with torch.no_grad():
            self._tokens.copy_(token_ids)
            self._replay()
        self._position += 1
        return self._logits

    def _check_room(self, positions: int) -> None:
        if self.capacity is not None and positions > self.capacity:
            raise InputError(
                f"the graph has room for {self.capacity} positions and {positions} are needed: "
                f"make the decoder with capacity={positions} or more"
            )


class CudaGraphEngine(Engine):
    """The model's step as a CUDA graph, on the GPU where the model is.

    capacity: positions that a state which grows has room for at first; it gets more as they are needed.
    """

    name = "cuda_graph"

    def __init__(
        self,
        model: SeqmixForCausalLM,
        weights: WeightType = "f32",
        *,
        capacity: int = CAPACITY,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(model, weights)
        self._stepping = with_packed_weights(self.model, weights)
        self._capacity = capacity
        self._capture = capture
        self._decoder = self._make_decoder()

    def _make_decoder(self) -> GraphDecoder:
        return GraphDecoder(self.model, 1, self._capacity, capture=self._capture, stepping=self._stepping)

    def _make_room(self, positions: int) -> None:
        """Captures the step anew, with more room, where a state that grows has none left."""
        if self._decoder.capacity is not None and positions > self._decoder.capacity:
            state, self._capacity = self._decoder.state(), max(positions, 2 * self._capacity)
            self._decoder = self._make_decoder()
            self._decoder.load_state(state)

    @property
    def position(self) -> int:
        return self._decoder.position

    @property
    def state_bytes(self) -> int:
        return self._decoder.state_bytes

    def reset(self) -> None:
        self._decoder.reset()

    def branch(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._decoder = self._make_decoder()
        other._decoder.load_state(self._decoder.state())
        return other

    def state(self) -> ModelState:
        return self._decoder.state()

    def load_state(self, state: ModelState) -> None:
        self._make_room(int(state.position.max()))
        self._decoder.load_state(state)

    def step(self, token: int) -> Logits:
        self._make_room(self.position + 1)
        tokens = torch.tensor([token], device=self.model.device)
        return self._decoder.step(tokens)[0].float().cpu().numpy()


def write_back(buffers: State, after: State) -> None:
    """Copies the tensors of a state into those of another of the same kind, also where they share memory."""
    pairs = list(zip(_tensors(buffers), _tensors(after), strict=True))
    own = {buffer.untyped_storage().data_ptr() for buffer, _ in pairs}
    news = [
        (buffer, new.clone() if new.untyped_storage().data_ptr() in own else new)
        for buffer, new in pairs
        if new is not buffer and not _is_same_memory(new, buffer)
    ]
    for buffer, new in news:
        buffer.copy_(new)


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same places of memory in the same order."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.numel() > 0
    )


def _fixed(value: Any) -> Any:
    """The same state, of which nothing but its tensors tells how much of it is filled."""
    if isinstance(value, SlotState):
        # Bounds that are far apart let every step read all slots and ask the tensors which of them are filled.
        return dataclasses.replace(value, shortest=0, longest=value.slots - 1, grows=False)
    if isinstance(value, State):
        return type(value)(**{field.name: _fixed(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return tuple(_fixed(part) for part in value) if isinstance(value, tuple) else value


def _fitted(value: Any, buffers: Any) -> Any:
    """The same state with as many slots as the buffers have; what is filled must fit."""
    if isinstance(value, SlotState):
        slots = buffers.slots
        return dataclasses.replace(value, stored=tuple(widen(part, slots)[:, :, :slots] for part in value.stored))
    if isinstance(value, State):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value)(**{name: _fitted(getattr(value, name), getattr(buffers, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(_fitted(part, own) for part, own in zip(value, buffers, strict=True))
    return value


def _slot_states(value: Any) -> list[SlotState]:
    """The states with slots within a state, in the order of its fields."""
    if isinstance(value, SlotState):
        return [value]
    return [found for part in _fields(value) for found in _slot_states(part)]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors within a state, in the order of its fields."""
    return [value] if isinstance(value, Tensor) else [found for part in _fields(value) for found in _tensors(part)]


def _fields(value: Any) -> tuple[Any, ...]:
    """What a state or a tuple holds; nothing for anything else."""
    if isinstance(value, State):
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    return value if isinstance(value, tuple) else ()
