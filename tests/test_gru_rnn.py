"""GRU and Elman's network against torch's modules with the same weights, and the loops as operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.recurrent_loops import elman_loop, gru_loop, lstm_loop
from seqmix.mixers import create_mixer
from seqmix.mixers.recurrent.base import Recurrent

DIM = 6
MODULES = {"gru": nn.GRU, "rnn": nn.RNN}


def _mixer(name: str, dtype: torch.dtype = torch.float64, **options: object) -> Recurrent:
    torch.manual_seed(0)
    return create_mixer(name, DIM, **options).to(dtype)


def _input(batch: int, time: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("options", [{}, {"hidden": 9}, {"hidden": 4, "bias": False}])
@pytest.mark.parametrize("name", MODULES)
def test_equals_torch_in_values_states_and_gradients(
    name: str, dtype: torch.dtype, tolerance: float, options: dict[str, object]
) -> None:
    mixer = _mixer(name, dtype, **options)
    other = MODULES[name](DIM, mixer.hidden, bias=mixer.config.bias, batch_first=True).to(dtype)
    own = {f"{key}_l0": value for key, value in mixer.state_dict().items() if not key.startswith("out_proj")}
    other.load_state_dict(own, strict=True)
    x = _input(3, 11, dtype)
    own_x, other_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, state = mixer(own_x)
    hidden, last = other(other_x)
    expected = mixer.out_proj(hidden)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.hidden, last[0], rtol=tolerance, atol=tolerance)
    (y * x.cos()).sum().backward()
    found = [own_x.grad, *(getattr(mixer, key[:-3]).grad for key, _ in other.named_parameters())]
    (expected * x.cos()).sum().backward()
    for ours, theirs in zip(found, [other_x.grad, *(p.grad for p in other.parameters())], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance * 10, atol=tolerance * 10)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_steps_and_pieces_equal_the_whole(name: str) -> None:
    mixer = _mixer(name, torch.float32, hidden=9)
    x = _input(2, 13, torch.float32)
    whole, end = mixer(x)
    state = mixer.init_state(2)
    for t in range(13):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state.hidden, end.hidden)
    first = mixer(x[:, :5])
    second = mixer(x[:, 5:], first.state)
    torch.testing.assert_close(torch.cat([first.y, second.y], dim=1), whole)
    assert mixer(x[:, :0], first.state).state.position.tolist() == [5, 5]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_packed_pieces_equal_separate_documents(data: st.DataObject) -> None:
    """Two packed rows, fed in two pieces cut anywhere, equal each document on its own; both forms, gradients too."""
    name, dtype = data.draw(st.sampled_from([*MODULES])), data.draw(st.sampled_from([torch.float32, torch.float64]))
    time = data.draw(st.integers(1, 12))
    borders = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(2)])
    ids = borders.long().cumsum(1) % 3 + 4
    cut = data.draw(st.integers(1, time))
    mixer = _mixer(name, dtype)
    x = _input(2, time, dtype).requires_grad_()

    def parts(row: int) -> list[Tensor]:
        starts = [t for t in range(time) if t == 0 or borders[row, t]]
        return [x[row : row + 1, a:b] for a, b in zip(starts, [*starts[1:], time], strict=True)]

    separate = [[mixer(part) for part in parts(row)] for row in range(2)]
    expected = torch.cat([torch.cat([part.y for part in row], dim=1) for row in separate])
    found, state = mixer(x[:, :cut], document_ids=ids[:, :cut])
    if cut < time:
        rest, state = mixer(x[:, cut:], state, document_ids=ids[:, cut:])
        found = torch.cat([found, rest], dim=1)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(state.hidden, torch.cat([row[-1].state.hidden for row in separate]), **tolerance)
    weight = expected.detach().cos()
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), [x, *mixer.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x, *mixer.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance["rtol"], atol=10 * tolerance["atol"])


def _leaf(*sizes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).requires_grad_()


def _cases() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """Each loop with its tensors for 2 rows, 5 positions and a hidden width of 3."""
    hidden, cell = _leaf(2, 3, seed=0), _leaf(2, 3, seed=1)

    def without_bias(gates: Tensor, weight: Tensor, hidden: Tensor, **options: Any) -> Tensor:
        return gru_loop(gates, weight, None, hidden, **options)

    def inputs(gates: int) -> list[Tensor]:
        return [_leaf(2, 5, 3 * gates, seed=2), _leaf(3 * gates, 3, seed=3)]

    return {
        "elman": (elman_loop, [*inputs(1), hidden]),
        "gru": (gru_loop, [*inputs(3), _leaf(9, seed=4), hidden]),
        "gru without bias": (without_bias, [*inputs(3), hidden]),
        "lstm": (lstm_loop, [*inputs(4), hidden, cell]),
    }


@pytest.mark.parametrize("runs", [None, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 2, 3]])])
@pytest.mark.parametrize("name", _cases())
def test_operators_equal_the_reference_and_finite_differences(name: str, runs: Tensor | None) -> None:
    loop, leaves = _cases()[name]

    def run(*given: Tensor, implementation: str = "operator") -> tuple[Tensor, ...]:
        found = loop(*given, runs=runs, implementation=implementation)
        return found if isinstance(found, tuple) else (found,)

    for one, other in zip(run(*leaves), run(*leaves, implementation="reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("name", _cases())
def test_operators_pass_the_checks_of_custom_operators(name: str) -> None:
    _, leaves = _cases()[name]
    operator = {"elman": "elman_loop", "lstm": "lstm_loop"}.get(name, "gru_loop")
    arguments = [*leaves, None]
    if name == "gru without bias":
        arguments.insert(2, None)
    torch.library.opcheck(getattr(torch.ops.seqmix, operator).default, arguments)


@pytest.mark.parametrize("name", _cases())
def test_operators_are_counted(name: str) -> None:
    """The forward meets W_hh at every position; the backward twice, whatever it computes again."""
    loop, leaves = _cases()[name]
    products = 2 * 2 * 5 * leaves[1].numel()
    with FlopCounter() as counter:
        found = loop(*leaves, implementation="operator")
    assert counter.total == products
    with FlopCounter() as counter:
        (found if isinstance(found, Tensor) else found[0] + found[1]).sum().backward()
    assert counter.total == 2 * products


@pytest.mark.parametrize("name", ["gru", "rnn", "lstm"])
def test_a_compiler_sees_one_node_whatever_the_length(name: str) -> None:
    mixer = create_mixer(name, DIM)
    counts = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        counts.append(len(graph.graph.nodes))
        return graph.forward

    for time in (3, 40):
        torch._dynamo.reset()
        x = _input(2, time, torch.float32)
        compiled = torch.compile(mixer, fullgraph=True, backend=count, dynamic=False)
        torch.testing.assert_close(compiled(x).y, mixer(x).y)
    torch._dynamo.reset()
    assert counts[0] == counts[1]


def test_an_unknown_implementation_is_refused() -> None:
    loop, leaves = _cases()["elman"]
    with pytest.raises(ValueError, match="'fused' is unknown"):
        loop(*leaves, implementation="fused")


@pytest.mark.parametrize("name", MODULES)
def test_matrix_is_the_jacobian_by_finite_differences(name: str) -> None:
    mixer = _mixer(name, hidden=4)
    x = _input(2, 4)
    (mixing,) = mixer.mixing(x)
    assert mixing.values is None
    squares = torch.zeros(2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        for source in range(4):
            for channel in range(DIM):
                nudge = torch.zeros_like(x)
                nudge[:, source, channel] = 1e-5
                slope = (mixer(x + nudge).y - mixer(x - nudge).y) / 2e-5
                squares[:, :, source] += slope.square().sum(-1)
    torch.testing.assert_close(mixing.matrix[:, 0], squares.sqrt(), rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match=f"{type(mixer).__name__} is not linear in a stream of values"):
        mixer.readout([], x)


def test_cost_by_hand() -> None:
    assert _mixer("gru", hidden=4).cost(2, 3).product_flops == 2 * 3 * (2 * 3 * 4 * (DIM + 4) + 2 * 4 * DIM)
    assert _mixer("rnn").cost(2, 3).product_flops == 2 * 3 * 2 * DIM * 2 * DIM
    assert _mixer("rnn", torch.float32).cost(2, 3).state_bytes == 2 * (4 * DIM + 16)


@pytest.mark.parametrize("name", MODULES)
def test_options_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="hidden is 0"):
        create_mixer(name, DIM, hidden=0)
    with pytest.raises(InputError, match="hidden"):
        create_mixer(name, DIM, hiden=3)
