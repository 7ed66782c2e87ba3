"""Decoding through a captured step: on a CPU a tape of operations on fixed memory stands in for the CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqmix import create_model, list_models
from seqmix.errors import InputError
from seqmix.generation import create_engine
from seqmix.generation.cuda_graph import CudaGraphEngine, GraphDecoder, capture_on_gpu, write_back
from seqmix.generation.engine import TorchEngine
from seqmix.mixer import State
from seqmix.models import SeqmixConfig, SeqmixForCausalLM

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Tape(TorchDispatchMode):
    """What a CUDA graph is: the operations that once ran, with the memory they read and wrote and no Python between.

    An operation whose result the host waits for cannot be captured.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(operation) for word in self.WAITS), f"{operation} waits for the device"
        result = operation(*args, **(kwargs or {}))
        self.entries.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for operation, args, kwargs, result in self.entries:
            if operation.is_view:
                continue
            again = operation(*args, **kwargs)
            read = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and id(old) not in read and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture_on_tape(function: Callable[[], None]) -> Callable[[], None]:
    for _ in range(2):
        function()
    with Tape() as tape:
        function()
    return tape.replay


def model_of(name: str) -> SeqmixForCausalLM:
    return create_model(name, vocab_size=23, params="50k", context=32).eval()


@torch.no_grad()
def logits_of_steps(model: SeqmixForCausalLM, tokens: Tensor, state: State | None = None) -> list[Tensor]:
    state = model.init_state(len(tokens)) if state is None else state.clone()
    found = []
    for token in tokens.unbind(1):
        logits, state = model.step(token, state)
        found.append(logits.clone())
    return found


@pytest.mark.parametrize("name", list_models())
def test_the_tape_gives_what_steps_give(name: str) -> None:
    model, tokens = model_of(name), torch.randint(23, (2, 9))
    decoder = GraphDecoder(model, 2, 16, capture=capture_on_tape)
    for _ in range(2):
        for token, expected in zip(tokens.unbind(1), logits_of_steps(model, tokens), strict=True):
            torch.testing.assert_close(decoder.step(token), expected)
        assert decoder.position == 9
        decoder.reset()


@pytest.mark.parametrize("name", ["transformer", "local_transformer", "convsamba", "mamba2"])
@pytest.mark.parametrize("capacity", [None, 7, 40])
def test_it_goes_on_from_a_prefilled_state_and_hands_it_back(name: str, capacity: int | None) -> None:
    model, tokens = model_of(name), torch.randint(23, (2, 12))
    with torch.no_grad():
        _, state = model.prefill(tokens[:, :5], capacity=capacity)
    decoder = GraphDecoder(model, 2, 16, capture=capture_on_tape)
    decoder.load_state(state)
    roomy = model.prefill(tokens[:, :5])[1]
    expected = logits_of_steps(model, tokens[:, 5:], roomy)
    for token, logits in zip(tokens[:, 5:9].unbind(1), expected, strict=False):
        torch.testing.assert_close(decoder.step(token), logits)
    for found, logits in zip(logits_of_steps(model, tokens[:, 9:], decoder.state()), expected[4:], strict=True):
        torch.testing.assert_close(found, logits)
    assert decoder.position == 9


def test_a_window_goes_round() -> None:
    mixer = {"name": "attention", "heads": 2, "window": 4}
    config = SeqmixConfig(vocab_size=23, hidden_size=8, num_hidden_layers=2, mixers=[mixer])
    model, tokens = SeqmixForCausalLM(config).eval(), torch.randint(23, (1, 11))
    decoder = GraphDecoder(model, capture=capture_on_tape)
    assert decoder.capacity is None
    for token, expected in zip(tokens.unbind(1), logits_of_steps(model, tokens), strict=True):
        torch.testing.assert_close(decoder.step(token), expected)


def test_room_and_rows_are_checked_and_named() -> None:
    model = model_of("transformer")
    decoder = GraphDecoder(model, 1, 3, capture=capture_on_tape)
    for _ in range(3):
        decoder.step(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="room for 3 positions and 4 are needed: make the decoder with capacity=4"):
        decoder.step(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        _, long = model.prefill(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="5 are needed"):
        decoder.load_state(long)
    with pytest.raises(InputError, match="the state has 2 rows and the graph 1: make a decoder with batch=2"):
        decoder.load_state(model.init_state(2))
    with pytest.raises(InputError, match="capacity 0"):
        GraphDecoder(model, 1, 0, capture=capture_on_tape)


def test_without_a_gpu_one_sentence_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"needs a model on a CUDA device, and this one is on cpu: move it with model"):
        GraphDecoder(model_of("convsamba"))


def test_states_that_share_memory_are_copied_whole() -> None:
    buffers = State(torch.tensor([1, 2]), torch.tensor([3, 4]))
    write_back(buffers, State(buffers.document, buffers.position))
    assert (buffers.position.tolist(), buffers.document.tolist()) == ([3, 4], [1, 2])


def test_the_tape_would_notice_numbers_kept_in_python() -> None:
    count = torch.zeros(1)
    calls = 0

    def function() -> None:
        nonlocal calls
        calls += 1
        count.add_(calls)

    replay = capture_on_tape(function)
    count.zero_()
    replay()
    replay()
    assert count.item() == 6
    with pytest.raises(AssertionError, match="waits for the device"):
        capture_on_tape(lambda: print(count.item()))


def test_the_engine_is_the_torch_engine_with_a_graph_inside() -> None:
    model = model_of("convtransformer")
    engine, plain = CudaGraphEngine(model, capacity=16, capture=capture_on_tape), TorchEngine(model)
    for one in (engine, plain):
        one.prefill([1, 2, 3])
    branch = engine.branch()
    expected = [plain.step(token).copy() for token in (4, 5)]
    for one in (engine, branch):
        assert one.position == 3
        for token, logits in zip((4, 5), expected, strict=True):
            assert one.step(token) == pytest.approx(logits, abs=1e-5)
    engine.reset()
    assert engine.position == 0


@pytest.mark.parametrize("name", ["transformer", "convtransformer"])
def test_the_engine_makes_room_as_it_is_needed(name: str) -> None:
    model = model_of(name)
    engine, plain = CudaGraphEngine(model, capacity=3, capture=capture_on_tape), TorchEngine(model)
    for one in (engine, plain):
        one.prefill([1, 2])
    for token in (3, 4, 5, 6, 7):
        assert engine.step(token) == pytest.approx(plain.step(token), abs=1e-5)
    longer = list(range(15))
    # 7 positions fill a graph that had room for 6, then a prompt goes far beyond it.
    assert engine.prefill(longer) == pytest.approx(plain.prefill(longer), abs=1e-5)
    assert engine.step(8) == pytest.approx(plain.step(8), abs=1e-5)
    assert engine.position == 23


def test_the_state_of_a_full_graph_goes_on_elsewhere() -> None:
    model, tokens = model_of("transformer"), torch.randint(23, (1, 6))
    decoder = GraphDecoder(model, 1, 4, capture=capture_on_tape)
    for token in tokens[:, :4].unbind(1):
        decoder.step(token)
    with torch.no_grad():
        found, _ = model.prefill(tokens[:, 4:], decoder.state())
        expected, _ = model.prefill(tokens)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_engine_by_name_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="cuda_graph needs a CUDA device and there is none here: choose torch"):
        create_engine("cuda_graph", model_of("convsamba"))


@needs_gpu
@pytest.mark.parametrize("name", list_models())
def test_the_graph_gives_what_steps_give(name: str) -> None:
    model, tokens = model_of(name).cuda(), torch.randint(23, (2, 9), device="cuda")
    decoder = GraphDecoder(model, 2, 16, capture=capture_on_gpu)
    for token, expected in zip(tokens.unbind(1), logits_of_steps(model, tokens), strict=True):
        torch.testing.assert_close(decoder.step(token), expected)
