"""The playground's formulas in the browser against the mixers: links, receptive fields, paths and costs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from browser import Opened, needs_browser
from page_modules import write_page

import seqmix
from seqmix.mixers.links import parse_pattern
from seqmix.models import reach

pytestmark = needs_browser

WIDTH = 24
LENGTHS = [1, 2, 7, 64, 100, 300]


def attention(
    window: int | None = None,
    *,
    dilation: int = 1,
    block: int = 1,
    global_: int = 0,
    random: dict[str, int] | None = None,
    causal: bool = True,
    **options: Any,
) -> dict[str, Any]:
    pattern = {"window": {"size": window, "dilation": dilation, "block": block}, "global": global_, "random": random}
    return {"name": "attention", "heads": 4, "causal": causal, "pattern": pattern if window else None, **options}


RANDOM = {"count": 2, "seed": 0, "block": 1}
BLOCKS = {"count": 3, "seed": -7, "block": 4}

LAYERS = [
    {"name": "depthwise_conv", "kernel": 3, "dilation": [1], "causal": True},
    {"name": "depthwise_conv", "kernel": 4, "dilation": [3], "causal": False},
    {"name": "depthwise_conv", "kernel": 5, "dilation": [1, 2, 4], "heads": 5, "causal": True},
    {"name": "gated_conv", "kernel": 2, "dilation": [8, 2], "heads": 1, "causal": True},
    {"name": "gated_conv", "kernel": 6, "dilation": [1, 5], "heads": 2, "causal": False},
    {"name": "conv", "kernel": 3, "dilation": [2], "causal": True},
    {"name": "conv", "kernel": 4, "dilation": [1], "causal": False},
    {"name": "bytenet", "kernel": 3, "dilation": [4], "causal": True},
    {"name": "bytenet", "kernel": 5, "dilation": [2], "causal": False},
    {"name": "convsamba", "kernel": 4, "dilation": [1, 2, 4], "causal": True},
    attention(),
    attention(causal=False),
    attention(5),
    attention(5, causal=False, kv_heads=2),
    attention(3, dilation=4, kv_heads=1),
    attention(2, block=8),
    attention(2, block=8, causal=False),
    attention(4, global_=3),
    attention(3, dilation=2, global_=3, random=RANDOM),
    attention(2, block=4, global_=8, random=BLOCKS),
    attention(2, block=4, global_=8, random=BLOCKS, causal=False),
    attention(9, dilation=3, global_=2, random=BLOCKS, causal=False),
    attention(1, random=RANDOM),
    attention(3, block=8, random=BLOCKS),
    {"name": "global_conv", "length": 50},
    {"name": "gated_global_conv", "length": 300},
    {"name": "lstm"},
    {"name": "mamba2", "state_size": 8},
]


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = Opened(browser, write_page(tmp_path_factory.mktemp("modules") / "modules.html"))
    yield opened.page
    assert opened.complaints == []
    opened.page.close()


def call(page: Any, module: str, expression: str, *arguments: Any) -> Any:
    """The value of a JavaScript expression over a module's exports `m` and `arguments` `a`."""
    return page.evaluate(
        f"async (a) => {{ const m = await import('page/{module}'); return {expression}; }}", list(arguments)
    )


def mixer_of(page: Any, layer: dict[str, Any]) -> seqmix.Mixer:
    options = call(page, "schemes", "m.libraryOptions(a[0])", layer)
    name = options.pop("name")
    if isinstance(options.get("dilation"), list):
        options["dilation"] = tuple(options["dilation"])
    return seqmix.create_mixer(name, WIDTH, **options)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_is_the_librarys(page: Any, layer: dict[str, Any]) -> None:
    mixer = mixer_of(page, layer)
    length = 40
    drawn = call(page, "schemes", "Array.from(m.linkMatrix(a[0], a[1]).cells)", layer, length)
    assert torch.equal(torch.tensor(drawn, dtype=torch.bool).view(length, length), mixer.links(length))
    assert call(page, "schemes", "m.receptiveField(a[0])", layer) == mixer.receptive_field
    assert call(page, "schemes", "m.positionsSeen(a[0])", layer) == mixer.positions_seen
    assert call(page, "schemes", "m.seesEverything(a[0])", layer) == mixer.sees_everything


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_costs_are_the_librarys(page: Any, layer: dict[str, Any]) -> None:
    mixer = mixer_of(page, layer)
    prices = call(page, "prices", "m.layerPrices(a[0], a[1], a[2])", layer, WIDTH, LENGTHS)
    for length, price in zip(LENGTHS, prices, strict=True):
        cost = mixer.cost(1, length)
        expected = (cost.parameters, cost.product_flops, cost.other_flops, cost.state_bytes)
        assert (price["parameters"], price["product"], price["other"], price["state"]) == expected, length
    if not mixer.traits.causal:
        return
    for position in (0, 5, 63, 200):
        price = call(page, "prices", "m.stepPrice(a[0], a[1], a[2])", layer, WIDTH, position)
        cost = mixer.step_cost(1, position)
        expected = (cost.parameters, cost.product_flops, cost.other_flops, cost.state_bytes)
        assert (price["parameters"], price["product"], price["other"], price["state"]) == expected, position


CONVOLUTION, CENTRED, BY_HEADS, GATED, SAMBA, WINDOW = LAYERS[0], LAYERS[1], LAYERS[2], LAYERS[4], LAYERS[9], LAYERS[12]
STACKS = [
    [CONVOLUTION, CONVOLUTION],
    [{"name": "bytenet", "kernel": 3, "dilation": [2**i], "causal": True} for i in range(5)],
    [CENTRED, GATED],
    [BY_HEADS, SAMBA, WINDOW],
    [WINDOW] * 4,
    [attention(5, causal=False)] * 2,
    [attention(3, dilation=4), CONVOLUTION],
    [attention(2, block=8), CONVOLUTION],
    [{"name": "global_conv", "length": 50}, WINDOW],
    [attention(4, global_=3)] * 2,
    [attention(3, dilation=2, global_=3, random=RANDOM)] * 3,
    [attention(2, block=4, global_=8, random=BLOCKS)] * 2,
    [attention(2, random=RANDOM)] * 5,
    [CONVOLUTION, attention()],
    [{"name": "lstm"}, CONVOLUTION],
    [{"name": "depthwise_conv", "kernel": 2, "dilation": [2**i], "causal": True} for i in range(10)],
]


def count_of_lags(mixers: list[seqmix.Mixer]) -> int | None:
    """How many sums of one lag a layer, or none, there are."""
    if reach.receptive_field(mixers) is None:
        return None
    reached = {0}
    for mixer in mixers:
        reached = {first + lag for first in reached for lag in (0, *(mixer.lags or ()))}
    return len(reached)


@pytest.mark.parametrize("layers", STACKS, ids=lambda layers: "+".join(layer["name"] for layer in layers))
def test_a_stack_is_the_librarys(page: Any, layers: list[dict[str, Any]]) -> None:
    mixers = [mixer_of(page, layer) for layer in layers]
    assert call(page, "reach", "m.stackField(a[0])", layers) == reach.receptive_field(mixers)
    seen = call(page, "reach", "m.stackSeen({layers: a[0], residual: true})", layers)
    assert seen == count_of_lags(mixers)
    if not all(mixer.traits.causal for mixer in mixers):
        return
    assert seen == reach.positions_seen(mixers)
    for distance in (0, 1, 11, 37):
        steps = call(page, "reach", "m.pathLength(a[0], a[1])", layers, distance)
        assert steps == reach.path_length(mixers, distance), distance


@pytest.mark.parametrize("layers", STACKS, ids=lambda layers: "+".join(layer["name"] for layer in layers))
def test_the_cone_is_the_product_of_links(page: Any, layers: list[dict[str, Any]]) -> None:
    length, target = 48, 30
    reached = torch.zeros(length)
    reached[target] = 1
    expected = [reached.tolist()]
    for layer in reversed(layers):
        reached = ((mixer_of(page, layer).links(length).float() + torch.eye(length)).T @ reached > 0).float()
        expected.insert(0, reached.tolist())
    drawn = call(
        page, "reach", "m.cone(m.stackLinks(a[0], a[1]), a[2], true).map((l) => Array.from(l))", layers, length, target
    )
    assert drawn == expected


def test_strides_multiply_what_stands_above(page: Any) -> None:
    layers = [
        {"name": "conv", "kernel": 3, "dilation": [1], "causal": False, "stride": 2},
        {"name": "conv", "kernel": 4, "dilation": [2], "causal": False, "stride": 3},
        {"name": "conv", "kernel": 2, "dilation": [1], "causal": False, "stride": 1},
    ]
    length = 120
    reached = torch.eye(length)
    for layer in layers:
        reached = mixer_of(page, layer).links(reached.shape[0]).float() @ reached
    drawn = call(page, "reach", "m.stackLinks(a[0], a[1]).map((l) => [l.targets, l.sources])", layers, length)
    assert drawn == [[60, 120], [20, 60], [20, 20]]
    middle = reached[10].nonzero()[:, 0]
    field = call(page, "reach", "m.stackField(a[0])", layers)
    assert field == int(middle.max() - middle.min()) + 1 == 1 + 2 + 3 * 2 * 2 + 1 * 6
    assert call(page, "reach", "m.stackSeen({layers: a[0], residual: false})", layers) == len(middle)
    marks = call(page, "reach", "Array.from(m.cone(m.stackLinks(a[0], a[1]), 10, false)[0])", layers, length)
    assert marks == (reached[10] > 0).int().tolist()
    mixer = mixer_of(page, layers[1])
    (price,) = call(page, "prices", "m.layerPrices(a[0], a[1], [100])", layers[1], WIDTH)
    assert (price["product"], price["other"]) == (mixer.cost(1, 100).product_flops, mixer.cost(1, 100).other_flops)
    (price,) = call(page, "prices", "m.stackPrices(a[0], a[1], [120])", layers, WIDTH)
    lengths = (120, 60, 20)
    costs = [mixer_of(page, layer).cost(1, left) for layer, left in zip(layers, lengths, strict=True)]
    assert price["product"] == sum(cost.product_flops for cost in costs)
    assert price["parameters"] == sum(cost.parameters for cost in costs)


def test_random_links_are_the_same_draws(page: Any) -> None:
    for seed in (0, 1, -1, 2**62, -(2**63)):
        part = parse_pattern(f"random(5, seed={seed})").parts[0]
        expected = torch.stack(part.draws(torch.arange(3000)), dim=1).flatten().tolist()  # type: ignore[attr-defined]
        drawn = page.evaluate(
            """async (seed) => Array.from((await import("page/links"))
                .draws({count: 5, seed: BigInt(seed), block: 1}, 3000))""",
            str(seed),
        )
        assert drawn == expected


def test_convsambas_dilations(page: Any) -> None:
    for kernel, context in ((32, 8192), (5, 20), (4, 3), (3, 9), (7, 100000)):
        mixer = seqmix.create_mixer("convsamba", 64, kernel=kernel, context=context)
        assert call(page, "schemes", "m.doublings(a[0], a[1])", kernel, context) == list(mixer.config.dilations)


def test_long_sequences_of_attention_have_exact_links(page: Any) -> None:
    layers = [
        attention(9, dilation=2, global_=3, random=BLOCKS),
        attention(2, block=16, random=BLOCKS),
        attention(64, random=RANDOM),
    ]
    for layer in layers:
        mixer = mixer_of(page, layer)
        counted = call(page, "prices", "m.layerPrices(a[0], a[1], [1000, 5000])", layer, WIDTH)
        assert [price["product"] for price in counted] == [mixer.cost(1, n).product_flops for n in (1000, 5000)]


@pytest.mark.parametrize("growth", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_layers_needed_are_the_least_whose_lags_add_up(page: Any, dilation: int, growth: int) -> None:
    for kernel, again, length in ((2, 0, 30), (3, 2, 41), (4, 3, 64), (3, 0, 100)):
        reached, span, layers = {0}, 0, 0
        while span < length - 1:
            step = dilation * growth ** (layers % again if again else layers)
            reached = {lag + tap * step for lag in reached for tap in range(kernel)}
            span, layers = max(reached), layers + 1
        count = layers
        while length - 1 not in reached and layers < count + 9:
            step = dilation * growth ** (layers % again if again else layers)
            reached = {lag + tap * step for lag in reached for tap in range(kernel)}
            layers += 1
        needed = page.evaluate(
            """async ([settings, length]) => {
              const { layersNeeded, withDefaults } = await import("page/rules");
              return layersNeeded(withDefaults(settings), 64, length);
            }""",
            [{"kernel": kernel, "dilation": dilation, "growth": growth, "again": again}, length],
        )
        assert needed["count"] == count
        assert needed["lands"] in (layers if layers <= count + 8 else False, None)
        if count < 10 and len(reached) < 1000:
            assert needed["lands"] is not None


EXTREMES = {
    "layers": (1, 2, 5, 64), "kernel": (1, 2, 7, 512), "stride": (1, 3, 8), "window": (1, 3, 8192),
    "dilation": (1, 2, 8192), "growth": (1, 2, 8), "again": (0, 3), "context": (16, 65536), "block": (1, 4, 128),
    "globals": (0, 1, 256), "randoms": (0, 2, 16), "heads": (1, 7, 64), "shared": (1, 3), "taps": (2, 65536),
    "states": (1, 256), "list": ("", "3, 1", "x"), "causal": (True, False),
}  # fmt: skip


def test_what_is_counted_agrees_with_the_formula_whatever_is_set(page: Any) -> None:
    """Where the whole field is drawn, the span of the drawn links is the formula's; nothing else goes wrong either."""
    draw, agreed = random.Random(0), 0
    kinds = page.evaluate(
        "async () => Object.entries((await import('page/rules')).KINDS).map(([kind, { mixers }]) => [kind, mixers])"
    )
    for _ in range(200):
        kind, mixers = draw.choice(kinds)
        settings = {key: draw.choice(values) for key, values in EXTREMES.items()}
        settings |= {"kind": kind, "mixer": draw.choice(mixers)}
        found = page.evaluate(
            """async ([settings, width, length]) => {
              const names = ["page/rules", "page/reach", "page/formulas", "page/schemecosts"];
              const [rules, reach, formulas, costs] = await Promise.all(names.map((name) => import(name)));
              const given = rules.withDefaults(settings), stack = rules.stackOf(given, width);
              const matrices = reach.stackLinks(stack.layers, length);
              const outputs = matrices.at(-1).targets, target = rules.isCausal(given) ? outputs - 1 : outputs >> 1;
              const count = reach.counted(reach.cone(matrices, target, stack.residual)[0]);
              rules.layersNeeded(given, width, length);
              costs.values("forward", given, width, [16, length]);
              return {
                span: count.span, seen: count.seen, field: formulas.fieldFormula(given, stack.layers).value,
                whole: reach.holdsField(stack, length, target),
                lags: reach.lagSetWork(stack) > reach.AT_ONCE ? null : reach.stackSeen(stack),
              };
            }""",
            [settings, draw.choice((24, 64)), 96],
        )
        if found["whole"] and (kind != "sparse" or settings["block"] == 1):
            assert found["span"] == found["field"], settings
            assert found["seen"] == found["lags"], settings
            agreed += 1
        elif found["whole"]:
            assert found["span"] <= found["field"], settings
    assert agreed > 20
