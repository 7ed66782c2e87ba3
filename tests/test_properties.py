"""The computed table of properties: known mixers come out as the books have them, and broken promises would show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix import create_mixer
from seqmix.bench.mixer_times import time_exponent
from seqmix.cli.main import main
from seqmix.mixer import Mixer
from seqmix.mixers import list_mixers
from seqmix.properties import mixer_properties, stack_properties
from seqmix.properties.growth import Polynomial, Variable, exponent, fit, is_linearithmic
from seqmix.properties.order import depth
from seqmix.properties.paths import formula, hops, span_by_layers
from seqmix.properties.position import position

WINDOW = {"heads": 2, "window": 5}


def make(name: str, dim: int = 8, **options: Any) -> Mixer:
    torch.manual_seed(0)
    return create_mixer(name, dim, **options).eval()


@given(
    coefficients=st.dictionaries(
        st.tuples(st.integers(0, 2), st.integers(0, 1)), st.integers(-9, 9).filter(bool), max_size=6
    )
)
@settings(deadline=None)
def test_a_polynomial_is_found_again(coefficients: dict[tuple[int, int], int]) -> None:
    def count(d: int, k: int) -> int:
        return sum(c * d**i * k**j for (i, j), c in coefficients.items())

    found = fit(
        count, [Variable(symbol="d", points=(4, 8, 12), check=20), Variable(symbol="K", points=(3, 5), check=9)]
    )
    assert found is not None
    assert dict(found.terms) == coefficients
    assert found.at((7, 11)) == count(7, 11)


@pytest.mark.parametrize("count", [lambda n: n**3, lambda n: n * n.bit_length(), lambda n: n // 3])
def test_what_is_no_polynomial_of_the_degree_is_none(count: Any) -> None:
    assert fit(count, [Variable(symbol="n", points=(8, 16, 32), check=64)]) is None


def test_polynomials_are_written_as_people_write_them() -> None:
    terms: Mapping[tuple[int, ...], Fraction] = {
        (2, 1): Fraction(2),
        (1, 2): Fraction(8),
        (1, 1): Fraction(-1),
        (1, 0): Fraction(1, 2),
        (0, 0): Fraction(3),
    }
    found = Polynomial(symbols=("n", "d"), terms=terms)
    assert str(found) == "2n²d + 8nd² - nd + n/2 + 3"
    assert str(found.leading()) == "2n²d + 8nd²"
    assert (found.degree("n"), found.degree("d")) == (2, 2)
    assert str(Polynomial(symbols=("n",), terms={})) == "0"
    kernels: Mapping[tuple[int, ...], Fraction] = {(2, 1): Fraction(1), (2, 0): Fraction(3), (1, 0): Fraction(5)}
    assert str(Polynomial(symbols=("d", "K"), terms=kernels).leading()) == "d²K"
    assert str(Polynomial(symbols=("d", "K"), terms=kernels).leading(small=["K"])) == "d²K + 3d²"
    gates: Mapping[tuple[int, ...], Fraction] = {(2, 0): Fraction(4), (1, 1): Fraction(1), (1, 0): Fraction(1)}
    assert str(Polynomial(symbols=("d", "K"), terms=gates).leading(small=["K"])) == "4d² + dK"


def test_exponents() -> None:
    assert exponent(lambda n: 7 * n**2, 64) == pytest.approx(2)
    assert is_linearithmic(lambda n: 5 * n * (n.bit_length() - 1) + 3 * n, 1024)
    assert not is_linearithmic(lambda n: 5 * n, 1024)
    assert not is_linearithmic(lambda n: n * n, 1024)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("attention", {}, "1"),
        ("attention", WINDOW, "1"),
        ("attention", {"causal": False}, "1"),
        ("gated_conv", {}, "1"),
        ("dense", {"max_length": 32}, "1"),
        ("mamba2", {"state_size": 4, "head_dim": 4}, "log n"),
        ("pool", {}, "log n"),
        ("lstm", {}, "n"),
        ("gru", {}, "n"),
        ("retnet", {"heads": 2}, "log n"),
        ("performer", {"heads": 2}, "log n"),
        ("rwkv7", {"head_dim": 4}, "log n"),
        ("parallel", {"mixers": [{"name": "gated_conv"}, {"name": "mamba2", "head_dim": 4}]}, "log n"),
    ],
)
def test_how_many_steps_wait_for_one_another(name: str, options: dict[str, Any], expected: str) -> None:
    assert depth(make(name, **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("attention", {}, "relative"),
        ("attention", {"rope": False}, "none"),
        ("attention", {"rope": False, "causal": False}, "none"),
        ("attention", {"rope": False, "window": 5}, "relative"),
        ("mamba2", {"state_size": 4, "head_dim": 4}, "relative"),
        ("gated_conv", {}, "relative"),
        ("dense", {"max_length": 32}, "absolute"),
        ("pool", {}, "none"),
        ("lstm", {}, "order"),
    ],
)
def test_what_a_mixer_knows_of_positions(name: str, options: dict[str, Any], expected: str) -> None:
    assert position(make(name, **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("attention", {}, {11: 1, 37: 1, 127: 1}),
        ("attention", {"heads": 2, "window": 12}, {11: 1, 37: 4, 127: 12}),
        ("attention", {"heads": 2, "window": 12, "causal": False}, {11: 1, 37: 4, 127: 12}),
        ("depthwise_conv", {"kernel": 5}, {11: 3, 37: 10, 127: 32}),
        ("depthwise_conv", {"kernel": 3, "dilation": 2}, {11: None, 37: None, 127: None}),
        ("depthwise_conv", {"kernel": 1}, {11: None, 37: None, 127: None}),
        ("mamba2", {"state_size": 4, "head_dim": 4}, {11: 1, 37: 1, 127: 1}),
    ],
)
def test_paths_over_layers_of_one_mixer(name: str, options: dict[str, Any], expected: dict[int, int | None]) -> None:
    mixer = make(name, **options)
    assert {distance: hops([mixer], distance, repeat=True) for distance in expected} == expected


@given(
    kernels=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 9])), min_size=1, max_size=4),
    distance=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_paths_through_a_stack_take_each_layer_once(kernels: list[tuple[int, int]], distance: int) -> None:
    layers = [make("depthwise_conv", 2, kernel=kernel, dilation=dilation) for kernel, dilation in kernels]
    best: dict[int, int] = {0: 0}
    for kernel, dilation in kernels:
        best = {
            total: min(
                best.get(total, 99),
                min((best.get(total - tap * dilation, 99) + 1 for tap in range(1, kernel)), default=99),
            )
            for total in range(distance + 1)
        }
    expected = best[distance] if best[distance] < 99 else None
    assert hops(layers, distance) == expected


def test_growing_dilations_have_logarithmic_paths() -> None:
    layers = [make("depthwise_conv", 2, kernel=2, dilation=2**power) for power in range(8)]
    lengths = {distance: hops(layers, distance) for distance in (1, 3, 15, 63, 255)}
    assert lengths == {1: 1, 3: 2, 15: 4, 63: 6, 255: 8}
    assert formula(lengths) == "log n"


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ({11: 1, 37: 1, 127: 1}, "1"),
        ({11: 11, 37: 37, 127: 127}, "n"),
        ({11: 4, 37: 13, 127: 43}, "n/3"),
        ({10: 10, 40: 20, 160: 40}, "n^0.5"),
        ({11: None, 37: None}, "never"),
        ({11: 2, 37: None}, "some never"),
    ],
)
def test_paths_in_words(lengths: dict[int, int | None], words: str) -> None:
    assert formula(lengths) == words


def test_receptive_fields_add_up() -> None:
    assert span_by_layers(make("depthwise_conv", kernel=3, dilation=(1, 4), heads=2)) == {1: 9, 2: 17, 4: 33, 8: 65}
    assert span_by_layers(make("gated_conv", kernel=3, causal=False)) == {1: 3, 2: 5, 4: 9, 8: 17}
    assert set(span_by_layers(make("attention")).values()) == {None}


def test_the_row_of_a_convolution_and_of_attention() -> None:
    conv, attention = mixer_properties("gated_conv", kernel=4), mixer_properties("attention")
    assert str(conv.parameters.polynomial) == "4d² + dK"
    assert str(conv.product_flops.polynomial) == "8nd² + 8nd"
    assert (conv.path, conv.span, conv.depth, conv.is_parallel) == ("n/3", "1 + (K - 1)L", "1", True)
    assert str(conv.state_bytes) == "12d"
    assert str(attention.parameters) == "4d²"
    assert str(attention.product_flops.polynomial) == "2n²d + 8nd² + 2nd"
    assert (attention.path, attention.span, attention.state_growth) == ("1", "all", "linear")
    assert str(attention.state_bytes) == "8nd"
    assert attention.product_flops.in_time == pytest.approx(2, abs=0.02)
    dense = mixer_properties("dense")
    assert str(dense.parameters) == "2d² + N²/2"
    assert dense.position == "absolute"


def test_a_stack_is_as_sequential_as_its_slowest_layer() -> None:
    layers = [make("gated_conv"), make("lstm"), make("attention", window=4)]
    stack = stack_properties(layers, positions=(8, 64))
    assert (stack.layers, stack.depth, stack.receptive_field) == (3, "n", None)
    assert stack.state_bytes[8] == stack.state_bytes[64] == sum(mixer.cost(1, 64).state_bytes for mixer in layers)
    bounded = stack_properties([layers[0], layers[2]])
    assert (bounded.depth, bounded.receptive_field) == ("1", 1 + 2 + 3)
    assert bounded.hops[11] is None


def test_times_are_fitted_beside_the_claimed_flops() -> None:
    result = time_exponent(lambda length: make("gated_conv", 4), (16, 32, 64), rounds=3)
    assert result.claimed == pytest.approx(1)
    assert set(result.seconds) == {16, 32, 64}
    assert json.dumps(result.to_dict())


def test_the_document_holds_what_the_tables_leave_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmix.mixers.list_mixers", lambda: ["attention", "lstm"])
    monkeypatch.setattr("seqmix.models.list_models", lambda: ["transformer"])
    assert main(["list", "--properties", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["mixers"]}
    assert set(rows) == {"attention", "lstm"}
    assert rows["attention"]["product_flops"]["polynomial"] == "2n²d + 8nd² + 2nd"
    assert rows["attention"]["path_length"]["by_distance"] == {"11": 1, "37": 1, "127": 1}
    assert (rows["lstm"]["parallel_over_time"], rows["lstm"]["sequential_steps"]) == (False, "n")
    assert [row["depth"] for row in found["models"]] == ["1"]


def test_a_mixer_that_cannot_be_made_is_named_and_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmix.mixers.list_mixers", lambda: ["lstm", "no_such_mixer"])
    monkeypatch.setattr("seqmix.models.list_models", lambda: ["lstm"])
    assert main(["list", "--properties"]) == 0
    printed = capsys.readouterr()
    assert "left out: no_such_mixer, unknown mixer" in printed.err
    assert "lstm" in printed.out


def test_measured_exponents_stand_beside_the_claimed_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmix.mixers.list_mixers", lambda: ["depthwise_conv"])
    monkeypatch.setattr("seqmix.models.list_models", lambda: ["lstm"])
    monkeypatch.setattr("seqmix.cli.list.LONG_LENGTHS", (32, 64, 128))
    assert main(["list", "--measure"]) == 0
    assert "n^1.00" in capsys.readouterr().out


def test_the_tables_have_a_line_for_every_mixer_and_fit_a_hundred_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["list", "--properties"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for name in list_mixers():
        assert sum(line.split()[:1] == [name] for line in lines) >= 2
