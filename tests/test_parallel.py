"""Mixers side by side against loops of their own, and against the same mixers alone."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix import create_mixer
from seqmix.conformance import check_mixer
from seqmix.errors import InputError
from seqmix.mixer import Mixer, build_config
from seqmix.mixers.parallel import Parallel, ParallelConfig
from seqmix.models import SeqmixConfig, SeqmixForCausalLM

CONV = {"name": "gated_conv", "kernel": 3}
WINDOW = {"name": "attention", "heads": 2, "window": 4, "rope": False}
PARTS: list[dict[str, Any]] = [
    CONV,
    WINDOW,
    {"name": "attention", "heads": 1},
    {"name": "depthwise_conv", "kernel": 3, "dilation": 2},
    {"name": "mamba2", "state_size": 4, "head_dim": 4},
]


def make(dim: int, **options: Any) -> Mixer:
    torch.manual_seed(0)
    return create_mixer("parallel", dim, **options).double().eval()


def sequence(batch: int, time: int, dim: int) -> Tensor:
    return torch.randn(batch, time, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def conv_by_hand(weights: dict[str, Tensor], x: list[Tensor]) -> list[Tensor]:
    """LFM2's gated convolution of one sequence, position by position."""
    gates = [weights["in_proj.weight"] @ token for token in x]
    dim = len(x[0])
    held = [gate[:dim] * gate[2 * dim :] for gate in gates]
    outputs = []
    for t, gate in enumerate(gates):
        total = sum(weights["weight"][:, 2 - back] * held[t - back] for back in range(3) if t >= back)
        outputs.append(weights["out_proj.weight"] @ (gate[dim : 2 * dim] * total))
    return outputs


def attention_by_hand(weights: dict[str, Tensor], x: list[Tensor]) -> list[Tensor]:
    """Two heads of softmax attention within four positions, weight by weight."""
    q, k, v = ([weights[f"{name}_proj.weight"] @ token for token in x] for name in "qkv")
    width = len(q[0]) // 2
    outputs = []
    for t in range(len(x)):
        heads = []
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            sources = range(max(0, t - 3), t + 1)
            scores = [math.exp(float(q[t][part] @ k[s][part]) / math.sqrt(width)) for s in sources]
            heads.append(
                torch.stack([w * v[s][part] for w, s in zip(scores, sources, strict=True)]).sum(0) / sum(scores)
            )
        outputs.append(weights["o_proj.weight"] @ torch.cat(heads))
    return outputs


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_it_is_what_the_equation_says(combine: str) -> None:
    widths = (5, 6) if combine == "concat" else None
    mixer = make(6, mixers=(CONV, WINDOW), combine=combine, widths=widths)
    x = sequence(1, 9, 6)
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}
    conv, attention = (
        {name.removeprefix(f"mixers.{i}."): w for name, w in weights.items() if name.startswith(f"mixers.{i}.")}
        for i in range(2)
    )
    tokens = list(x[0])
    if widths is None:
        pairs = zip(conv_by_hand(conv, tokens), attention_by_hand(attention, tokens), strict=True)
        expected = [one + other for one, other in pairs]
    else:
        inner = [weights["in_proj.weight"] @ token for token in tokens]
        first = conv_by_hand(conv, [token[:5] for token in inner])
        second = attention_by_hand(attention, [token[5:] for token in inner])
        expected = [weights["out_proj.weight"] @ torch.cat(pair) for pair in zip(first, second, strict=True)]
    torch.testing.assert_close(mixer(x).y[0], torch.stack(expected), rtol=0, atol=1e-10)


@given(
    parts=st.lists(st.sampled_from(PARTS), min_size=2, max_size=3),
    combine=st.sampled_from(["sum", "concat"]),
    cut=st.integers(1, 8),
)
@settings(max_examples=25, deadline=None)
def test_any_parts_stream_and_keep_their_matrices(parts: list[dict[str, Any]], combine: str, cut: int) -> None:
    widths = [4 * (index + 1) for index in range(len(parts))] if combine == "concat" else None
    mixer = make(8, mixers=parts, combine=combine, widths=widths)
    x = sequence(2, 9, 8)
    whole = mixer(x)
    mixings = mixer.mixing(x)
    y = mixer.readout([matrix @ values for matrix, values in mixings if values is not None], x)
    torch.testing.assert_close(y, whole.y, rtol=0, atol=1e-10)
    torch.testing.assert_close(mixer(x[:, :cut]).y, whole.y[:, :cut], rtol=0, atol=1e-10)
    state = mixer(x[:, :cut]).state.select(torch.tensor([1, 0, 1]))
    for index in range(cut, 9):
        mixed = mixer.step(x[[1, 0, 1], index], state)
        torch.testing.assert_close(mixed.y, whole.y[[1, 0, 1], index], rtol=0, atol=1e-10)
        state = mixed.state


def test_what_it_promises_follows_from_its_parts() -> None:
    alone = [create_mixer(entry["name"], 8, **{k: v for k, v in entry.items() if k != "name"}) for entry in PARTS]
    mixer = make(8, mixers=PARTS)
    assert mixer.traits.reach == 4
    assert mixer.traits.state_growth == "linear"
    assert mixer.receptive_field is None
    assert mixer.cost(2, 20).product_flops == sum(part.cost(2, 20).product_flops for part in alone)
    assert mixer.step_cost(2, 20).product_flops == sum(part.step_cost(2, 20).product_flops for part in alone)
    assert mixer.no_decay() >= {"mixers.4.A_log"}
    bounded = make(8, mixers=(CONV, {"name": "depthwise_conv", "kernel": 2, "dilation": 7}))
    assert bounded.lags == [0, 1, 2, 7]
    assert (bounded.receptive_field, bounded.positions_seen) == (8, 4)
    assert (bounded.traits.state_growth, bounded.traits.content_dependent) == ("constant", False)
    around = make(8, mixers=({**CONV, "causal": False}, {**WINDOW, "causal": False}))
    assert around.lags == [-3, -2, -1, 0, 1, 2, 3]
    assert not around.traits.causal


def test_one_part_that_looks_ahead_makes_it_look_ahead() -> None:
    mixer = make(6, mixers=(CONV, {**WINDOW, "causal": False}))
    assert mixer(sequence(1, 5, 6)).state is None
    assert mixer.cost(1, 5).state_bytes == 0
    for call in (
        lambda: mixer.init_state(1),
        lambda: mixer.step(sequence(1, 1, 6)[:, 0], create_mixer("gated_conv", 6).init_state(1)),
        lambda: mixer(sequence(1, 5, 6), create_mixer("gated_conv", 6).init_state(1)),
    ):
        with pytest.raises(InputError):
            call()


def test_parallels_within_a_parallel_pass_the_kit() -> None:
    inner = {"name": "parallel", "mixers": (CONV, WINDOW), "combine": "concat"}
    example = (8, {"mixers": (inner, {"name": "depthwise_conv"})})
    names = ["forward_equals_steps", "matrix_reproduces_forward", "batch_invariance", "state_bytes", "flops"]
    results = check_mixer(Parallel, examples=[example], checks=names)
    assert [result.message for result in results if result.status != "passed"] == []
    assert len(results) == len(names)


def test_a_config_comes_back_from_json_with_its_tuples() -> None:
    config = ParallelConfig(mixers=({"name": "depthwise_conv", "dilation": (1, 2)}, CONV), combine="concat")
    written = json.dumps(dataclasses.asdict(config))
    assert build_config(ParallelConfig, json.loads(written), "parallel") == config


def test_a_model_of_parallel_layers_generates_token_by_token() -> None:
    torch.manual_seed(0)
    entry = {"name": "parallel", "mixers": [CONV, WINDOW], "combine": "concat"}
    config = SeqmixConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, mixers=[entry], initializer_range=0.5)
    model = SeqmixForCausalLM(config).double().eval()
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(2))
    whole, _ = model.prefill(tokens, all_logits=True)
    state = model.init_state(2)
    for index in range(12):
        logits, state = model.step(tokens[:, index], state)
        torch.testing.assert_close(logits, whole[:, index], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("dim", "options", "words"),
    [
        (8, {"mixers": (CONV,)}, "at least two"),
        (8, {"mixers": (CONV, {"kernel": 3})}, "names no mixer"),
        (8, {"mixers": (CONV, {"name": "atention"})}, "attention"),
        (8, {"mixers": (CONV, {"name": "attention", "head": 2})}, "heads"),
        (8, {"combine": "product"}, "choose one of concat, sum"),
        (8, {"widths": (4, 4)}, 'only "concat" has widths'),
        (8, {"combine": "concat", "widths": (4, 4, 4)}, "3 entries for 2 mixers"),
        (8, {"combine": "concat", "widths": (8, 0)}, "at least 1"),
        (1, {"combine": "concat"}, "too small to share out to 2"),
        (8, {"mixers": (CONV, {"name": "lstm"})}, "'lstm' is not linear in a stream of values"),
        (8, {"mixers": (CONV, {"name": "rwkv7", "value_residual": True})}, "waits for what a first layer hands on"),
        (8, {"mixers": (CONV, {"name": "conv", "stride": 2, "causal": False})}, "changes the length"),
    ],
)
def test_impossible_options_are_one_sentence(dim: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        create_mixer("parallel", dim, **options)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_mixer_is_refused() -> None:
    mixer = make(6, mixers=(CONV, WINDOW))
    with pytest.raises(InputError, match="ConvState, which parallel did not make"):
        mixer(sequence(1, 3, 6), create_mixer("gated_conv", 6).init_state(1))
