"""From a filter of many taps to one of a few decaying waves, with the error that this makes.

    h[k] ~ Re sum over n of R_n lambda_n^k          k = 1 ... length - 1; the skip takes what is left at k = 0

The lambdas are the eigenvalues of the shift between neighbouring rows of the filter's Hankel matrix, within its 2 N
largest singular directions (ESPRIT, Roy and Kailath 1989; Kung 1978); then the R follow from least squares over all
taps. The idea is that of arXiv 2310.18780, which finds both by gradient. All of it is in float64.

Shapes: K taps, N modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.kernels.long_conv.modal import Modes
from seqmix.mixer import Mixer
from seqmix.mixers.long_convolution.global_convolution import GatedGlobalConv, GlobalConv
from seqmix.mixers.long_convolution.hyena import Hyena
from seqmix.mixers.long_convolution.modal_convolution import (
    GatedModalConv,
    GatedModalConvConfig,
    ModalConv,
    ModalConvConfig,
    ModalFilter,
    ModalHyena,
    ModalHyenaConfig,
)
from seqmix.mixers.long_convolution.online_convolution import TapFilter

ROWS = 256
"""The most rows of a Hankel matrix, and so the most singular directions that are told apart."""

COLUMNS = 4096
"""The most columns of it, spread evenly over the filter."""

NEGLIGIBLE = 1e-7
"""What float32 cannot tell from nothing beside 1: coefficients are not made large for the sake of less."""

SLOWEST = 10.0
"""Lengths of the filter: no mode fades more slowly, so that none grows."""


class Distilled(NamedTuple):
    """A mixer of fixed state, and how far its filters are from those they stand for.

    errors: (streams, dim), the norm of what is missing from the first `length` taps over the norm of those taps.
    beyond: (streams, dim), the norm of the next `length` taps of the difference, over the same: waves have no end,
        where the filter has one.
    """

    mixer: Mixer
    errors: Tensor
    beyond: Tensor


@dataclass(frozen=True)
class _Recipe:
    """The class that stands for another, and its config from the other's."""

    target: type[Mixer]
    config: Callable[[Any, int], Any]


_RECIPES: Mapping[type[Mixer], _Recipe] = {
    GlobalConv: _Recipe(ModalConv, lambda c, size: ModalConvConfig(state_size=size, bias=c.bias)),
    GatedGlobalConv: _Recipe(GatedModalConv, lambda c, size: GatedModalConvConfig(state_size=size, bias=c.bias)),
    Hyena: _Recipe(
        ModalHyena,
        lambda c, size: ModalHyenaConfig(state_size=size, order=c.order, short_kernel=c.short_kernel, bias=c.bias),
    ),
}


@torch.no_grad()
def distill(mixer: Mixer, state_size: int, length: int | None = None) -> Distilled:
    """A mixer whose step takes O(state_size) a channel, in place of one with long filters; all else is copied.

    Args:
        mixer: a `global_conv`, `gated_global_conv` or `hyena`.
        state_size: complex modes of every channel and filter.
        length: the taps that are fitted, from the first; None for all. Sequences up to it see the stated errors.

    Raises:
        InputError: another mixer, a state_size below 1, a length below 3 or beyond the filter.
    """
    recipe = _RECIPES.get(type(mixer))
    if recipe is None:
        known = "global_conv, gated_global_conv or hyena"
        raise InputError(f"a {type(mixer).__name__} has no long filters to distill: give a {known}")
    own = mixer.get_submodule("filter")
    assert isinstance(own, TapFilter)
    length = own.length if length is None else length
    if not 3 <= length <= own.length:
        raise InputError(f"length is {length}: give at least 3 taps to fit, and at most the filter's {own.length}")
    with torch.random.fork_rng(devices=[]):
        found = recipe.target(mixer.dim, recipe.config(mixer.config, state_size))
    own_values, values = mixer.state_dict(), found.state_dict()
    kept = {name: own_values[name] for name in values if not name.startswith("filter.")}
    found.load_state_dict({**values, **kept})
    modal = found.get_submodule("filter")
    assert isinstance(modal, ModalFilter)
    taps = own.taps(min(own.length, 2 * length)).to("cpu", torch.float64)
    _fit_all(modal, taps[..., :length])
    found = found.to(next(mixer.parameters()))
    found.train(mixer.training)
    difference = modal.double().taps(2 * length).cpu()
    modal.to(next(mixer.parameters()))
    difference[..., : taps.shape[2]] -= taps
    size = taps[..., :length].norm(dim=2).clamp(min=torch.finfo(torch.float64).tiny)
    return Distilled(found, difference[..., :length].norm(dim=2) / size, difference[..., length:].norm(dim=2) / size)


def _fit_all(modal: ModalFilter, taps: Tensor) -> None:
    """Fills the parameters, channel by channel."""
    for stream in range(modal.streams):
        for channel in range(modal.dim):
            modes, skip = fit_modes(taps[stream, channel], modal.state_size)
            modal.log_decay[stream, channel] = modes.decay[0].log()
            modal.angle[stream, channel] = modes.angle[0]
            modal.residue[0, stream, channel], modal.residue[1, stream, channel] = modes.real[0], modes.imaginary[0]
            modal.skip[stream, channel] = skip


def fit_modes(taps: Tensor, state_size: int) -> tuple[Modes, Tensor]:
    """The modes (1, state_size) of one filter (taps,) in float64, and its skip ()."""
    before, after = _directions(taps[1:], 2 * state_size)
    found = []
    for rank in sorted({min(rank, before.shape[1]) for rank in (state_size, 3 * state_size // 2, 2 * state_size)}):
        modes = _modes(taps, *_poles(before[:, :rank], after[:, :rank], len(taps)), state_size)
        found.append((float((modes.taps(len(taps))[0, 1:] - taps[1:]).norm()), modes))
    modes = min(found, key=lambda pair: pair[0])[1]
    missing = state_size - modes.decay.shape[1]
    decay, angle, real, imaginary = (F.pad(part, (0, missing)) for part in modes)
    modes = Modes(decay.masked_fill(decay == 0, 1.0), angle, real, imaginary)
    return modes, taps[0] - modes.real.sum()


def _directions(taps: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The singular directions of a Hankel matrix, the largest first: at its rows, and at the rows after them."""
    last_row = len(taps) // 2 - 1
    rows = _spread(last_row, ROWS)
    columns = _spread(len(taps) - last_row - 2, COLUMNS)
    hankel = taps[torch.cat([rows, rows + 1])[:, None] + columns]
    # Eigenvectors of H H^T are H's directions, and much sooner found; those below 1e-8 of the largest are lost, which
    # float32 could not use.
    directions = torch.linalg.eigh(hankel @ hankel.T).eigenvectors.flip(1)[:, : min(most, len(rows))]
    before, after = directions.chunk(2)
    return before, after


def _poles(before: Tensor, after: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Decays and angles (poles,) of what leads from the rows to those after them; conjugates are left out."""
    poles = torch.linalg.eigvals(torch.linalg.lstsq(before, after, driver="gelsd").solution)
    poles = poles[poles.imag >= 0]
    # Nothing fades to less than this within a position, and nothing more slowly than the filter is long.
    decay = -poles.abs().clamp(min=1e-12).log()
    return decay.clamp(min=1 / (SLOWEST * length)), poles.angle()


def _modes(taps: Tensor, decay: Tensor, angle: Tensor, most: int) -> Modes:
    """The modes (1, at most `most`) of these poles that come near to the taps from lag 1 on."""
    modes = _residues(taps, decay, angle)
    if len(decay) > most:
        # Real poles come alone, so that there may be more than were asked for: those with the least energy go.
        energy = (modes.real.square() + modes.imaginary.square()) / -torch.expm1(-2 * modes.decay)
        kept = energy[0].topk(most).indices
        modes = _residues(taps, decay[kept], angle[kept])
    return modes


def _spread(last: int, most: int) -> Tensor:
    """Whole numbers from 0 to at most `last`: all of them, or `most`, close together first and then farther apart."""
    if last < most:
        return torch.arange(last + 1)
    return torch.logspace(0, math.log10(last + 1), most, dtype=torch.float64).sub(1).round().long().unique()


def _residues(taps: Tensor, decay: Tensor, angle: Tensor) -> Modes:
    """The modes of these poles that come nearest to the taps from lag 1 on."""
    ones = torch.ones_like(decay)[None]
    real, imaginary = Modes(decay[None], angle[None], ones, ones).powers(1, len(taps))
    waves = torch.cat([real[0], -imaginary[0]]).T
    # Columns of one size, so that what counts as zero is the same for fast modes as for slow ones. The imaginary part
    # of a real pole is nothing, and stays so.
    sizes = waves.norm(dim=0)
    sizes = sizes.masked_fill(sizes <= NEGLIGIBLE * sizes.max(), torch.inf)
    found = torch.linalg.lstsq(waves / sizes, taps[1:, None], rcond=NEGLIGIBLE, driver="gelsd").solution[:, 0] / sizes
    return Modes(decay[None], angle[None], *(part[None] for part in found.chunk(2)))
