"""The pictures of the stories that compare convolution with attention. Shapes: T time, S source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pictures_of_mixers import GAMMA, TEXTS, drawn_mixer, embedded, mean_matrix, negative_share, structure_of
from torch import Tensor

from seqmix import Mixer
from seqmix.inspection.figures import add_scale, color_scale, draw_links, draw_matrix, new_figure, styled
from seqmix.inspection.graph import steps, strongest_path

WIDTH = 6.8
Story = tuple[Any, dict[str, Any]]


def one_equation() -> Story:
    """A convolution and a window attention over the same band: two texts change one of them."""
    positions = 16
    convolution, attention = drawn_mixer("depthwise_conv", kernel=5), drawn_mixer("attention", window=5)
    inputs = [embedded(text, positions) for text in TEXTS]
    matrices = {
        "one channel of a convolution": [channel(convolution, x) for x in inputs],
        "attention": [mean_matrix(attention, x) for x in inputs],
    }
    with styled():
        figure = new_figure(WIDTH, 2.15)
        places = figure.subplots(1, 4)
        for start, (kind, pair) in zip((0, 2), matrices.items(), strict=True):
            scale = color_scale(pair)
            for place, matrix, text in zip(places[start : start + 2], pair, TEXTS, strict=True):
                image = draw_matrix(place, matrix, tokens=text[:positions], scale=scale, inches=1.4)
            add_scale(image)
            places[start].set_title(kind, loc="left")
        for place in places[1:]:
            place.set_ylabel("")
    changes = {kind: float(np.abs(pair[0] - pair[1]).max()) for kind, pair in matrices.items()}
    return figure, {
        "largest_change_with_the_text": changes,
        "structure": {
            kind: structure_of(pair[0], causal=True) | {"negative": negative_share(mixer, inputs[0])}
            for (kind, pair), mixer in zip(matrices.items(), (convolution, attention), strict=True)
        },
        "links": {
            "convolution": int(convolution.links(positions).sum()),
            "attention": int(attention.links(positions).sum()),
        },
        "alt": "Two matrices of one channel of a convolution of kernel 5, which are the same for both texts, and two "
        "of an attention with a window of 5, which has the same band, no negative weight, and other weights for each "
        "text.",
    }


def channel(mixer: Mixer, x: Tensor) -> np.ndarray:
    """The signed matrix (time, source) of the first channel of a mixer whose heads are channels."""
    return mixer.mixing(x)[0].matrix[0, 0].detach().numpy()


def window_and_convolution() -> Story:
    """Three layers of each: the same graph, so the same receptive field."""
    positions, layers, width = 16, 3, 3
    mixers = {
        f"convolution, kernel {width}": drawn_mixer("depthwise_conv", kernel=width),
        f"attention, window {width}": drawn_mixer("attention", window=width),
    }
    spans = {name: 1 + layers * (mixer.receptive_field - 1) for name, mixer in mixers.items()}
    with styled():
        figure = new_figure(WIDTH, 4.2)
        places = figure.subplots(2, 2, width_ratios=[1.0, 1.9])
        for row, (name, mixer) in zip(places, mixers.items(), strict=True):
            draw_matrix(row[0], mean_matrix(mixer, embedded(TEXTS[0], positions)), title=name, inches=1.5)
            draw_links(row[1], [mixer.links(positions).numpy()] * layers, target=positions - 1, inches=3.8)
            row[1].set_title(f"{layers} layers of it")
    return figure, {
        "layers": layers,
        "receptive_field": spans,
        "parameters": {name: mixer.cost(1, 1).parameters for name, mixer in mixers.items()},
        "alt": f"The matrices of a convolution of kernel {width} and of an attention with a window of {width} fill the "
        f"same band; over {layers} layers both graphs are the same and the last position hears of "
        f"{' and '.join(str(span) for span in sorted(set(spans.values())))}.",
    }


def depth_and_one_hop() -> Story:
    """From the first to the last of 32 positions: five dilated layers, or one attention; five plain layers do not."""
    positions, dilations = 32, (1, 2, 4, 8, 16)
    stacks = {
        "kernel 2, not dilated": [drawn_mixer("bytenet", kernel=2) for _ in dilations],
        "kernel 2, dilations 1, 2, 4, 8, 16": [drawn_mixer("bytenet", kernel=2, dilation=step) for step in dilations],
        "attention": [drawn_mixer("attention")],
    }
    links = {name: [mixer.links(positions).numpy() for mixer in stack] for name, stack in stacks.items()}
    fewest = {name: steps(layers, 0, positions - 1) for name, layers in links.items()}
    with styled():
        figure = new_figure(WIDTH, 5.6)
        places = figure.subplots(3, 1, height_ratios=[5, 5, 1.6])
        for place, (name, layers) in zip(places, links.items(), strict=True):
            path = strongest_path(layers, 0, positions - 1) or ()
            draw_links(place, layers, target=positions - 1, path=path, inches=6.0)
            place.set_title(name)
            place.set_xlabel("position" if place is places[-1] else "")
    return figure, {
        "positions": positions,
        "receptive_field": {
            name: None if stack[0].receptive_field is None else 1 + sum(mixer.receptive_field - 1 for mixer in stack)
            for name, stack in stacks.items()
        },
        "steps_from_first_to_last": fewest,
        "alt": f"Three graphs over {positions} positions, and the steps from the first position to the last: "
        + "; ".join(f"{'no way' if count is None else count} with {name}" for name, count in fewest.items())
        + ".",
    }


def as_long_as_the_sequence() -> Story:
    """Both link every position to every earlier one; the convolution's weights depend on the distance alone."""
    positions = 48
    attention, convolution = drawn_mixer("attention"), drawn_mixer("global_conv", length=positions)
    softmax = [mean_matrix(attention, embedded(text, positions)) for text in TEXTS]
    taps = channel(convolution, embedded(TEXTS[0], positions))
    with styled():
        figure = new_figure(WIDTH, 2.35)
        places = figure.subplots(1, 3)
        scale = color_scale(softmax, GAMMA)
        for place, matrix, title in zip(places, softmax, ("attention, one text", "attention, another"), strict=False):
            image = draw_matrix(place, matrix, title=title, scale=scale, inches=1.5)
        add_scale(image)
        image = draw_matrix(places[2], taps, title="global_conv, one channel", inches=1.5)
        add_scale(image)
        for place in places[1:]:
            place.set_ylabel("")
    return figure, {
        "positions": positions,
        "structure": {
            "attention": structure_of(softmax[0], causal=True),
            "global_conv": structure_of(taps, causal=True),
        },
        "links": {"attention": int(attention.links(positions).sum()), "global_conv": int(np.count_nonzero(taps))},
        "parameters": {
            "attention": attention.cost(1, 1).parameters,
            "global_conv": convolution.cost(1, 1).parameters,
        },
        "alt": "The matrix of an attention for two texts, and that of one channel of a convolution as long as the "
        "sequence: all fill the lower triangle, and only the convolution has equal weights along every diagonal.",
    }


STORIES: dict[str, Callable[[], Story]] = {
    "story_one_equation": one_equation,
    "story_window_and_convolution": window_and_convolution,
    "story_depth_and_one_hop": depth_and_one_hop,
    "story_as_long_as_the_sequence": as_long_as_the_sequence,
}
