"""Linear attention against loops written from its paper, and the sums over whole documents that others share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.linear_attention import attend_both_ways
from seqmix.mixers import create_mixer
from seqmix.mixers.linear_attention import LinearAttention

DIM = 12


def _mixer(dtype: torch.dtype = torch.float32, **options: object) -> LinearAttention:
    torch.manual_seed(0)
    return create_mixer("linear_attention", DIM, **{"heads": 3, **options}).to(dtype)


def _normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def _published(mixer: LinearAttention, x: Tensor, sources_of: Callable[[int], range]) -> Tensor:
    """Equation 5 with the feature map of equation 7, pair by pair, for one row x (time, dim)."""
    width, outputs = mixer.head_dim, []
    for t in range(len(x)):
        heads = []
        for head in range(mixer.heads):
            rows = slice(head * width, (head + 1) * width)

            def of(name: str, s: int, rows: slice = rows) -> Tensor:
                projection = getattr(mixer, f"{name}_proj")
                return projection.weight[rows] @ x[s] + (0 if projection.bias is None else projection.bias[rows])

            query = F.elu(of("q", t)) + 1
            weights = {s: query @ (F.elu(of("k", s)) + 1) for s in sources_of(t)}
            norm = sum(weights.values()) + mixer.config.eps
            heads.append(sum(weight * of("v", s) for s, weight in weights.items()) / norm)
        outputs.append(mixer.o_proj(torch.cat(heads)))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", [{}, {"bias": True, "eps": 0.1}])
@torch.no_grad()
def test_causal_form_equals_the_published_sum(options: dict[str, object]) -> None:
    mixer = _mixer(torch.float64, **options)
    x = _normal(2, 9, DIM)
    y, end = mixer(x)
    for row in range(2):
        expected = _published(mixer, x[row], lambda t: range(t + 1))
        torch.testing.assert_close(y[row], expected, rtol=1e-10, atol=1e-10)
    state = mixer.init_state(2)
    for t in range(9):
        one, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(one, y[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.sums, end.sums, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_form_over_the_document_equals_the_published_sum() -> None:
    mixer = _mixer(torch.float64, causal=False)
    x = _normal(1, 9, DIM)
    expected = _published(mixer, x[0], lambda t: range(9))
    torch.testing.assert_close(mixer(x).y[0], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_rows_of_the_matrix_sum_to_one_but_for_eps() -> None:
    for causal in (True, False):
        (mixing,) = _mixer(torch.float64, causal=causal, eps=1e-12).mixing(_normal(2, 20, DIM))
        sums = mixing.matrix.sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1e2, 1e4])
@torch.no_grad()
def test_inputs_of_any_size_stay_finite(size: float) -> None:
    """Features of large negative inputs underflow together; eps is then what keeps 0 / 0 away."""
    for causal in (True, False):
        mixer = create_mixer("linear_attention", 4, heads=4, causal=causal)
        assert torch.isfinite(mixer(size * _normal(3, 40, 4, dtype=torch.float32)).y).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_both_ways_equals_each_document_alone(data: st.DataObject) -> None:
    """Packed documents of any lengths, for both precisions, any chunk, and the gradients of all three inputs."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    chunk = data.draw(st.sampled_from([1, 4, 64]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    time = sum(lengths)
    runs = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    q, k, v = (_normal(1, time, 2, width, dtype=dtype).requires_grad_() for width in (3, 3, 4))
    found = attend_both_ways(q, k, v, runs, chunk=chunk)
    parts = zip(*(each.double().split(lengths, dim=1) for each in (q, k, v)), strict=True)
    expected = torch.cat([torch.einsum("bthk,bshk,bshv->bthv", *part) for part in parts], dim=1)
    # Two scans and what they share: at most 2 * time + 1 terms of a product of 3 numbers.
    tolerance = 4 * (2 * time + 1) * torch.finfo(dtype).eps * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    ours = torch.autograd.grad((found * found.detach().cos()).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * expected.detach().cos()).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if dtype == torch.float32 else 1e-10, atol=50 * tolerance)


class _Allocations(TorchDispatchMode):
    """Adds up the numbers that all operations give out, and keeps the most that one of them does."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.total += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    "name, options",
    [
        ("linear_attention", {}),
        ("linear_attention", {"causal": False}),
        ("retnet", {}),
        ("performer", {"features": 8}),
        ("performer", {"features": 8, "causal": False}),
        ("linformer", {"length": 2048, "rank": 8}),
    ],
)
@torch.no_grad()
def test_memory_grows_as_the_time(name: str, options: dict[str, object], is_packed: bool) -> None:
    """Twice the positions take twice the numbers, in all and in the largest tensor."""
    mixer = create_mixer(name, 8, heads=2, **options)
    used = []
    for time in (1024, 2048):
        ids = (torch.arange(time) // 300)[None] if is_packed else None
        x = _normal(1, time, 8, dtype=torch.float32)
        with _Allocations() as allocations:
            mixer(x, document_ids=ids)
        used.append(allocations)
    assert used[1].largest <= 2 * used[0].largest
    assert used[1].total <= 2 * used[0].total
    assert used[1].largest <= 64 * 2048


@torch.no_grad()
def test_cost_of_a_step_is_counted() -> None:
    mixer = _mixer()
    with FlopCounter() as counter:
        mixer.step(_normal(3, DIM, dtype=torch.float32), mixer.init_state(3))
    assert mixer.step_cost(3, 5).product_flops == counter.total
    assert mixer.step_cost(3, 5).state_bytes == mixer.init_state(3).nbytes


@torch.no_grad()
def test_a_bfloat16_mixer_sums_in_float32() -> None:
    mixer = _mixer(torch.bfloat16)
    y, state = mixer(_normal(2, 40, DIM, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.sums.dtype == mixer.init_state(2).sums.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = _mixer(causal=False)(_normal(2, 40, DIM, dtype=torch.float32)).y
    exact = _mixer(torch.float64, causal=False)(_normal(2, 40, DIM)).y
    assert (whole - exact).abs().max() <= 8 * 2**-8 * exact.abs().max()


def test_a_form_over_the_document_has_no_state() -> None:
    mixer = _mixer(causal=False)
    x = _normal(1, 3, DIM, dtype=torch.float32)
    for call in (lambda: mixer.init_state(1), lambda: mixer.step(x[:, 0], _mixer().init_state(1))):
        with pytest.raises(InputError, match="not causal"):
            call()
    with pytest.raises(InputError, match="takes no state"):
        mixer(x, _mixer().init_state(1))
    with pytest.raises(InputError, match="begin with init_state"):
        _mixer()(x, create_mixer("retnet", DIM, heads=3).init_state(1))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "heads is 5, which does not divide dim 12"),
        ({"heads": 0}, "heads is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"causl": True}, "causal"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("linear_attention", DIM, **options)
