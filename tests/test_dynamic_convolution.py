"""light_conv and dynamic_conv against loops of the paper's equations and torch's conv1d; the operation below them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.dynamic_conv import chunked, dynamic_conv, dynamic_conv_step
from seqmix.mixers import create_mixer
from seqmix.mixers.band import BandMixer

DIM = 12


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mixer(name: str, dtype: torch.dtype = torch.float64, **options: object) -> BandMixer:
    torch.manual_seed(0)
    mixer = create_mixer(name, DIM, **{"kernel": 5, "heads": 3, **options}).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def _window(x: Tensor, t: int, offset: int) -> Tensor:
    """x at t + offset, zero outside of it."""
    return x[t + offset] if 0 <= t + offset < len(x) else torch.zeros_like(x[0])


def _by_the_formula(mixer: BandMixer, name: str, x: Tensor) -> Tensor:
    """One row (time, dim), one position, channel and tap at a time."""
    kernel, heads = mixer.config.kernel, mixer.heads
    projected = x @ mixer.in_proj.weight.T + mixer.in_proj.bias
    values = projected[:, :DIM] / (1 + torch.exp(-projected[:, DIM:]))
    left = kernel - 1 if mixer.config.causal else (kernel - 1) // 2
    outputs = []
    for t in range(len(x)):
        scores = mixer.weight if name == "light_conv" else (mixer.weight_proj.weight @ values[t]).view(heads, kernel)
        weights = torch.stack([torch.exp(row) / torch.exp(row).sum() for row in scores])
        mixed = []
        for channel in range(DIM):
            head = channel * heads // DIM
            taps = [weights[head, tap] * _window(values, t, tap - left)[channel] for tap in range(kernel)]
            mixed.append(torch.stack(taps).sum())
        outputs.append(mixer.out_proj.weight @ torch.stack(mixed) + mixer.out_proj.bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv"])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"causal": False, "kernel": 4}, {"kernel": 9, "heads": 12}])
@torch.no_grad()
def test_equals_the_paper_written_out(name: str, options: dict[str, object]) -> None:
    mixer = _mixer(name, **options)
    x = _normal(2, 8, DIM)
    expected = torch.stack([_by_the_formula(mixer, name, row) for row in x])
    assert (mixer(x).y - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("causal", [True, False])
def test_light_conv_equals_torch(causal: bool) -> None:
    mixer = _mixer("light_conv", torch.float32, causal=causal)
    x = _normal(2, 20, DIM).float()
    values = F.glu(mixer.in_proj(x), dim=-1).transpose(1, 2)
    weight = mixer.weight.softmax(dim=1).repeat_interleave(4, dim=0)[:, None]
    values = F.pad(values, (4, 0) if causal else (2, 2))
    expected = mixer.out_proj(F.conv1d(values, weight, groups=DIM).transpose(1, 2))
    torch.testing.assert_close(mixer(x).y, expected)


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv"])
@torch.no_grad()
def test_the_softmax_is_over_all_taps(name: str) -> None:
    """A row of the matrix sums to 1 once the kernel is inside the sequence, and to less before."""
    mixer = _mixer(name)
    (mixing,) = mixer.mixing(_normal(2, 9, DIM))
    assert mixing.matrix.shape == (1 if name == "light_conv" else 2, 3, 9, 9)
    sums = mixing.matrix.sum(dim=-1)
    assert (sums[..., 4:] - 1).abs().max() < 1e-12
    assert bool((sums[..., :4] < 1 - 1e-3).all())
    assert bool((mixing.matrix >= 0).all())


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv"])
@torch.no_grad()
def test_steps_equal_forward_and_cost_what_they_declare(name: str) -> None:
    mixer = _mixer(name, torch.float32)
    x = _normal(3, 14, DIM).float()
    expected, end = mixer(x)
    state = mixer.init_state(3)
    for t in range(14):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state.past, end.past)
    assert state.nbytes == mixer.cost(3, 14).state_bytes == 3 * (4 * DIM * 4 + 16)
    if name == "dynamic_conv":
        with FlopCounter() as counter:
            mixer.step(x[:, 0], state)
        assert counter.total == mixer.step_cost(3, 14).product_flops


def test_numbers_they_declare() -> None:
    causal, centred = _mixer("dynamic_conv", kernel=6), _mixer("light_conv", kernel=6, causal=False)
    assert (causal.receptive_field, causal.positions_seen, list(causal.lags)) == (6, 6, [0, 1, 2, 3, 4, 5])
    assert (centred.receptive_field, list(centred.lags)) == (6, [-3, -2, -1, 0, 1, 2])
    assert causal.cost(1, 1).parameters == DIM * 2 * DIM + 2 * DIM + DIM * 3 * 6 + DIM * DIM + DIM
    assert causal.cost(2, 7).product_flops == 2 * 2 * 7 * (DIM * (3 * DIM + 18) + DIM * 6)
    assert centred.cost(1, 1).parameters == DIM * 2 * DIM + 2 * DIM + 3 * 6 + DIM * DIM + DIM
    assert create_mixer("light_conv", 512).heads == create_mixer("dynamic_conv", 512).heads == 8


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv"])
def test_fresh_weights_are_those_of_the_paper_s_code(name: str) -> None:
    """Xavier's: uniform within sqrt(6 / (inputs + outputs)), of (heads, 1, kernel) and of dim -> heads * kernel."""
    torch.manual_seed(0)
    mixer = create_mixer(name, 64, kernel=31, heads=16)
    weight = mixer.weight if name == "light_conv" else mixer.weight_proj.weight
    bound = math.sqrt(6 / (31 + 16 * 31)) if name == "light_conv" else math.sqrt(6 / (64 + 16 * 31))
    assert 0.95 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv", "involution"])
@pytest.mark.parametrize(
    "options, words",
    [
        ({"kernel": 0}, "kernel is 0: it must be at least 1"),
        ({"kernal": 3}, "kernal.*kernel"),
        ({"GROUPS": 5}, "is 5, which does not divide dim 12: choose a divisor"),
        ({"GROUPS": -1}, "is -1: it must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, int], words: str) -> None:
    heads = "groups" if name == "involution" else "heads"
    with pytest.raises(InputError, match=words):
        create_mixer(name, DIM, **{heads if key == "GROUPS" else key: value for key, value in options.items()})


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv", "involution"])
def test_what_a_form_cannot_do_is_an_error(name: str) -> None:
    centred, causal = create_mixer(name, DIM, causal=False), create_mixer(name, DIM)
    x, state = _normal(2, 6, DIM).float(), causal.init_state(2)
    with pytest.raises(InputError, match="takes no state"):
        centred(x, state)
    with pytest.raises(InputError, match="no state"):
        centred.init_state(2)
    with pytest.raises(InputError, match="no step"):
        centred.step(x[:, 0], state)
    with pytest.raises(InputError, match="PoolState, which no convolution made"):
        causal(x, create_mixer("pool", DIM).init_state(2))


@pytest.mark.parametrize("name", ["light_conv", "dynamic_conv"])
def test_types_under_autocast(name: str) -> None:
    mixer = _mixer(name, torch.float32)
    x = _normal(2, 6, DIM).float()
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, 2]])
    expected = mixer(x, document_ids=ids).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, packed = mixer(x).y, mixer(x, document_ids=ids).y
    assert plain.dtype == packed.dtype == torch.bfloat16
    # Projections, gate, taps and output each round to 8 bits.
    assert (packed - expected).abs().max() <= 8 * 2**-8 * expected.abs().max()
    packed.float().sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


SHAPES = [
    (2, 9, 6, 2, 4, True),
    (2, 9, 6, 2, 4, False),
    (1, 1, 4, 4, 3, True),
    (3, 7, 5, 1, 9, False),
    (2, 5, 4, 2, 1, True),
]


def _loop(x: Tensor, weight: Tensor, causal: bool, ids: Tensor) -> Tensor:
    """sum_k weight[t, head, k] x[t - left + k], over taps within t's document (ids there are runs)."""
    (batch, time, dim), (heads, kernel) = x.shape, weight.shape[2:]
    left = kernel - 1 if causal else (kernel - 1) // 2
    y = torch.zeros_like(x)
    for row in range(batch):
        for t in range(time):
            for tap in range(kernel):
                source = t - left + tap
                if 0 <= source < time and ids[row, source] == ids[row, t]:
                    by_channel = weight[row, t, :, tap].repeat_interleave(dim // heads)
                    y[row, t] = y[row, t] + by_channel * x[row, source]
    return y


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("batch, time, dim, heads, kernel, causal", SHAPES)
def test_the_operation_is_its_formula(
    batch: int,
    time: int,
    dim: int,
    heads: int,
    kernel: int,
    causal: bool,
    implementation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outputs and gradients, packed and not, in pieces of a few positions too."""
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2], [0] * 9])[:batch, :time]
    for document_ids in (None, ids):
        for piece in (1, 3 * dim, 1 << 17):
            monkeypatch.setattr(chunked, "PIECE", piece)
            # The weights lie in memory as they may, taps before heads.
            weight = _normal(batch, time, kernel, heads).transpose(2, 3)
            leaves = [_normal(batch, time, dim).requires_grad_(), weight.requires_grad_()]
            expected = _loop(*leaves, causal, torch.zeros_like(ids) if document_ids is None else ids)
            found, _ = dynamic_conv(*leaves, causal=causal, document_ids=document_ids, implementation=implementation)
            assert (found - expected).abs().max() <= 1e-12
            slopes = [torch.autograd.grad((y * _normal(*y.shape, seed=1)).sum(), leaves) for y in (found, expected)]
            for one, other in zip(*slopes, strict=True):
                assert (one - other).abs().max() <= 1e-12


@given(st.data())
def test_packed_pieces_and_steps_equal_separate_documents(data: st.DataObject) -> None:
    kernel = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    implementation = data.draw(st.sampled_from(["reference", "chunked"]))
    time = sum(lengths)
    cut = data.draw(st.integers(1, time))
    x, weight = _normal(1, time + 2, 4), _normal(1, time + 2, 2, kernel, seed=1)
    parts = [*lengths[:-1], lengths[-1] + 2]
    expected = torch.cat(
        [dynamic_conv(*part)[0] for part in zip(x.split(parts, dim=1), weight.split(parts, dim=1), strict=True)], dim=1
    )
    ids = torch.cat([torch.full((1, length), 5 - index % 2) for index, length in enumerate(lengths)], dim=1)
    outputs, state = [], None
    for piece in (slice(0, cut), slice(cut, time)):
        if piece.start < piece.stop:
            y, state = dynamic_conv(
                x[:, piece], weight[:, piece], state=state, document_ids=ids[:, piece], implementation=implementation
            )
            outputs.append(y)
    for t in (time, time + 1):
        y, state = dynamic_conv_step(x[:, t], weight[:, t], state=state)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected)
    assert state.position.tolist() == [parts[-1]]


def test_sums_in_low_precision_are_wide() -> None:
    """Thirty-one products of bfloat16 numbers are summed in float32: only inputs and output are rounded."""
    x, weight = _normal(2, 40, 8).bfloat16(), _normal(2, 40, 2, 31).softmax(-1).bfloat16()
    y, _ = dynamic_conv(x, weight)
    exact, _ = dynamic_conv(x.double(), weight.double())
    assert y.dtype == torch.bfloat16
    assert bool(((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all())


def _held_for_backward(time: int, kernel: int, dim: int = 16) -> int:
    """Bytes of memory that a forward pass keeps for its backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mixer = create_mixer("dynamic_conv", dim, kernel=kernel, heads=1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = mixer(torch.zeros(1, time, dim, requires_grad=True)).y
    assert y.requires_grad
    return sum(kept.values())


def test_memory_is_linear_in_time_and_holds_no_window() -> None:
    short, long, wide = _held_for_backward(500, 3), _held_for_backward(1000, 3), _held_for_backward(1000, 31)
    assert 1.9 * short < long < 2.1 * short
    # A kernel's taps and their softmax are held for one head, never dim numbers for each tap.
    assert wide - long <= 2 * 1000 * 28 * 4 * 1.1


@torch.no_grad()
def test_a_long_sequence_equals_its_end() -> None:
    mixer = create_mixer("dynamic_conv", 8, kernel=31, heads=2)
    x = _normal(1, 65536, 8).float()
    torch.testing.assert_close(mixer(x).y[:, -50:], mixer(x[:, -80:]).y[:, -50:])


def test_products_are_counted_forward_and_backward() -> None:
    x, weight = torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 7, 3, 5, requires_grad=True)
    with FlopCounter() as counter:
        y, _ = dynamic_conv(x, weight)
    assert counter.total == 2 * 2 * 7 * 6 * 5
    with FlopCounter() as counter:
        y.sum().backward()
    assert counter.total == 2 * 2 * 2 * 7 * 6 * 5


def test_the_operation_refuses_what_does_not_fit() -> None:
    x, weight = torch.zeros(2, 5, 6), torch.zeros(2, 5, 3, 4)
    state = dynamic_conv(x, weight)[1]
    with pytest.raises(ValueError, match="do not fit"):
        dynamic_conv(x, weight[:, :4])
    with pytest.raises(ValueError, match="heads that divide dim 6"):
        dynamic_conv(x, torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="takes no state"):
        dynamic_conv(x, weight, causal=False, state=state)
    with pytest.raises(ValueError, match="'fast' is unknown: choose one of reference, chunked"):
        dynamic_conv(x, weight, implementation="fast")
