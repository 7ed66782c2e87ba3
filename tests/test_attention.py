"""Attention against a loop written from the equations, Hugging Face's rotary embedding, and itself in pieces."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix import create_mixer
from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers.attention import Attention
from seqmix.mixers.rotary import rotate
from seqmix.mixers.sizes import usual_heads

FLOAT32_TOLERANCE = 64 * torch.finfo(torch.float32).eps
"""Sums of at most 64 terms of size about 1."""

OPTIONS: list[tuple[int, dict[str, Any]]] = [
    (12, {"heads": 3}),
    (12, {"heads": 4, "kv_heads": 2, "bias": True}),
    (10, {"heads": 2, "kv_heads": 1, "window": 5}),
    (9, {"heads": 3, "head_dim": 5, "rope": False}),
    (7, {"heads": 1, "window": 1}),
    (14, {"heads": 2, "rope_theta": 50.0, "window": 64}),
]


def build(dim: int, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Attention:
    torch.manual_seed(0)
    mixer = create_mixer("attention", dim, **options).to(dtype)
    assert isinstance(mixer, Attention)
    return mixer


def turned(vector: Tensor, position: int, theta: float) -> Tensor:
    """RoPE of one head at one position, channel by channel."""
    width = len(vector)
    out = vector.clone()
    for pair in range(width // 2):
        angle = position * theta ** (-2 * pair / (2 * (width // 2)))
        a, b = vector[pair], vector[pair + width // 2]
        out[pair] = a * math.cos(angle) - b * math.sin(angle)
        out[pair + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def by_loops(mixer: Attention, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Attention of each row, target and head on its own, from the equations."""
    config, width = mixer.config, mixer.head_dim
    rows = []
    for row in range(len(x)):
        ids = [0] * x.shape[1] if document_ids is None else document_ids[row].tolist()
        starts = [t for t in range(len(ids)) if t == 0 or ids[t] != ids[t - 1]]
        outputs = []
        for target in range(x.shape[1]):
            start = max(s for s in starts if s <= target)
            sources = range(start, target + 1)
            if config.window is not None:
                sources = range(max(start, target + 1 - config.window), target + 1)
            heads = []
            for head in range(mixer.heads):
                group = head * mixer.groups // mixer.heads
                query = mixer.q_proj(x[row, target])[head * width : (head + 1) * width]
                keys = [mixer.k_proj(x[row, s])[group * width : (group + 1) * width] for s in sources]
                values = [mixer.v_proj(x[row, s])[group * width : (group + 1) * width] for s in sources]
                if config.rope:
                    query = turned(query, target - start, config.rope_theta)
                    keys = [turned(key, s - start, config.rope_theta) for key, s in zip(keys, sources, strict=True)]
                scores = torch.stack([query @ key / math.sqrt(width) for key in keys]).exp()
                weights = scores / scores.sum()
                heads.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            outputs.append(mixer.o_proj(torch.cat(heads)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


@pytest.mark.parametrize("dim, options", OPTIONS)
def test_forward_equals_the_equations(dim: int, options: dict[str, Any]) -> None:
    mixer = build(dim, options)
    x = torch.randn(2, 7, dim, dtype=torch.float64)
    expected = by_loops(mixer, x)
    torch.testing.assert_close(mixer(x).y, expected)
    single = build(dim, options, torch.float32)
    torch.testing.assert_close(single(x.float()).y.double(), expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dim, options", OPTIONS)
def test_packed_forward_equals_the_equations(dim: int, options: dict[str, Any]) -> None:
    mixer = build(dim, options)
    x = torch.randn(2, 7, dim, dtype=torch.float64)
    ids = torch.tensor([[3, 3, 3, 3, 3, 0, 0], [1, 2, 2, 2, 1, 1, 1]])
    torch.testing.assert_close(mixer(x, document_ids=ids).y, by_loops(mixer, x, ids))


@pytest.mark.parametrize("dim, options", OPTIONS[:3])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_equal_those_of_the_equations(dim: int, options: dict[str, Any], packed: bool) -> None:
    exact, single = build(dim, options), build(dim, options, torch.float32)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, 2]]) if packed else None
    x = torch.randn(2, 6, dim, dtype=torch.float64)
    weight = torch.randn_like(x)
    expected = gradients(exact, x, weight, by_loops, ids)
    for mixer in (exact, single):
        dtype = next(mixer.parameters()).dtype
        found = gradients(mixer, x.to(dtype), weight.to(dtype), lambda m, x, ids: m(x, document_ids=ids).y, ids)
        tolerance = 4 * FLOAT32_TOLERANCE if dtype == torch.float32 else 1e-12
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("window, time", [(3, 128), (3, 150), (64, 128), (64, 131), (70, 300), (1, 129)])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_a_window_equal_the_written_out_form(window: int, time: int, packed: bool) -> None:
    options = {"heads": 2, "kv_heads": 1, "window": window}
    exact, mixer = build(8, options), build(8, options, torch.float32)
    x, cotangent = torch.randn(2, time, 8, dtype=torch.float64), torch.randn(2, time, 8, dtype=torch.float64)
    ids = (torch.arange(time) // torch.tensor([[50], [3]])) if packed else None

    def forward(mixer: Attention, x: Tensor, ids: Tensor | None) -> Tensor:
        return mixer(x, document_ids=ids).y

    expected_y = forward(exact, x, ids)
    torch.testing.assert_close(forward(mixer, x.float(), ids).double(), expected_y, rtol=0, atol=FLOAT32_TOLERANCE)
    expected = gradients(exact, x, cotangent, forward, ids)
    found = gradients(mixer, x.float(), cotangent.float(), forward, ids)
    size = max(float(gradient.abs().max()) for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=4 * time * torch.finfo(torch.float32).eps * size)


@pytest.mark.parametrize("window, time", [(3, 150), (64, 131), (70, 300)])
def test_blocks_of_a_window_cost_what_its_links_cost(window: int, time: int) -> None:
    mixer = build(8, {"heads": 2, "kv_heads": 1, "window": window}, torch.float32)
    with FlopCounter() as counter, torch.no_grad():
        mixer(torch.randn(2, time, 8))
    assert counter.total == mixer.cost(2, time).product_flops


def gradients(mixer: Attention, x: Tensor, weight: Tensor, function: Any, ids: Tensor | None) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(mixer, leaf, ids)
    return list(torch.autograd.grad((y * weight).sum(), [leaf, *mixer.parameters()]))


def test_rotary_embedding_is_that_of_hugging_face() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    positions = torch.arange(9).expand(2, 9) + torch.tensor([[0], [1000]])
    frequencies = 1 / 500.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)
    expected_q, expected_k = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    torch.testing.assert_close(rotate(q, positions[:, None], 500.0), expected_q)
    torch.testing.assert_close(rotate(k, positions[:, None], 500.0), expected_k)


def test_rotary_angles_keep_their_precision_at_far_positions() -> None:
    x = torch.ones(1, 1, 64)
    far = torch.tensor([[10_000_000]])
    expected = rotate(x.double(), far)
    torch.testing.assert_close(rotate(x, far).double(), expected, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def score(target: int, source: int) -> Tensor:
        return rotate(q[None], torch.tensor([target]))[0] @ rotate(k[None], torch.tensor([source]))[0]

    torch.testing.assert_close(score(9, 4), score(1009, 1004))
    assert abs(float(score(9, 4) - score(9, 5))) > 1e-6


def test_odd_head_width_leaves_the_last_channel() -> None:
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    y = rotate(x, torch.arange(4))
    assert torch.equal(y[..., 4], x[..., 4])
    torch.testing.assert_close(y[..., :4], rotate(x[..., :4], torch.arange(4)))


@pytest.mark.parametrize("dim, options", OPTIONS)
def test_final_state_is_the_keys_and_values_of_the_last_document(dim: int, options: dict[str, Any]) -> None:
    mixer = build(dim, options)
    x = torch.randn(2, 11, dim, dtype=torch.float64)
    ids = torch.tensor([[0] * 4 + [1] * 7, [5] * 9 + [6] * 2])
    state = mixer(x, document_ids=ids).state
    assert state.position.tolist() == [7, 2]
    assert state.document.tolist() == [1, 6]
    for row, start in ((0, 4), (1, 9)):
        alone = x[row, start:]
        window = mixer.config.window or len(alone)
        keys = mixer.k_proj(alone).unflatten(-1, (mixer.groups, -1)).transpose(0, 1)
        if mixer.config.rope:
            keys = rotate(keys, torch.arange(len(alone)), mixer.config.rope_theta)
        values = mixer.v_proj(alone).unflatten(-1, (mixer.groups, -1)).transpose(0, 1)
        for position in range(max(0, len(alone) - window), len(alone)):
            slot = position % window
            torch.testing.assert_close(state.stored[0][row, :, slot], keys[:, position])
            torch.testing.assert_close(state.stored[1][row, :, slot], values[:, position])


def documents(draw: Any, time: int) -> list[int]:
    """Ids of random runs; an id may come back."""
    ids: list[int] = []
    while len(ids) < time:
        ids += [draw(st.integers(0, 2))] * draw(st.integers(1, 6))
    return ids[:time]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), which=st.sampled_from(OPTIONS), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_cut_of_any_packing_equals_one_forward(data: Any, which: Any, dtype: torch.dtype) -> None:
    dim, options = which
    time = 17
    exact, mixer = build(dim, options), build(dim, options, dtype)
    x = torch.randn(2, time, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([documents(data.draw, time) for _ in range(2)])
    expected = exact(x, document_ids=ids).y
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1), max_size=5)))
    capacity = data.draw(st.sampled_from([None, time, time + 3]))
    state = data.draw(st.sampled_from([None, mixer.init_state(2, capacity, dtype=dtype)]))
    outputs = []
    with torch.no_grad():
        for first, last in zip([0, *cuts], [*cuts, time], strict=True):
            part = x[:, first:last].to(dtype)
            continues = state is not None and torch.equal(ids[:, first], state.document) and last == first + 1
            if continues and data.draw(st.booleans()):
                y, state = mixer.step(part[:, 0], state)
                outputs.append(y[:, None])
            else:
                y, state = mixer(part, state, document_ids=ids[:, first:last], capacity=capacity)
                outputs.append(y)
    tolerance = 1e-12 if dtype == torch.float64 else FLOAT32_TOLERANCE
    torch.testing.assert_close(torch.cat(outputs, dim=1).double(), expected, rtol=0, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4), window=st.sampled_from([None, 3, 8]))
def test_rows_at_different_positions_step_as_each_alone(lengths: list[int], window: int | None) -> None:
    mixer = build(8, {"heads": 2, "kv_heads": 1, "window": window})
    x = torch.randn(len(lengths), 15, 8, dtype=torch.float64)
    with torch.no_grad():
        whole = mixer(x).y
        states = [mixer(x[row : row + 1, :length]).state for row, length in enumerate(lengths)]
        state = states[0].cat(*states[1:])
        for step in range(3):
            tokens = torch.stack([x[row, length + step] for row, length in enumerate(lengths)])
            y, state = mixer.step(tokens, state)
            for row, length in enumerate(lengths):
                torch.testing.assert_close(y[row], whole[row, length + step])
        assert state.position.tolist() == [length + 3 for length in lengths]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [(4, 4), (2, 5)])
def test_slots_that_hold_nothing_are_never_read(
    window: int | None, dtype: torch.dtype, lengths: tuple[int, int]
) -> None:
    mixer = build(8, {"heads": 2, "window": window}, dtype)
    x = torch.randn(2, 12, 8, dtype=dtype)
    with torch.no_grad():
        rows = [mixer(x[row : row + 1, :length], capacity=12).state for row, length in enumerate(lengths)]
        state = rows[0].cat(rows[1])
        for tensor in state.stored:
            for row, length in enumerate(lengths):
                tensor[row, :, length:] = torch.nan
        poisoned = state.clone()
        piece = torch.stack([x[row, length : length + 3] for row, length in enumerate(lengths)])
        y, after = mixer(piece, state)
        expected = torch.stack([mixer(x[row : row + 1]).y[0, n : n + 3] for row, n in enumerate(lengths)])
        torch.testing.assert_close(y, expected)
        for step in range(3):
            y, poisoned = mixer.step(piece[:, step], poisoned)
            torch.testing.assert_close(y, expected[:, step])
        y, _ = mixer.step(x[:, 0], after)
        assert torch.isfinite(y).all()


def test_a_window_state_stays_as_large_as_the_window() -> None:
    mixer = build(8, {"heads": 2, "window": 4}, torch.float32)
    state = mixer.init_state(1)
    size = state.nbytes
    with torch.no_grad():
        for _ in range(3):
            state = mixer(torch.randn(1, 5, 8), state).state
            assert state.nbytes == size
    assert mixer.receptive_field == 4
    assert size == mixer.cost(1, 100).state_bytes


def test_capacity_is_taken_once_and_named_when_full() -> None:
    mixer = build(8, {"heads": 2}, torch.float32)
    x = torch.randn(2, 9, 8)
    with torch.no_grad():
        state = mixer.init_state(2, 6)
        places = [tensor.data_ptr() for tensor in state.stored]
        for index in range(6):
            state = mixer.step(x[:, index], state).state
        assert [tensor.data_ptr() for tensor in state.stored] == places
        with pytest.raises(InputError, match=r"capacity is 6 .* larger capacity"):
            mixer.step(x[:, 6], state)
        with pytest.raises(InputError, match="capacity is 6"):
            mixer(x[:, :7], capacity=6)
        with pytest.raises(InputError, match="capacity is 6"):
            mixer(x[:, 6:], state)


def test_capacity_counts_the_last_document_alone() -> None:
    mixer = build(8, {"heads": 2}, torch.float32)
    ids = torch.tensor([[0] * 7 + [1] * 2])
    with torch.no_grad():
        state = mixer(torch.randn(1, 9, 8), document_ids=ids, capacity=3).state
        state = mixer.step(torch.randn(1, 8), state).state
        with pytest.raises(InputError, match="capacity is 3"):
            mixer.step(torch.randn(1, 8), state)


def test_a_row_with_room_steps_after_a_full_row_has_left() -> None:
    mixer = build(8, {"heads": 2}, torch.float32)
    x = torch.randn(2, 6, 8)
    with torch.no_grad():
        full, short = mixer(x[:1, :5], capacity=5).state, mixer(x[1:, :2], capacity=5).state
        state = full.cat(short).select(torch.tensor([1]))
        y = mixer.step(x[1:, 2], state).y
        torch.testing.assert_close(y, mixer(x[1:, :3]).y[:, 2])


def test_a_growing_state_grows_without_limit_and_rarely() -> None:
    mixer = build(4, {"heads": 1}, torch.float32)
    state = mixer.init_state(1)
    sizes = set()
    with torch.no_grad():
        for _ in range(200):
            state = mixer.step(torch.randn(1, 4), state).state
            sizes.add(state.slots)
    assert max(sizes) >= 200
    assert len(sizes) < 10


def test_gradients_flow_through_steps() -> None:
    mixer = build(6, {"heads": 2, "kv_heads": 1})
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    for capacity in (None, 5):
        state = mixer.init_state(1, capacity)
        outputs = []
        for index in range(5):
            y, state = mixer.step(x[:, index], state)
            outputs.append(y)
        weight = torch.randn(1, 5, 6, dtype=torch.float64)
        (found,) = torch.autograd.grad((torch.stack(outputs, dim=1) * weight).sum(), x)
        (expected,) = torch.autograd.grad((mixer(x).y * weight).sum(), x)
        torch.testing.assert_close(found, expected)


def test_states_of_different_lengths_join_inside_other_states() -> None:
    mixer = build(8, {"heads": 2})
    one, other = (mixer(torch.randn(1, length, 8, dtype=torch.float64)).state for length in (3, 6))
    joined = one.cat(other)
    assert joined.slots == 6
    assert joined.position.tolist() == [3, 6]
    assert torch.equal(joined.stored[0][0, :, :3], one.stored[0][0])
    ring = build(8, {"heads": 2, "window": 3})(torch.randn(1, 7, 8, dtype=torch.float64)).state
    with pytest.raises(InputError, match="different sizes"):
        ring.cat(other)


def by_loops_over_memory(mixer: Attention, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    width = mixer.head_dim
    y = torch.zeros(len(x), x.shape[1], mixer.heads * width, dtype=x.dtype)
    for row in range(len(x)):
        kept = memory[row][mask[row]]
        for head in range(mixer.heads):
            group = head * mixer.groups // mixer.heads
            keys = mixer.k_proj(kept)[:, group * width : (group + 1) * width]
            values = mixer.v_proj(kept)[:, group * width : (group + 1) * width]
            queries = mixer.q_proj(x[row])[:, head * width : (head + 1) * width]
            y[row, :, head * width : (head + 1) * width] = (queries @ keys.T / math.sqrt(width)).softmax(-1) @ values
    return mixer.o_proj(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_is_seen_whole_and_kept_in_the_state(dtype: torch.dtype) -> None:
    mixer = build(12, {"heads": 4, "kv_heads": 2}, dtype)
    x, memory = torch.randn(3, 5, 12, dtype=dtype), torch.randn(3, 7, 12, dtype=dtype)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    expected = by_loops_over_memory(mixer, x, memory, mask)
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else 1e-12
    y, state = mixer(x, memory=memory, memory_mask=mask)
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)
    assert state.position.tolist() == [5, 5, 5]
    (part,) = mixer.mixing(x, memory=memory, memory_mask=mask)
    assert part.matrix.shape == (3, 4, 5, 7)
    torch.testing.assert_close(mixer.readout([part.matrix @ part.values], x), expected, rtol=0, atol=tolerance)
    first = mixer(x[:, :2], memory=memory, memory_mask=mask)
    rest = mixer(x[:, 2:4], first.state)
    torch.testing.assert_close(rest.y, expected[:, 2:4], rtol=0, atol=tolerance)
    torch.testing.assert_close(mixer.step(x[:, 4], rest.state).y, expected[:, 4], rtol=0, atol=tolerance)
    stepped = mixer.step(x[:, 0], mixer.memory_state(memory, mask))
    torch.testing.assert_close(stepped.y, expected[:, 0], rtol=0, atol=tolerance)


def test_states_over_memories_of_different_lengths_join() -> None:
    mixer = build(8, {"heads": 2})
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    memories = [torch.randn(1, length, 8, dtype=torch.float64) for length in (4, 6)]
    states = [mixer.memory_state(memory) for memory in memories]
    y = mixer(x, states[0].cat(states[1])).y
    for row, memory in enumerate(memories):
        torch.testing.assert_close(y[row : row + 1], mixer(x[row : row + 1], memory=memory).y)


def test_memory_with_nothing_to_see_gives_no_nan() -> None:
    for dtype in (torch.float32, torch.float64):
        mixer = build(8, {"heads": 2}, dtype)
        memory = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
        mask = torch.tensor([[False] * 3, [True] * 3])
        for time in (1, 4):
            y = mixer(torch.randn(2, time, 8, dtype=dtype), memory=memory, memory_mask=mask).y
            assert not y[0].any()
            (gradient,) = torch.autograd.grad(y.sum(), memory)
            assert torch.isfinite(gradient).all()
            assert not gradient[0].any()


@pytest.mark.parametrize("window", [None, 3])
def test_non_causal_attention_sees_both_sides_within_the_document(window: int | None) -> None:
    mixer = build(8, {"heads": 2, "causal": False, "window": window})
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    ids = torch.tensor([[0] * 4 + [1] * 5])
    y, state = mixer(x, document_ids=ids)
    assert state is None
    torch.testing.assert_close(y[:, :4], mixer(x[:, :4]).y)
    torch.testing.assert_close(y[:, 4:], mixer(x[:, 4:]).y)
    (part,) = mixer.mixing(x)
    assert torch.equal((part.matrix != 0).any(dim=1)[0], mixer.links(9))
    with pytest.raises(InputError, match="not causal"):
        mixer.init_state(1)
    with pytest.raises(InputError, match="non-causal"):
        mixer(x, build(8, {"heads": 2}).init_state(1))


def test_step_cost_is_the_cost_of_the_step() -> None:
    for options in ({"heads": 4, "kv_heads": 2}, {"heads": 2, "window": 3, "bias": True}):
        mixer = build(8, options, torch.float32)
        state = mixer.init_state(2, 7)
        with torch.no_grad():
            for position in range(7):
                cost = mixer.step_cost(2, position)
                with FlopCounter() as counter:
                    state = mixer.step(torch.randn(2, 8), state).state
                assert cost.product_flops == counter.total
                assert cost.state_bytes == mixer.init_state(2, position + 1).nbytes


def test_cost_is_exact() -> None:
    mixer = build(12, {"heads": 4, "kv_heads": 2})
    links, positions = 5 * 6 // 2, 3 * 5
    projections = 2 * positions * (12 * 12 + 2 * 12 * 6 + 12 * 12)
    assert mixer.cost(3, 5).product_flops == projections + 3 * links * 4 * 3 * (2 + 2)
    assert mixer.cost(3, 5).state_bytes == mixer.init_state(3, 5).nbytes == 3 * (2 * 2 * 5 * 3 * 8 + 16)


@pytest.mark.parametrize(
    "dim, options, words",
    [
        (10, {"heads": 3}, "heads is 3, which does not divide dim 10"),
        (12, {"heads": 4, "kv_heads": 3}, "kv_heads is 3, which does not divide heads 4"),
        (12, {"window": 0}, "window is 0"),
        (12, {"rope_theta": -1.0}, "rope_theta is -1.0"),
        (12, {"head": 2}, "did you mean 'heads'"),
    ],
)
def test_bad_options_are_named(dim: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("attention", dim, **options)


def test_bad_calls_are_named() -> None:
    mixer = build(8, {"heads": 2})
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with pytest.raises(InputError, match="leave memory out"):
        mixer(x, mixer.init_state(2), memory=x)
    with pytest.raises(InputError, match="memory_mask has shape"):
        mixer(x, memory=x, memory_mask=torch.ones(2, 4, dtype=torch.bool))
    other = create_mixer("pool", 8).init_state(2)
    with pytest.raises(InputError, match="PoolState"):
        mixer.step(x[:, 0], other)


@pytest.mark.parametrize("dim, heads", [(12, 1), (64, 1), (128, 2), (384, 6), (512, 8), (97, 1), (100, 2), (7, 1)])
def test_usual_heads_are_near_64_wide(dim: int, heads: int) -> None:
    assert usual_heads(dim) == heads
