"""Figures draw the numbers they are given, always as the same bytes, and leave matplotlib as they found it."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from seqmix import create_model
from seqmix.errors import InputError, SeqmixError
from seqmix.inspection import mixing_matrices
from seqmix.inspection.context import Ablation, ContextWorth, PositionLoss, context_worth
from seqmix.inspection.costs import Costs, cost_curves
from seqmix.inspection.figures import (
    context_figure,
    costs_figure,
    links_figure,
    matrix_figure,
    positions_figure,
    receptive_field_figure,
    rendered,
    rollout_figure,
    save,
    scores_figure,
)
from seqmix.inspection.figures.style import SERIES, count, printable
from seqmix.inspection.graph import strongest_path
from seqmix.inspection.positions import Curve as PositionCurve
from seqmix.inspection.positions import Positions, position_encoding
from seqmix.inspection.receptive_field import Curve, Widths, receptive_fields
from seqmix.inspection.scores import LayerScores, Scores, Theory
from seqmix.models.crossings import LINES, STATE, all_crossings

SIGNED = np.tril(np.random.default_rng(0).normal(size=(9, 9)))
BAND = np.tril(np.triu(np.ones((8, 8)), -2))
FIELD = Curve(curve=[0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0], widths=Widths(1, 4, 5))
WORTH = ContextWorth(
    loss_by_position=PositionLoss(positions=[0, 1, 2.5], bits=[8.0, 7.0, 6.5]),
    ablation=Ablation(
        distances=[1, 2, 4], bits=[7.5, 7.0, 6.0], low=[1.0, 0.5, None], high=[2.0, 1.5, None], whole=6.0, targets=9,
        blocks=3,
    ),
    unit="bits per token",
    source="the text",
)  # fmt: skip
COSTS = Costs(
    lengths=[16, 32, 64],
    forward_flops=[10.0, 20.0, None],
    step_flops=[1.0, 1.0, 1.0],
    state_bytes=[100.0, 200.0, 400.0],
    parameters=5,
    longest=32,
    note="",
)
SCORES = Scores(
    layers=[
        LayerScores(
            layer=0,
            head_dim=16,
            spread=0.5,
            entropy=3.0,
            spread_unscaled=2.0,
            entropy_unscaled=1.0,
            uniform_entropy=4.0,
        )
    ],
    theory=Theory(
        head_dims=[4, 64], spread=[1.0, 1.0], spread_unscaled=[2.0, 8.0], entropy=[5.0, 5.0],
        entropy_unscaled=[4.0, 1.0], keys=64,
    ),
)  # fmt: skip
POSITIONS = Positions(
    kind="rope",
    distances=[0, 1, 2, 3],
    curves=[PositionCurve(name=name, values=[1.0, 0.5, low, 0.0]) for name, low in (("mean", 0.25), ("pair", -1.0))],
    note="",
    scores=SCORES,
)
FIGURES: dict[str, Callable[[], Figure]] = {
    "matrix": lambda: matrix_figure(abs(SIGNED), tokens=list("abc $x^2$")),
    "signed": lambda: matrix_figure({"one": SIGNED, "two": -SIGNED}, gamma=0.5),
    "links": lambda: links_figure([BAND, BAND], target=5, path=[(0, 1, 3, 1.0), (1, 3, 5, 1.0)]),
    "field": lambda: receptive_field_figure({"trained": FIELD, "untrained": FIELD}),
    "context": lambda: context_figure({"one": WORTH, "two": WORTH}),
    "costs": lambda: costs_figure({"one": COSTS}, "forward_flops", crossings=[20]),
    "positions": lambda: positions_figure(POSITIONS),
    "scores": lambda: scores_figure(SCORES),
    "rollout": lambda: rollout_figure(abs(SIGNED[:2]), abs(SIGNED[2:4]), [7, 8], spearman=[0.5, 0.25]),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_always_the_same_bytes(name: str, suffix: str) -> None:
    first = rendered(FIGURES[name](), suffix, dpi=60)
    theirs = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert rendered(FIGURES[name](), suffix, dpi=60) == first
    assert dict(mpl.rcParams) == theirs
    assert b"Date" not in first
    assert b"atplotlib v" not in first


def test_nothing_is_global_and_matplotlib_is_imported_when_needed() -> None:
    program = (
        "import sys, numpy; import seqmix.inspection.figures as figures; assert 'matplotlib' not in sys.modules;"
        "figures.matrix_figure(numpy.eye(3)); assert 'matplotlib' in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SeqmixError, match=r"pip install 'seqmix\[figures\]'"):
        matrix_figure(SIGNED)


def test_files_are_png_or_svg(tmp_path: Path) -> None:
    save(FIGURES["matrix"](), tmp_path / "a.png")
    save(FIGURES["matrix"](), str(tmp_path / "a.SVG"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.SVG").read_bytes()
    with pytest.raises(InputError, match=r"'\.jpg': give a file that ends in \.png or \.svg"):
        save(FIGURES["matrix"](), tmp_path / "a.jpg")
    with pytest.raises(SeqmixError, match="cannot be written"):
        save(FIGURES["matrix"](), tmp_path / "no folder" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.png"]


def test_a_matrix_is_drawn_as_it_is() -> None:
    (image,) = matrix_figure(abs(SIGNED)).axes[0].images
    np.testing.assert_array_equal(image.get_array(), abs(SIGNED))
    assert (image.norm.vmin, image.norm.vmax) == (0, abs(SIGNED).max())
    assert to_hex(image.cmap(image.norm(0.0))) == "#ffffff"


def test_a_signed_scale_is_even_about_a_white_zero_and_shared() -> None:
    images = [axes.images[0] for axes in matrix_figure({"one": SIGNED, "two": SIGNED / 3}, gamma=0.5).axes[:2]]
    assert images[0].norm is images[1].norm
    norm, colors = images[0].norm, images[0].cmap
    assert norm.vmin == -abs(SIGNED).max() == -norm.vmax
    assert to_hex(colors(norm(0.0))) == "#ffffff"
    assert norm(norm.vmax / 4) == pytest.approx(0.75)  # half the way up: the square root of a quarter
    below, above = colors(norm(-norm.vmax)), colors(norm(norm.vmax))
    assert below[0] > below[2]
    assert above[2] > above[0]


def test_tokens_stand_on_both_axes_and_are_no_mathematics() -> None:
    tokens = ["$x^2$", "\n", " the", "漢", "a_very_long_token", "\x00", "e", "f", "g"]
    axes = matrix_figure(SIGNED, tokens=tokens).axes[0]
    expected = ["$x^2$", "⏎", "␣the", "\\u6f22", "a_very_lon…", "\\x00", "e", "f", "g"]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == expected
        assert not any(label.get_parse_math() for label in labels)


def test_many_tokens_give_way_to_numbers() -> None:
    axes = matrix_figure(np.eye(100), tokens=["x"] * 100).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert "x" not in labels
    assert 3 <= len(labels) <= 10


@given(st.text(max_size=30))
def test_every_token_has_a_label_that_the_font_can_draw(token: str) -> None:
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    label = printable(token)
    assert all(ord(letter) in known and letter.isprintable() for letter in label)
    assert bool(label) == bool(token)


@pytest.mark.parametrize(
    ("matrix", "options", "sentence"),
    [
        (np.zeros(3), {}, r"shape \(3,\): give \(time, source\)"),
        (np.array([[np.nan]]), {}, "not finite"),
        (np.eye(3), {"tokens": ["a"]}, "tokens has 1 labels for 3 positions"),
        (np.eye(3), {"gamma": 0}, "gamma is 0"),
        ({}, {}, "matrices is empty"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        matrix_figure(matrix, **options)


def edges_of(figure: Figure, color: str) -> set[tuple[int, int, int]]:
    """(layer, source, target) of the links drawn in a colour."""
    found = set()
    for line in figure.axes[0].lines:
        points = np.asarray(line.get_xydata())
        if to_hex(line.get_color()) == color.lower() and np.isnan(points).any():
            for (source, below), (target, above), _ in points.reshape(-1, 3, 2):
                assert above == below + 1
                found.add((int(below), int(source), int(target)))
    return found


def test_a_graph_has_the_links_and_colours_what_the_target_hears_of() -> None:
    layers = [BAND, np.tril(np.random.default_rng(1).random((8, 8)) > 0.6), BAND * 0.5]
    figure = links_figure(layers, target=6)
    lit, others = edges_of(figure, SERIES[0]), edges_of(figure, "#c8c8c8")
    assert lit | others == {(n, s, t) for n, layer in enumerate(layers) for t, s in np.argwhere(layer)}
    heard = [np.eye(8)[6]]
    for layer in reversed(layers):
        heard.insert(0, ((np.abs(layer) > 0).T + np.eye(8)) @ heard[0])
    expected = {(n, s, t) for n, layer in enumerate(layers) for t, s in np.argwhere(layer) if heard[n + 1][t]}
    assert lit == expected
    assert others == (lit | others) - expected


def test_weak_links_are_left_out_and_strong_ones_are_wider() -> None:
    layer = np.array([[1.0, 0.0, 0.0], [0.3, 0.02, 0.0], [0.0, -0.05, 0.0]])
    heads = np.stack([layer, np.zeros((3, 3))])
    figure = links_figure([heads], threshold=0.1)
    assert edges_of(figure, "#c8c8c8") == {(0, 0, 0), (0, 0, 1), (0, 1, 2)}
    assert {(0, hop.source, hop.target) for s, t in ((0, 1), (1, 2)) for hop in strongest_path([heads], s, t, 0.1)} == {
        (0, 0, 1),
        (0, 1, 2),
    }
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths == sorted(set(widths))


def test_a_path_waits_in_place_where_it_has_no_step() -> None:
    figure = links_figure([BAND] * 4, path=[(0, 1, 2, 1.0), (2, 2, 4, 1.0)])
    (path,) = [line for line in figure.axes[0].lines if line.get_color() == SERIES[1]]
    np.testing.assert_array_equal(path.get_xydata(), [(1, 0), (2, 1), (2, 2), (4, 3), (4, 4)])


@pytest.mark.parametrize(
    ("layers", "options", "sentence"),
    [
        ([], {}, "layers is empty"),
        ([BAND, np.eye(3)], {}, r"shape \(3, 3\): a graph needs 8 x 8"),
        ([BAND], {"target": 8}, "target is 8: choose a position from 0 to 7"),
        ([BAND], {"threshold": 1.0}, "threshold is 1.0"),
        ([BAND], {"path": [(1, 0, 0, 1.0)]}, "in layer 1: the graph has 1 layers"),
        ([BAND], {"path": [(0, 0, 1, 1.0), (0, 1, 2, 1.0)]}, "layer 0 twice"),
        ([BAND], {"path": [(0, 0, 3, 1.0)]}, "from 0 to 3 in layer 0, which has no such link"),
        ([BAND, BAND], {"path": [(0, 0, 1, 1.0), (1, 2, 3, 1.0)]}, "goes on from 2 .* it stands at 1"),
        ([BAND], {"names": ["a", "b"]}, "names has 2 labels for 1 layers"),
        ([np.ones((200, 200))], {}, "40000 edges: raise threshold"),
    ],
)
def test_what_is_no_graph_is_refused(layers: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        links_figure(layers, **options)


def test_a_field_is_marked_where_half_and_more_of_it_lies() -> None:
    axes = receptive_field_figure({"it": FIELD}).axes[0]
    curve, *marks = axes.lines
    np.testing.assert_array_equal(curve.get_xdata(), range(1, 7))
    np.testing.assert_array_equal(curve.get_ydata(), [*FIELD.curve[:-1], np.nan])
    drawn = {(line.get_marker(), *map(float, line.get_xydata()[0])) for line in marks if len(line.get_xydata())}
    assert drawn == {("o", 1, 0.5), ("s", 4, 0.0625), ("^", 5, 0.0625)}
    assert axes.get_xscale() == "log"
    with pytest.raises(InputError, match="'it' has no positive share"):
        receptive_field_figure({"it": Curve(curve=[0.0], widths=Widths(0, 0, 0))})
    with pytest.raises(InputError, match="fields is empty"):
        receptive_field_figure({})


def test_the_worth_of_context_has_its_interval_about_the_whole() -> None:
    left, right = context_figure({"one": WORTH}).axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [(1, 8.0), (2, 7.0), (3.5, 6.5)])
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [(1, 7.5), (2, 7.0), (4, 6.0)])
    assert list(right.lines[1].get_ydata()) == [6.0, 6.0]
    corners = np.concatenate([path.vertices for path in right.collections[0].get_paths()])
    assert set(map(tuple, corners[np.isfinite(corners).all(axis=1)])) >= {(1, 7.0), (1, 8.0), (2, 6.5), (2, 7.5)}
    assert corners[:, 0].max() == 2
    assert left.get_ylabel() == "bits per token"
    with pytest.raises(InputError, match="worths is empty"):
        context_figure({})


def test_costs_end_where_documents_must_and_crossings_are_marked() -> None:
    axes = costs_figure({"one": COSTS}, "forward_flops", crossings=[20]).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(16, 10), (32, 20), (64, np.nan)])
    assert list(axes.lines[1].get_xdata()) == [20, 20]
    assert [text.get_text().strip() for text in axes.texts] == ["20"]
    for quantity, values in (("step_flops", COSTS.step_flops), ("state_bytes", COSTS.state_bytes)):
        drawn = costs_figure({"one": COSTS}, quantity).axes[0].lines[0].get_ydata()  # type: ignore[arg-type]
        np.testing.assert_array_equal(drawn, values)
    with pytest.raises(InputError, match="unknown quantity 'state'"):
        costs_figure({"one": COSTS}, "state")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a crossing is at 0"):
        costs_figure({"one": COSTS}, "step_flops", crossings=[0])
    with pytest.raises(InputError, match="costs is empty"):
        costs_figure({}, "step_flops")


def test_an_encoding_is_drawn_from_distance_one_on() -> None:
    axes = positions_figure(POSITIONS).axes[0]
    pair, mean = axes.lines
    np.testing.assert_array_equal(pair.get_xydata(), [(1, 0.5), (2, -1.0), (3, 0.0)])
    np.testing.assert_array_equal(mean.get_xydata(), [(1, 0.5), (2, 0.25), (3, 0.0)])
    alone = dataclasses.replace(POSITIONS, kind="alibi", curves=POSITIONS.curves[:1])
    axes = positions_figure(alone).axes[0]
    assert len(axes.lines) == 1
    assert axes.get_ylabel() == "added to the score, nats"
    nothing = Positions(kind="none", distances=[], curves=[], note="", scores=None)
    with pytest.raises(InputError, match="no curve to draw for positions of kind 'none'"):
        positions_figure(nothing)


def test_scores_of_layers_stand_among_those_of_random_keys() -> None:
    spread, entropy = scores_figure(SCORES).axes
    expected = (
        (spread, [[(4, 1), (64, 1)], [(4, 2), (64, 8)], [(16, 0.5)], [(16, 2)]]),
        (entropy, [[(4, 5), (64, 5)], [(4, 4), (64, 1)], [(16, 3)], [(16, 1)]]),
    )
    for axes, lines in expected:
        for line, points in zip(axes.lines, lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), points)


def test_rollout_and_gradient_are_shares_on_one_scale() -> None:
    rollout, gradient = np.array([[2.0, 6.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [3.0, 1.0]])
    figure = rollout_figure(rollout, gradient, [0, 1], spearman=[0.5, 1.0])
    one, other = (axes.images[0] for axes in figure.axes[:2])
    np.testing.assert_allclose(one.get_array(), [[0.25, 0.75], [0, 0]])
    np.testing.assert_allclose(other.get_array(), [[0.5, 0.5], [0.75, 0.25]])
    assert one.norm is other.norm
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0 (0.50)", "1 (1.00)"]
    with pytest.raises(InputError, match="2 targets"):
        rollout_figure(rollout, gradient[:1], [0, 1])
    with pytest.raises(InputError, match="spearman has 1 numbers for 2 targets"):
        rollout_figure(rollout, gradient, [0, 1], spearman=[1.0])


def test_series_differ_without_colour() -> None:
    lines = next(axes.lines for axes in receptive_field_figure({str(n): FIELD for n in range(4)}).axes)
    styles = [(line.get_linestyle(), line.get_color()) for line in lines if line.get_linestyle() != "None"]
    for (style, color), (other_style, other_color) in itertools.combinations(styles[:4], 2):
        assert style != other_style
        assert color != other_color


def test_all_that_inspection_finds_in_a_model_can_be_drawn() -> None:
    model = create_model("transformer", vocab_size=40, hidden_size=16, num_hidden_layers=2, context=24).eval()
    input_ids = torch.randint(40, (1, 24), generator=torch.Generator().manual_seed(0))
    layers = list(mixing_matrices(model, input_ids))
    encoding = position_encoding(model, input_ids)
    assert encoding.scores is not None
    models = {"a": model, "b": create_model("mamba2", vocab_size=40, params="20k", context=24).eval()}
    crossings = [found.crossing.at for found in all_crossings(models, {STATE: LINES[STATE]})]
    figures = [
        matrix_figure(layers[0].matrix[0]),
        links_figure([layer.matrix for layer in layers], target=23),
        receptive_field_figure({"a": receptive_fields(model, input_ids, targets=2)}),
        context_figure({"a": context_worth(model, input_ids, flops=1e8)}),
        costs_figure({name: cost_curves(one) for name, one in models.items()}, "state_bytes", crossings=crossings),
        positions_figure(encoding),
        scores_figure(encoding.scores),
    ]
    for figure in figures:
        assert rendered(figure, ".png", dpi=50).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (512, "512"),
        (1024, "1k"),
        (65536, "64k"),
        (2**20, "1M"),
        (1500, "1.5k"),
        (0.001, "0.001"),
        (2e9, "2G"),
    ],
)
def test_numbers_take_few_letters(value: float, text: str) -> None:
    assert count(value) == text
