"""Formula and gradient agree on how far every mixer, head, layer and preset sees; and where the gradient lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.data import byte_tokenizer
from seqmix.errors import InputError
from seqmix.inspection.field_widths import Widths, widths
from seqmix.inspection.gradients import embed, probe_of, sizes_at, streams
from seqmix.inspection.receptive_field import measured_lags, measured_receptive_field, mixer_lags, receptive_fields
from seqmix.inspection.subject import Subject
from seqmix.mixer import Mixer, SharingMixer
from seqmix.mixers import create_mixer, list_mixers, mixer_class
from seqmix.models import create_model, list_models
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

VOCAB = 17
TEXT = 48
"""Positions that are read where there is no bound."""

EXAMPLES = [(name, dim, options) for name in list_mixers() for dim, options in mixer_class(name).examples()]
LABELS = [f"{name}-{number}" for number, (name, _, _) in enumerate(EXAMPLES)]


def build(name: str, dim: int, options: Mapping[str, Any], **config: Any) -> Mixer:
    torch.manual_seed(0)
    return create_mixer(name, dim, **options).double()


def stack(*entries: Mapping[str, Any], dim: int = 16, layers: int = 2, **config: Any) -> SeqmixForCausalLM:
    """A small model; the first mixer is the first layer's and the others repeat."""
    torch.manual_seed(0)
    chosen = SeqmixConfig(
        vocab_size=VOCAB,
        hidden_size=dim,
        num_hidden_layers=layers,
        mixers=[dict(entry) for entry in entries],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **({"max_position_embeddings": 128} | config),
    )
    return SeqmixForCausalLM(chosen).eval().requires_grad_(False)


def stack_of(name: str, dim: int, options: Mapping[str, Any], layers: int = 2) -> SeqmixForCausalLM:
    """`layers` of one mixer; one that waits for a first layer gets that first."""
    entry = {"name": name, **options}
    mixer = create_mixer(name, dim, **options)
    if isinstance(mixer, SharingMixer) and mixer.needs_shared:
        return stack(entry | {"value_residual": False}, entry, dim=dim, layers=2)
    return stack(entry, dim=dim, layers=layers)


def text(time: int) -> torch.Tensor:
    return torch.randint(VOCAB, (1, time), generator=torch.Generator().manual_seed(5))


def check_formula(model: SeqmixForCausalLM) -> None:
    """What the model says of itself is what its gradient finds, both the span and the positions in it."""
    span = model.receptive_field
    lags = measured_lags(model, TEXT if span is None else span + 3)
    if span is None:
        assert max(lags) + 1 == TEXT
        return
    assert max(lags) + 1 == span
    assert len(lags) == model.positions_seen


def check_layers(model: SeqmixForCausalLM) -> None:
    """What every mixer, every head and the stack up to them say is what is measured, where the text is long enough."""
    spans = [span for one in model.mixers for span in (one.receptive_field, *(one.head_spans or ())) if span]
    time = max(model.receptive_field or TEXT - 3, *spans, 1) + 3
    found = receptive_fields(model, text(time), targets=2, directions=1)
    assert found.formula == model.receptive_field
    assert found.measured == min(model.receptive_field or time, time)
    assert found.fills_text == (found.measured == time)
    for layer, one in zip(found.layers, model.mixers, strict=True):
        assert layer.formula == one.receptive_field
        for formula, measured in [
            (layer.formula, layer.measured),
            (layer.stack_formula, layer.stack_measured),
            *((head.formula, head.measured) for head in layer.heads),
        ]:
            if formula is not None or one.sees_everything:
                assert measured == (formula or time)
            else:
                # Where links are drawn, the last position need not have the longest one.
                assert time // 2 < measured <= time
        for head in layer.heads:
            assert 0 < head.widths.half <= head.widths.ninety <= head.widths.ninety_nine <= head.measured


@pytest.mark.parametrize(("name", "dim", "options"), EXAMPLES, ids=LABELS)
def test_formula_and_gradient_agree_for_every_mixer_in_a_model(name: str, dim: int, options: Mapping[str, Any]) -> None:
    if create_mixer(name, dim, **options).traits.causal:
        check_formula(stack_of(name, dim, options))


@pytest.mark.parametrize("name", list_mixers())
def test_formula_and_gradient_agree_for_the_defaults_of_every_mixer(name: str) -> None:
    if create_mixer(name, 16).traits.causal:
        check_formula(stack_of(name, 16, {}, layers=1))


def test_the_causal_mixers_are_nearly_all() -> None:
    causal = {name for name, dim, options in EXAMPLES if create_mixer(name, dim, **options).traits.causal}
    assert set(list_mixers()) - causal <= {"linformer"}


SMALL = {"gru": "8k", "lstm": "5668", "hyena": "12k", "mamba2": "8k"}


@pytest.mark.parametrize("name", list_models())
def test_formula_and_gradient_agree_for_every_preset(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, vocab_size=VOCAB, params=SMALL.get(name, "6k"), context=32)
    assert isinstance(model, SeqmixForCausalLM)
    check_formula(model.eval())
    check_layers(model)


@pytest.mark.parametrize(("name", "dim", "options"), EXAMPLES, ids=LABELS)
def test_formula_and_gradient_agree_on_both_sides_of_a_mixer_alone(
    name: str, dim: int, options: Mapping[str, Any]
) -> None:
    mixer = build(name, dim, options)
    traits, span = mixer.traits, mixer.receptive_field
    if isinstance(mixer, SharingMixer) and mixer.needs_shared:
        return
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_((parameter == 0) * 0.1 * torch.randn_like(parameter))
    time = TEXT if span is None else 2 * span + 3
    x = torch.randn(4, time, dim, dtype=torch.float64)
    target = time - 1 if traits.causal else time // 2
    lags = mixer_lags(mixer, x, mixer(x).y.shape[1] // 2 if traits.resamples else target)
    if span is None:
        if mixer.sees_everything:
            assert lags == list(range(target - time + 1, target + 1))
        assert max(lags) - min(lags) + 1 > time // 2
        return
    assert max(lags) - min(lags) + 1 == span
    assert len(lags) == mixer.positions_seen
    if not traits.resamples:
        assert mixer.lags is not None
        assert set(lags) == {*mixer.lags} | ({0} & {*lags})
    if not traits.causal and not traits.resamples and span > 1:
        assert min(lags) < 0 < max(lags)


@pytest.mark.parametrize(
    ("entries", "span"),
    [
        # Two layers of kernel 3 see 5; dilations 1, 2, 4 with kernel 2 see 8; a window of 4 twice sees 7.
        ([{"name": "depthwise_conv", "kernel": 3}], 5),
        ([{"name": "conv", "kernel": 2, "dilation": d} for d in (1, 2, 4)], 8),
        ([{"name": "attention", "window": 4, "heads": 2}], 7),
    ],
)
def test_known_receptive_fields(entries: list[dict[str, Any]], span: int) -> None:
    model = stack(*entries, layers=max(2, len(entries)))
    assert model.receptive_field == span
    assert measured_receptive_field(model) == span


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_positions_of_a_block_see_different_spans(layers: int) -> None:
    model = stack({"name": "attention", "heads": 2, "pattern": "window(2, block=4)"}, layers=layers)
    # The last position of a block sees all of it, and each layer adds the block before.
    assert model.receptive_field == 4 * layers + 4
    assert model.positions_seen == 4 * layers + 4
    measured = [measured_receptive_field(model, 40 + place, draws=1) for place in (1, 2, 3, 4)]
    assert measured == [4 * layers + place for place in (1, 2, 3, 4)]


def test_the_measurement_does_not_ask_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack({"name": "depthwise_conv", "kernel": 3})
    monkeypatch.setattr(type(model.mixers[0]), "receptive_field", property(lambda mixer: 9))
    assert model.receptive_field == 17
    assert measured_receptive_field(model) == 5


def test_a_mixer_behind_an_output_of_zeros_counts_unless_asked_otherwise() -> None:
    model = stack({"name": "depthwise_conv", "kernel": 3})
    with torch.no_grad():
        for mixer in model.mixers:
            mixer.weight[:, 0] = 0
    assert measured_receptive_field(model) == 5
    assert measured_receptive_field(model, as_it_is=True) == 3
    assert all(bool((mixer.weight[:, 0] == 0).all()) for mixer in model.mixers)


@pytest.mark.parametrize(("name", "dim", "options"), EXAMPLES, ids=LABELS)
def test_layers_and_heads_agree_with_their_formulas(name: str, dim: int, options: Mapping[str, Any]) -> None:
    mixer = create_mixer(name, dim, **options)
    if not mixer.traits.causal:
        return
    check_layers(stack_of(name, dim, options))


def test_heads_of_several_dilations_have_their_own_spans() -> None:
    model = stack({"name": "gated_conv", "kernel": 3, "heads": 2, "dilation": [1, 4]}, dim=4, layers=1)
    (layer,) = receptive_fields(model, text(12)).layers
    assert [head.formula for head in layer.heads] == [3, 3, 9, 9]
    assert [head.measured for head in layer.heads] == [3, 3, 9, 9]
    weights = model.mixers[0].weight.abs().tolist()
    for head, taps in zip(layer.heads, weights, strict=True):
        step = 1 if head.formula == 3 else 4
        shares = [0.0] * 12
        for tap, weight in enumerate(taps):
            shares[(2 - tap) * step] = weight / sum(taps)
        assert head.widths == widths(torch.tensor(shares))


def test_a_feed_forward_that_mixes_is_a_layer_of_the_stack() -> None:
    model = stack(
        {"name": "depthwise_conv", "kernel": 3},
        feed_forward=8,
        feed_forward_mixers=[{"name": "rwkv7_channel_mix"}],
    )
    found = receptive_fields(model, text(20))
    assert [layer.slot for layer in found.layers] == ["mixer", "feed_forward"] * 2
    assert [layer.stack_formula for layer in found.layers] == [3, 4, 6, 7]
    assert [layer.stack_measured for layer in found.layers] == [3, 4, 6, 7]
    assert [layer.measured for layer in found.layers] == [3, 2, 3, 2]


@pytest.mark.parametrize("position", ["post", "pre"])
def test_the_last_stream_is_what_the_head_reads_but_for_the_last_norm(position: str) -> None:
    model = stack({"name": "gated_conv"}, feed_forward=8, norm_position=position)
    leaf = embed(model, text(7))
    expected = model.model(inputs_embeds=leaf).last_hidden_state
    torch.testing.assert_close(model.model.norm(streams(model, leaf)[-1]), expected)


def exact_sizes(model: SeqmixForCausalLM, ids: torch.Tensor, target: int) -> torch.Tensor:
    """(T,): the Frobenius norm of d output[target] / d embedding[s], a backward pass for each channel."""
    leaf = embed(model, ids)
    output = streams(model, leaf)[-1]
    total = torch.zeros(ids.shape[1], dtype=torch.float64)
    for channel in range(output.shape[2]):
        (gradient,) = torch.autograd.grad(output[0, target, channel], leaf, retain_graph=True)
        total += gradient[0].square().sum(dim=1)
    return total.sqrt()


@pytest.mark.parametrize("entry", [{"name": "attention", "heads": 2}, {"name": "gru"}, {"name": "gated_conv"}])
def test_random_directions_estimate_the_norm_of_the_jacobian(entry: dict[str, Any]) -> None:
    model, ids, directions = probe_of(stack(entry, dim=6, layers=2)), text(8), 200
    leaf = embed(model, ids)
    generator = torch.Generator().manual_seed(0)
    found = sizes_at(streams(model, leaf)[-1], leaf, [5, 7], directions, generator)
    for row, target in zip(found, (5, 7), strict=True):
        expected = exact_sizes(model, ids, target)
        assert torch.equal(row > 0, expected > 0)
        # |J^T q|^2 of one normal direction has a variance of 2 tr (J J^T)^2 <= 2 |J|^4; five standard errors of a mean.
        allowed = 5 * (2 / directions) ** 0.5 * expected.square()
        assert bool(((row.square() - expected.square()).abs() <= allowed).all())


def test_the_curve_is_the_mean_share_of_the_gradient_by_distance() -> None:
    model, ids = stack({"name": "depthwise_conv", "kernel": 3}, dim=6, layers=1), text(9)
    found = receptive_fields(model, ids, targets=2, directions=300)
    assert found.targets == 2
    expected = torch.zeros(9, dtype=torch.float64)
    for target in (7, 8):
        sizes = exact_sizes(model, ids, target)[: target + 1].flip(0).double()
        expected[: target + 1] += sizes / sizes.sum() / 2
    assert sum(found.curve) == pytest.approx(1)
    # Half the error of a square, five standard errors of a mean; shares of shares add a factor of two.
    assert found.curve == pytest.approx(expected.tolist(), rel=5 * (2 / 300) ** 0.5)
    assert found.widths == found.layers[-1].widths == widths(torch.tensor(found.curve))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_widths_hold_their_share_and_no_narrower_ones_do(counts: list[int]) -> None:
    total = sum(counts)
    found = widths(torch.tensor(counts, dtype=torch.float64) / max(1, total))
    if total == 0:
        assert found == Widths(0, 0, 0)
        return
    for percent, width in ((50, found.half), (90, found.ninety), (99, found.ninety_nine)):
        assert 100 * sum(counts[:width]) >= percent * total
        assert 100 * sum(counts[: width - 1]) < percent * total


def subject_of(model: SeqmixForCausalLM, *, is_trained: bool) -> Subject:
    return Subject("a model", model, is_trained, byte_tokenizer(), [])


def test_a_trained_model_stands_beside_its_drawn_weights() -> None:
    model = stack({"name": "depthwise_conv", "kernel": 3}, layers=1)
    with torch.no_grad():
        model.mixers[0].weight[:, :2] = 0
    before = torch.get_rng_state()
    trained = receptive_fields(subject_of(model, is_trained=True), text(12))
    assert torch.equal(torch.get_rng_state(), before)
    assert trained.widths == Widths(1, 1, 1)
    assert (trained.formula, trained.measured) == (3, 1)
    assert trained.untrained is not None
    assert trained.untrained.widths.ninety_nine > 1
    assert sum(trained.untrained.curve) == pytest.approx(1)
    drawn = receptive_fields(subject_of(model, is_trained=False), text(12))
    assert drawn.untrained is None
    assert drawn.measured == 3


def test_the_result_is_json_with_the_promised_fields() -> None:
    model = stack({"name": "lstm"}, {"name": "attention", "window": 4, "heads": 2})
    found = dataclasses.asdict(receptive_fields(model, text(16), targets=3))
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("formula", "positions_seen", "measured", "fills_text", "curve", "targets", "directions", "widths"),
        *("steps", "layers", "untrained"),
    ]
    assert list(found["layers"][0]) == [
        *("layer", "slot", "name", "formula", "measured", "stack_formula", "stack_measured", "curve", "widths"),
        "heads",
    ]
    assert [len(layer["heads"]) for layer in found["layers"]] == [1, 2]
    assert found["layers"][0]["heads"][0]["measured"] == 16
    assert found["layers"][1]["heads"][0].keys() == {"formula", "measured", "widths"}
    assert found["steps"] == {"distances": [2**power for power in range(14)], "mixers": [1] * 14}
    assert found["fills_text"]


def test_steps_end_with_the_positions_that_the_model_can_tell_apart() -> None:
    model = stack({"name": "depthwise_conv", "kernel": 5}, embedding_position="learned", max_position_embeddings=20)
    assert receptive_fields(model, text(20)).steps.distances == [1, 2, 4, 8, 16]
    assert receptive_fields(model, text(20)).steps.mixers == [1, 1, 1, 2, None]
    assert measured_receptive_field(model) == 9


@pytest.mark.parametrize("time", [1, 2, 3])
def test_short_texts(time: int) -> None:
    found = receptive_fields(stack({"name": "attention", "heads": 2}), text(time))
    assert found.measured == time
    assert len(found.curve) == time
    assert sum(found.curve) == pytest.approx(1)


def test_bad_input_is_refused_in_a_sentence() -> None:
    model = stack({"name": "attention", "heads": 2})
    with pytest.raises(InputError, match=r"input_ids has shape \(2, 5\): give the tokens of one text"):
        receptive_fields(model, torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="targets is 0"):
        receptive_fields(model, text(5), targets=0)
    with pytest.raises(InputError, match="time is 0"):
        measured_receptive_field(model, 0)
    wide = stack({"name": "depthwise_conv", "kernel": 2, "dilation": 40_000}, layers=1)
    with pytest.raises(InputError, match="the receptive field is 40001 tokens, too long to measure"):
        measured_receptive_field(wide)
    assert measured_receptive_field(wide, 50) == 1
