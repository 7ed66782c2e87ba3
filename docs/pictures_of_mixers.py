"""One small picture for every mixer: its matrix over a text, or over two where it depends on them, and its links.

Shapes: T time, S source, D width, H heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqmix import Mixer, Mixing, create_mixer
from seqmix.inspection.figures import add_scale, color_scale, draw_links, draw_matrix, new_figure, styled
from seqmix.inspection.structure import structures
from seqmix.properties import mixer_of_length

DIM = 64
POSITIONS = 48
LINKED = 12
LENGTHS = (256, 4096)
# Small weights stay visible beside large ones: colours go with the square root.
GAMMA = 0.5
WIDTH, HEIGHT = 6.8, 2.35
TEXTS = (
    "the cat sat on the mat, the dog sat on the log, ",
    "to be or not to be, that is the question here. ",
)


def drawn_mixer(name: str, seed: int = 0, dim: int = DIM, **options: Any) -> Mixer:
    """A mixer with seeded weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_mixer(name, dim, **options).eval()


def embedded(text: str, positions: int = POSITIONS, dim: int = DIM) -> Tensor:
    """A text as (1, time, dim): every letter has one drawn vector, the same wherever it stands.

    Its numbers have a deviation of 2: with 1 the drawn attentions differ too little from a mean to be told apart.
    """
    table = 2 * torch.randn(128, dim, generator=torch.Generator().manual_seed(1))
    letters = (text * (positions // len(text) + 1))[:positions]
    return table[torch.tensor([ord(letter) for letter in letters])].unsqueeze(0)


def mixings(mixer: Mixer, x: Tensor) -> list[Mixing]:
    """The mixer's matrices, with its random features, if it has any, from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return mixer.mixing(x)


def mean_matrix(mixer: Mixer, x: Tensor) -> np.ndarray:
    """|M| (time, source) averaged over the channels that are mixed: a head counts by the width of its values."""
    total, width = np.zeros((1, 1)), 0
    for matrix, values in mixings(mixer, x):
        channels = 1 if values is None else values.shape[-1]
        total = total + channels * matrix[0].detach().abs().double().sum(0).numpy()
        width += channels * matrix.shape[1]
    return total / width


def structure_of(matrix: np.ndarray, *, causal: bool) -> dict[str, float]:
    """What `seqmix.inspection.structure` says of a matrix as it is drawn."""
    (found,) = structures(matrix[None], causal=causal)
    names = ("toeplitz", "band_99", "links", "effective_rank", "listens_to")
    return {name: float(getattr(found, name)) for name in names}


def negative_share(mixer: Mixer, x: Tensor) -> float:
    """The share of the weights, by their sizes, that is negative; the mean over the heads."""
    heads = np.concatenate([matrix[0].detach().numpy() for matrix, _ in mixings(mixer, x)])
    return float(np.mean([one.negative for one in structures(heads, causal=mixer.traits.causal)]))


def mixer_picture(name: str) -> tuple[Any, dict[str, Any]]:
    """The figure of a registered mixer at its default options, and the numbers that a text about it needs."""
    mixer = drawn_mixer(name)
    changes = mixer.traits.content_dependent
    texts = TEXTS if changes else TEXTS[:1]
    matrices = [mean_matrix(mixer, embedded(text)) for text in texts]
    links = mixer.links(LINKED).numpy()
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        places = figure.subplots(1, len(matrices) + 1, width_ratios=[1.0] * len(matrices) + [1.15 if changes else 2.0])
        scale = color_scale(matrices, GAMMA)
        titles = ("|M| for one text", "|M| for another") if changes else ("|M|, whatever the text",)
        for place, matrix, title in zip(places, matrices, titles, strict=False):
            image = draw_matrix(place, matrix, title=title, scale=scale, inches=1.5)
        if changes:
            places[1].set_ylabel("")
        add_scale(image)
        draw_links(places[-1], [links], target=target(mixer), names=["output"], inches=2.0 if changes else 3.6)
        # As high as the matrices beside it.
        places[-1].set_box_aspect(1.0 if changes else 0.5)
        places[-1].set_title(f"links of {LINKED} positions")
    return figure, facts(name, mixer, matrices)


def target(mixer: Mixer) -> int:
    """The output whose links are coloured: the last one, or the middle one where a mixer also looks ahead."""
    return LINKED - 1 if mixer.traits.causal else LINKED // 2


def facts(name: str, mixer: Mixer, matrices: list[np.ndarray]) -> dict[str, Any]:
    """What a text says about a mixer of width 64: its traits, its costs, and a description for who cannot see it."""
    traits = mixer.traits
    costs = {length: mixer_of_length(name, DIM, length).cost(1, length) for length in LENGTHS}
    return {
        "causal": traits.causal,
        "fixed": not traits.content_dependent,
        "jacobian": traits.matrix == "jacobian",
        "reach": traits.reach,
        "receptive_field": mixer.receptive_field,
        "positions_seen": mixer.positions_seen,
        "state_growth": traits.state_growth,
        "dim": DIM,
        "parameters": mixer.cost(1, 1).parameters,
        "product_flops_per_token": {str(length): cost.product_flops / length for length, cost in costs.items()},
        "state_bytes": {str(length): cost.state_bytes if traits.causal else None for length, cost in costs.items()},
        "largest_change_with_the_text": float(np.abs(matrices[0] - matrices[-1]).max()),
        "structure": structure_of(matrices[0], causal=traits.causal),
        "negative": negative_share(mixer, embedded(TEXTS[0])),
        "alt": description(name, mixer),
    }


def description(name: str, mixer: Mixer) -> str:
    """The picture in one sentence."""
    one, two = ("Jacobian", "Jacobians") if mixer.traits.matrix == "jacobian" else ("matrix", "matrices")
    what = f"two {two}, one for each of two texts," if mixer.traits.content_dependent else f"one {one} for every text,"
    seen = mixer.receptive_field
    far = "without a bound" if seen is None else f"over a span of {seen} positions"
    return f"{name}: {what} over {POSITIONS} positions; and the links of {LINKED} positions, {far}."
