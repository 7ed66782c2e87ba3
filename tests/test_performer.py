"""Performer against loops written from its paper, its features, and inputs of sizes at which exponentials overflow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.linear_attention import (
    exponential_attention,
    exponential_attention_flops,
    exponential_weights,
)
from seqmix.mixers import create_mixer
from seqmix.mixers.performer import Performer, orthogonal_directions

DIM = 12


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> Performer:
    torch.manual_seed(0)
    return create_mixer("performer", DIM, **{"heads": 3, "chunk": 4, **options}).to(dtype)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def _published(mixer: Performer, x: Tensor, *, causal: bool) -> Tensor:
    """One row (time, dim): phi of lemma 1, whole and without any stabiliser, and the sums over sources one by one."""
    width, outputs = mixer.head_dim, []

    def phi(u: Tensor) -> Tensor:
        scaled = u / width**0.25
        return torch.exp(mixer.omega @ scaled - scaled @ scaled / 2) / mixer.features**0.5

    q, k, v = (projection(x).unflatten(-1, (-1, width)) for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    for t in range(len(x)):
        heads = []
        for head in range(mixer.heads):
            sources = range(t + 1) if causal else range(len(x))
            weights = [phi(q[t, head]) @ phi(k[s, head]) for s in sources]
            heads.append(sum(w * v[s, head] for w, s in zip(weights, sources, strict=True)) / sum(weights))
        outputs.append(mixer.o_proj(torch.cat(heads)))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", [{}, {"features": 3, "bias": True}])
@torch.no_grad()
def test_causal_form_equals_the_published_sum(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    x = _normal(2, 10, DIM)
    y, end = mixer(x)
    for row in range(2):
        torch.testing.assert_close(y[row], _published(mixer, x[row], causal=True), rtol=1e-10, atol=1e-10)
    state = mixer.init_state(2)
    for t in range(10):
        one, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(one, y[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.top, end.top, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.sums, end.sums, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_form_over_the_document_equals_the_published_sum() -> None:
    mixer = _mixer(causal=False)
    x = _normal(1, 10, DIM)
    torch.testing.assert_close(mixer(x).y[0], _published(mixer, x[0], causal=False), rtol=1e-10, atol=1e-10)
    ids = torch.tensor([[0] * 3 + [1] * 6 + [2]])
    expected = torch.cat([_published(mixer, part, causal=False) for part in x[0].split([3, 6, 1])])
    torch.testing.assert_close(mixer(x, document_ids=ids).y[0], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_matrix_estimates_softmax_attention() -> None:
    """The variance of the estimate falls as 1 / M: a hundred times the features, a tenth the error."""
    x = _normal(1, 16, DIM)
    errors = []
    for features in (64, 6400):
        mixer = _mixer(features=features)
        q, k = (proj(x).unflatten(-1, (3, -1)).transpose(1, 2) for proj in (mixer.q_proj, mixer.k_proj))
        scores = q @ k.transpose(-1, -2) / mixer.head_dim**0.5
        softmax = scores.masked_fill(~mixer.links(16), -torch.inf).softmax(dim=-1)
        errors.append(float((mixer.mixing(x)[0].matrix - softmax).square().mean().sqrt()))
    assert errors[0] < 0.05
    assert 5 < errors[0] / errors[1] < 20


def test_directions_are_orthogonal_with_gaussian_lengths() -> None:
    torch.manual_seed(0)
    drawn = orthogonal_directions(16 * 200 + 5, 16)
    assert drawn.shape == (3205, 16)
    block = drawn[16:32] / drawn[16:32].norm(dim=1, keepdim=True)
    torch.testing.assert_close(block @ block.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)
    # Squared lengths are chi-squared with 16 degrees: mean 16, variance 32; and every coordinate is a standard normal.
    squares = drawn.square().sum(dim=1)
    assert squares.mean().item() == pytest.approx(16, abs=5 * (32 / 3205) ** 0.5)
    assert squares.var().item() == pytest.approx(32, rel=0.2)
    assert drawn.mean().item() == pytest.approx(0, abs=5 / (3205 * 16) ** 0.5)
    assert drawn[:, 0].square().mean().item() == pytest.approx(1, abs=0.15)


def test_features_are_drawn_at_construction_and_saved() -> None:
    first, second = _mixer(), _mixer()
    assert torch.equal(first.omega, second.omega)
    assert first.state_dict()["omega"].shape == (max(4, round(4 * 1.3863)), 4)
    second.redraw(torch.Generator().manual_seed(5))
    assert not torch.equal(first.omega, second.omega)
    third = _mixer()
    third.redraw(torch.Generator().manual_seed(5))
    assert torch.equal(second.omega, third.omega)
    first.load_state_dict(second.state_dict())
    x = _normal(1, 5, DIM)
    assert torch.equal(first(x).y, second(x).y)
    with torch.device("meta"):
        empty = create_mixer("performer", DIM)
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    assert filled.omega.abs().max() < 20


@pytest.mark.parametrize("size", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_inputs_of_any_size_are_exact_and_finite(size: float, causal: bool) -> None:
    """Where features span thousands of orders of magnitude, what is left of the sums is still the published ratio."""
    mixer = _mixer(causal=causal)
    x = size * _normal(2, 23, DIM)
    y = mixer(x).y
    assert torch.isfinite(y).all()
    q, k, v = mixer._project(x)
    weights = torch.logsumexp(q[:, :, :, None] + k[:, :, None], dim=-1).masked_fill(~mixer.links(23), -torch.inf)
    expected = mixer.readout([weights.softmax(dim=-1) @ v], x)
    # An exponent of size E is off by E * eps, and so, relatively, is its exponential.
    exponent = float(torch.maximum(q.abs().max(), k.abs().max()))
    allowed = 16 * max(exponent, 64) * 2**-52 * float(expected.abs().max())
    assert (y - expected).abs().max() <= allowed
    quick = mixer.float()(x.float()).y
    assert torch.isfinite(quick).all()
    # In float32 the exponents themselves are sums of DIM products, each off by eps.
    if size == 1.0:
        assert (quick - expected).abs().max() <= 16 * DIM * max(exponent, 64) * 2**-23 * float(expected.abs().max())


@torch.no_grad()
def test_pieces_equal_the_whole_at_size_100() -> None:
    mixer = _mixer(torch.float32)
    x = (100 * _normal(2, 30, DIM)).float()
    whole, end = mixer(x)
    first = mixer(x[:, :11])
    second = mixer(x[:, 11:], first.state)
    size = float(whole.abs().max())
    # The logarithms of the features are the same numbers in either cut; only their sums differ in order.
    assert (torch.cat([first.y, second.y], dim=1) - whole).abs().max() <= 64 * 30 * 2**-23 * size
    state = mixer.init_state(2)
    for t in range(30):
        one, state = mixer.step(x[:, t], state)
        assert torch.isfinite(one).all()
    assert torch.isfinite(end.sums).all()
    assert torch.isfinite(state.sums).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chunked_form_equals_the_loop(data: st.DataObject) -> None:
    """Packed or not, cut in two anywhere, features of any size: outputs, states and gradients."""
    time, features, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    scale = data.draw(st.sampled_from([0.1, 3.0, 300.0]))
    chunk = data.draw(st.sampled_from([1, 2, 8, 64]))
    cut = data.draw(st.integers(0, time))
    borders = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(2)])
    runs = data.draw(st.sampled_from([None, borders.long().cumsum(dim=1)]))
    q, k = ((scale * _normal(2, 2, time, features, seed=seed)).requires_grad_() for seed in (1, 2))
    v = _normal(2, 2, time, width, seed=3).requires_grad_()

    def run(implementation: str) -> list[Tensor]:
        top = torch.full((2, 2, features), -torch.inf, dtype=torch.float64)
        sums = torch.zeros(2, 2, features, width + 1, dtype=torch.float64)
        outputs = []
        for part in (slice(0, cut), slice(cut, time)):
            here = None
            if runs is not None:
                here = runs[:, part] - (runs[:, cut - 1 : cut] if part.start and cut else 0)
            parts = (tensor[:, :, part] for tensor in (q, k, v))
            y, top, sums = exponential_attention(
                *parts, top, sums, runs=here, chunk=chunk, implementation=implementation
            )
            outputs.append(y)
        return [torch.cat(outputs, dim=2), top, sums]

    expected, found = run("reference"), run("chunked")
    tolerance = 1e-13 * max(1.0, scale) * time
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    slopes = [
        torch.autograd.grad((form[0] * expected[0].detach().cos()).sum(), (q, k, v)) for form in (found, expected)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@torch.no_grad()
def test_weights_need_no_feature_to_fit_both_sides() -> None:
    """The norm is at least 1 even where the query's largest feature and the key's are not the same."""
    q = torch.tensor([[[[500.0, -500.0]]]])
    k = torch.tensor([[[[-800.0, 100.0]]]])
    v = torch.tensor([[[[7.0]]]])
    y, _, _ = exponential_attention(q, k, v, torch.full((1, 1, 2), -torch.inf), torch.zeros(1, 1, 2, 2))
    assert y.item() == 7
    assert exponential_weights(q, k, torch.ones(1, 1, dtype=torch.bool)).item() == 1


@pytest.mark.parametrize("time", [1, 4, 5, 21])
@torch.no_grad()
def test_cost_is_counted(time: int) -> None:
    mixer = _mixer(torch.float32)
    with FlopCounter() as counter:
        mixer(_normal(3, time, DIM).float())
    assert mixer.cost(3, time).product_flops == counter.total
    with FlopCounter() as counter:
        mixer.step(_normal(3, DIM).float(), mixer.init_state(3))
    assert mixer.step_cost(3, 5).product_flops == counter.total
    assert mixer.step_cost(3, 5).state_bytes == mixer.init_state(3).nbytes


def test_flops_of_one_chunk_by_hand() -> None:
    """The 6 pairs of 4 positions, of 5 features and 3 columns; sums of 5 by 3 numbers, written and read 4 times."""
    assert exponential_attention_flops(4, 1, 5, 2, 4) == 2 * 6 * (5 + 3) + 2 * 2 * 4 * 5 * 3


@torch.no_grad()
def test_exponents_are_float32_whatever_the_input() -> None:
    mixer = _mixer(torch.bfloat16)
    x = _normal(2, 20, DIM)
    y, state = mixer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert state.top.dtype == state.sums.dtype == mixer.init_state(2).top.dtype == torch.float32
    for causal in (True, False):
        exact = _mixer(causal=causal)(x).y
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = _mixer(torch.float32, causal=causal)(x.float()).y
        assert (found - exact).abs().max() <= 16 * 2**-8 * exact.abs().max()


def test_gradients_pass_the_stabilisers() -> None:
    """The maxima cancel, so the gradient is that of the sum without them."""
    mixer = _mixer()
    x = _normal(1, 8, DIM).requires_grad_()
    cotangent = _normal(8, DIM)
    (ours,) = torch.autograd.grad((mixer(x).y[0] * cotangent).sum(), x)
    (theirs,) = torch.autograd.grad((_published(mixer, x[0], causal=True) * cotangent).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "does not divide dim 12"),
        ({"features": 0}, "features is 0"),
        ({"chunk": 48}, "power of two"),
        ({"chunk": 0}, "chunk is 0"),
        ({"feature": 4}, "features"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("performer", DIM, **options)


def test_states_that_do_not_fit_are_refused() -> None:
    x = _normal(1, 3, DIM)
    with pytest.raises(InputError, match="takes no state"):
        _mixer(causal=False)(x, _mixer().init_state(1))
    with pytest.raises(InputError, match="not causal"):
        _mixer(causal=False).init_state(1)
    with pytest.raises(InputError, match="begin with init_state"):
        _mixer()(x, create_mixer("retnet", DIM, heads=3).init_state(1))
    with pytest.raises(ValueError, match="implementation 'fast'"):
        exponential_attention(
            *(torch.zeros(1, 1, 1, 1),) * 3, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 2), implementation="fast"
        )
