"""Encodings of positions as curves, and what the division by the square root of the head's width does."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from seqmix import create_model
from seqmix.inspection.positions import LONGEST, Positions, alibi_curves, position_encoding, rotary_curves
from seqmix.inspection.scores import HEAD_DIMS, layer_scores, theory
from seqmix.mixers import create_mixer
from seqmix.mixers.attention import Attention
from seqmix.mixers.rotary import rotate
from seqmix.models import SeqmixForCausalLM

DECIMALS = 0.5000001e-6
"""Curves are rounded to six decimals."""


def tiny(name: str = "transformer", **options: Any) -> SeqmixForCausalLM:
    sizes = {"vocab_size": 17, "context": 48, "hidden_size": 32, "num_hidden_layers": 2}
    return create_model(name, **{**sizes, **options}).eval()


def encoding(model: SeqmixForCausalLM, time: int = 20) -> Positions:
    found = position_encoding(model, torch.randint(17, (1, time)))
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    return found


@pytest.mark.parametrize(("width", "theta"), [(8, 10000.0), (7, 500.0), (2, 10.0)])
def test_pairs_turn_by_the_papers_angles(width: int, theta: float) -> None:
    mean, *pairs = rotary_curves(width, theta, 30)
    count = width // 2
    assert len(pairs) == count
    for pair, curve in enumerate(pairs):
        for distance in (0, 1, 7, 29):
            angle = distance * theta ** (-pair / count)
            assert curve.values[distance] == pytest.approx(math.cos(angle), abs=DECIMALS)
    assert mean.values[13] == pytest.approx(sum(curve.values[13] for curve in pairs) / count, abs=2 * DECIMALS)


def test_the_mean_of_pairs_is_what_attention_sees_of_equal_vectors() -> None:
    """q . k of one vector at two places, over its length squared, wherever the two stand."""
    (mean, *_), vector = rotary_curves(16, 10000.0, 40), torch.ones(16, dtype=torch.float64)
    for place, distance in ((0, 5), (30, 5), (100, 39)):
        query, key = (rotate(vector, torch.tensor(at)) for at in (place + distance, place))
        assert mean.values[distance] == pytest.approx(float(query @ key / 16), abs=DECIMALS)


def test_alibi_is_a_line_a_head() -> None:
    curves = alibi_curves(4, 20)
    for head, curve in enumerate(curves, start=1):
        slope = 2 ** (-8 * head / 4)
        assert curve.values == pytest.approx([-slope * distance for distance in range(20)], abs=DECIMALS)


@pytest.mark.parametrize("width", [32, 33])
def test_a_sinusoid_depends_on_the_distance_as_a_rotation_does(width: int) -> None:
    model = tiny("gated_conv", hidden_size=width, position="sinusoidal")
    found = encoding(model)
    assert found.kind == "sinusoidal"
    # Of an odd width the last channel has no partner; its pair would be the slowest.
    rotations = {curve.name.split(":")[0]: curve for curve in rotary_curves(width + width % 2, 10000.0, 48)}
    for curve in found.curves[1:]:
        expected = rotations.get(curve.name.split(":")[0])
        if expected is not None:
            # The encoding is added in float32, whose sines are rounded twice and normalised.
            assert curve.values == pytest.approx(expected.values, abs=8 * torch.finfo(torch.float32).eps + DECIMALS)
    assert len(found.curves) == 9


def test_learned_positions_are_the_tables_own_cosines() -> None:
    model = tiny(position="learned")
    table = model.model.embed_positions.table
    assert table is not None
    with torch.no_grad():
        # A circle once around in 48 positions: the cosine between two is that of their angle.
        angles = 2 * math.pi * torch.arange(48) / 48
        table.weight.zero_()
        table.weight[:, 0], table.weight[:, 1] = 3 * angles.cos(), 3 * angles.sin()
    found = encoding(model)
    assert found.kind == "learned"
    assert "48 positions" in found.note
    for curve in found.curves:
        expected = [math.cos(2 * math.pi * distance / 48) for distance in range(48)]
        assert curve.values == pytest.approx(expected, abs=8 * torch.finfo(torch.float32).eps + DECIMALS)


@pytest.mark.parametrize(
    ("name", "options", "kind", "words"),
    [
        (
            "transformer",
            {},
            "rope",
            "Queries and keys turn with their position in 2 of 2 layers (attention), in 16 pairs",
        ),
        ("convsamba", {}, "rope", "The embedding turns with its position, in 16 pairs of channels"),
        ("retnet", {}, "rope", "Queries and keys turn with their position in 2 of 2 layers (retention)"),
        ("parallel", {}, "rope", "in 2 of 2 layers (attention)"),
        ("transformer", {"position": "alibi"}, "alibi", "The scores of attention fall with the distance"),
        ("gated_conv", {}, "none", "from its mixers alone (gated_conv)"),
        ("mixer:retnet", {"position": "sinusoidal"}, "rope", "Besides: Sines and cosines"),
    ],
)
def test_every_encoding_is_found(name: str, options: dict[str, Any], kind: str, words: str) -> None:
    found = encoding(tiny(name, **options))
    assert found.kind == kind
    assert words in found.note
    assert bool(found.curves) == (kind != "none")
    assert all(len(curve.values) == len(found.distances) for curve in found.curves)


def test_curves_end_where_a_picture_does() -> None:
    assert encoding(tiny(context=4 * LONGEST)).distances[-1] == LONGEST - 1


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 2},
        {"heads": 2, "rope": False, "alibi": True},
        {"heads": 2, "window": 5},
        {"heads": 4, "kv_heads": 2, "qk_norm": True, "bias": True},
    ],
)
def test_the_scores_are_those_of_queries_and_keys(options: dict[str, Any]) -> None:
    """Read off log M, and formed from the projections as the paper has it."""
    torch.manual_seed(1)
    mixer = create_mixer("attention", 16, **options).double()
    assert isinstance(mixer, Attention)
    time = 12
    x = 3 * torch.randn(1, time, 16, dtype=torch.float64)
    found = layer_scores(mixer, x)
    assert found is not None
    q, k, _ = mixer._project(x, torch.arange(time)[None])
    k = k.repeat_interleave(mixer.heads // k.shape[1], dim=1)
    products = (q @ k.transpose(-1, -2))[0].detach()
    steps = torch.arange(time)
    distance = (steps[:, None] - steps).double()
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64)
    bias = -slopes[:, None, None] * distance if options.get("alibi") else torch.zeros_like(products)
    spreads, spreads_unscaled, entropies, entropies_unscaled = [], [], [], []
    for row in range(1, time):
        first = max(0, row + 1 - options.get("window", time))
        for head in range(mixer.heads):
            content, added = products[head, row, first : row + 1], bias[head, row, first : row + 1]
            for scale, spread, entropy in (
                (math.sqrt(mixer.head_dim), spreads, entropies),
                (1, spreads_unscaled, entropies_unscaled),
            ):
                spread.append(float((content / scale).std(correction=0)))
                weights = (content / scale + added).softmax(dim=0)
                entropy.append(-float((weights * weights.log2()).sum()))
    # Logarithms of weights down to e^-30 give the scores back to about 16 digits less 1.5.
    exact = {"rel": 1e-9, "abs": 1e-12}
    assert found.spread == pytest.approx(sum(spreads) / len(spreads), **exact)
    assert found.spread_unscaled == pytest.approx(sum(spreads_unscaled) / len(spreads), **exact)
    assert found.entropy == pytest.approx(sum(entropies) / len(spreads), **exact)
    assert found.entropy_unscaled == pytest.approx(sum(entropies_unscaled) / len(spreads), **exact)
    links = [min(row + 1, options.get("window", time)) for row in range(1, time)]
    assert found.uniform_entropy == pytest.approx(sum(math.log2(count) for count in links) / len(links))


def test_a_model_without_attention_has_no_scores() -> None:
    assert encoding(tiny("mamba2")).scores is None
    assert encoding(tiny("mixer:attention:window=1")).scores is None


def test_attention_beside_another_mixer_has_scores_too() -> None:
    scores = encoding(tiny("parallel")).scores
    assert scores is not None
    assert [layer.layer for layer in scores.layers] == [0, 1]


def test_only_the_layers_of_attention_are_named() -> None:
    scores = encoding(tiny("convtransformer", num_hidden_layers=4)).scores
    assert scores is not None
    model = tiny("convtransformer", num_hidden_layers=4)
    expected = [layer for layer in range(4) if model.config.mixer_of_layer(layer)["name"] == "attention"]
    assert [layer.layer for layer in scores.layers] == expected


def test_the_theory_agrees_with_random_queries_and_keys() -> None:
    """Drawn in full here: the shortcut through a query's length must give the same entropies."""
    keys, draws = 64, 2000
    found = theory(keys)
    assert found.head_dims == list(HEAD_DIMS)
    for index, width in enumerate(HEAD_DIMS[:6]):
        q = torch.randn(draws, 1, width)
        k = torch.randn(draws, keys, width)
        products = (q * k).sum(dim=-1)
        assert float(products.std()) == pytest.approx(found.spread_unscaled[index], rel=0.05)
        assert found.spread_unscaled[index] / math.sqrt(width) == pytest.approx(found.spread[index])
        for scale, measured in ((math.sqrt(width), found.entropy[index]), (1, found.entropy_unscaled[index])):
            weights = (products / scale).softmax(dim=-1)
            bits = torch.special.entr(weights).sum(dim=-1) / math.log(2)
            # Four standard errors of both means: 256 draws there, 2000 here.
            error = 4 * float(bits.std()) * math.sqrt(1 / 256 + 1 / draws)
            assert measured == pytest.approx(float(bits.mean()), abs=error)
    assert found.entropy_unscaled[-1] < 1 < found.entropy[-1]
