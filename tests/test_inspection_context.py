"""What the context is worth: exact ablations, their intervals, and where the targets stand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix import create_model
from seqmix.data import TokenStore
from seqmix.errors import InputError
from seqmix.evaluation.student import t_quantile
from seqmix.inspection.context import (
    TARGETS,
    context_worth,
    held_out_pieces,
    interval_of,
    losses_from_last,
    plain_losses,
    worth_to,
)
from seqmix.inspection.subject import open_subject
from seqmix.models import SeqmixForCausalLM

VOCABULARY = 13
ROUNDING = 1e-10
"""Bits: of float64 sums of a few thousand terms of size 1, in another order."""


def tiny(name: str, **options: Any) -> SeqmixForCausalLM:
    """Weights large enough that the context matters, in float64."""
    sizes = {"vocab_size": VOCABULARY, "context": 64, "hidden_size": 16, "num_hidden_layers": 2}
    torch.manual_seed(3)
    model = create_model(name, **{**sizes, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def naive_bits(model: SeqmixForCausalLM, ids: torch.Tensor, place: int, distance: int) -> float:
    """-log2 p of one token from its last tokens, through nothing but `forward`."""
    with torch.no_grad():
        logits = model(ids[:, max(0, place - distance) : place]).logits[0, -1]
    return -float(logits.log_softmax(-1)[ids[0, place]]) / math.log(2)


@pytest.mark.parametrize("name", ["transformer", "gated_conv", "mamba2", "lstm", "convsamba"])
def test_the_cut_is_a_document_of_its_own(name: str) -> None:
    model, ids = tiny(name), text(20)
    worth = context_worth(model, ids)
    targets = range(10, 20)
    assert worth.ablation.targets == len(targets)
    assert worth.ablation.distances == [1, 2, 4, 8, 16]
    for distance, bits in zip(worth.ablation.distances, worth.ablation.bits, strict=True):
        expected = [naive_bits(model, ids, place, distance) for place in targets]
        assert bits == pytest.approx(sum(expected) / len(expected), abs=ROUNDING)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
def test_the_whole_context_gives_the_plain_loss(position: str) -> None:
    """Computed as a cut that leaves everything, not taken from the plain loss."""
    model, ids = tiny("transformer", position=position), text(24)
    plain = plain_losses(model, ids)
    for place in (1, 2, 12, 23):
        (whole,) = losses_from_last(model, ids, [place], place)
        assert whole == pytest.approx(plain[place - 1], abs=ROUNDING)
    worth = context_worth(model, ids)
    assert worth.ablation.whole == pytest.approx(plain[11:].mean(), abs=ROUNDING)


def test_beyond_its_receptive_field_a_convolution_misses_nothing() -> None:
    model, ids = tiny("mixer:depthwise_conv:kernel=3:dilation=2"), text(40)
    field = model.receptive_field
    assert field == 9
    plain, places = plain_losses(model, ids), list(range(20, 40))
    whole = plain[[place - 1 for place in places]]
    for distance in range(field, 20):
        assert losses_from_last(model, ids, places, distance) == pytest.approx(whole, abs=ROUNDING)
    assert abs(losses_from_last(model, ids, places, field - 1) - whole).max() > 1e-4
    ablation = context_worth(model, ids).ablation
    for distance, low, high in zip(ablation.distances, ablation.low, ablation.high, strict=True):
        assert (abs(low) < ROUNDING and abs(high) < ROUNDING) == (distance >= field)


def test_attention_without_a_bound_does_miss_what_is_cut() -> None:
    model, ids = tiny("transformer"), text(40)
    ablation = context_worth(model, ids).ablation
    assert all(bits != pytest.approx(ablation.whole, abs=1e-4) for bits in ablation.bits[:-1])


def test_loss_by_position_is_the_plain_loss_in_bins() -> None:
    model = tiny("gated_conv")
    texts = [text(30, seed) for seed in range(3)]
    worth = context_worth(model, texts)
    first = np.mean([plain_losses(model, ids)[0] for ids in texts])
    assert worth.loss_by_position.positions[0] == 0
    assert worth.loss_by_position.bits[0] == pytest.approx(first, abs=ROUNDING)
    assert worth.loss_by_position.positions[-1] <= 28


def test_a_budget_bounds_the_targets_and_spreads_them() -> None:
    model, ids = tiny("gated_conv"), text(64)
    for_one = sum(model.cost(1, distance).product_flops for distance in (1, 2, 4, 8, 16, 32))
    assert context_worth(model, ids, flops=5 * for_one).ablation.targets == 5
    assert context_worth(model, ids, flops=0).ablation.targets == 2
    assert context_worth(model, [text(64, seed) for seed in range(20)]).ablation.targets == TARGETS


def test_the_interval_holds_the_mean_and_is_students() -> None:
    differences = np.array([0.0, 2.0, 1.0, 3.0, 2.0, 4.0])
    low, high = interval_of(differences, 3)
    means = np.array([1.0, 2.0, 3.0])
    half = t_quantile(0.975, 2) * means.std(ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    assert interval_of(differences, 1) == (None, None)


def test_the_interval_covers_the_truth_where_neighbours_are_alike() -> None:
    """Of 400 draws of an autoregressive series 95 % must cover; by chance 2.2 % less at two standard deviations."""
    draws = np.random.default_rng(0)
    covered, plain = 0, 0
    for _ in range(400):
        noise = draws.normal(size=512)
        series = np.array(list(itertools.accumulate(noise, lambda last, new: 0.6 * last + new)))
        low, high = interval_of(series, 16)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
        plain += abs(series.mean()) <= t_quantile(0.975, 511) * series.std(ddof=1) / math.sqrt(512)
    # Blocks of 32 with a correlation of 0.6 leave their means correlated by a few per cent, which costs 2 % of cover.
    assert covered >= 400 * (0.95 - 0.022 - 0.02)
    assert plain < 400 * 0.8


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_texts_give_numbers_that_json_takes(lengths: list[int]) -> None:
    texts = [text(length, seed) for seed, length in enumerate(lengths)]
    model = MODEL
    if max(lengths) < 2:
        with pytest.raises(InputError, match="give a longer text"):
            context_worth(model, texts)
        return
    worth = context_worth(model, texts)
    json.dumps(dataclasses.asdict(worth), allow_nan=False)
    ablation = worth.ablation
    assert ablation.distances[-1] <= max(lengths) - 1 < 2 * ablation.distances[-1]
    assert ablation.targets == sum(length // 2 for length in lengths)
    for bits, low, high in zip(ablation.bits, ablation.low, ablation.high, strict=True):
        if low is not None and high is not None:
            assert low - 1e-9 <= bits - ablation.whole <= high + 1e-9


def test_pieces_are_of_one_document_each() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    store = TokenStore(tokens, np.array([0, 7, 47, 100]), bytes=97, words=20)
    pieces = held_out_pieces(store, 16)
    starts = [int(piece[0, 0]) for piece in pieces]
    assert starts == [7, 23, 39, 47, 63, 79]
    for piece in pieces:
        assert torch.equal(piece[0], torch.arange(int(piece[0, 0]), int(piece[0, 0]) + piece.shape[1]))
        assert 8 <= piece.shape[1] <= 16
    assert len(held_out_pieces(store, 16, count=2)) == 2


def test_short_documents_are_read_all_the_same() -> None:
    store = TokenStore(np.arange(9, dtype=np.uint16), np.array([0, 3, 6, 9]), bytes=6, words=3)
    assert [piece.shape[1] for piece in held_out_pieces(store, 256)] == [3, 3, 3]


def test_a_subject_is_measured_on_its_text_once() -> None:
    """Its second text is the first with a token changed, which says nothing new."""
    subject = open_subject("gated_conv", texts=["a b c d e f g h i j k l m n o p"], params="20k")
    assert len(subject.texts) == 2
    worth = worth_to(subject)
    assert worth.ablation.targets == subject.texts[0].input_ids.shape[1] // 2
    assert worth.source.startswith("Measured on the text of this page alone")


def test_a_subject_with_data_is_measured_on_the_held_out_part(corpus_folder: Any) -> None:
    subject = open_subject("gated_conv", data=str(corpus_folder), params="20k", tokens=64)
    worth = worth_to(subject)
    assert "pieces of up to 64 tokens from the held-out part" in worth.source
    assert worth.ablation.targets > 64


MODEL = tiny("gated_conv")
