"""Hyena's implicit filter: a small network that gives the tap of every lag from the lag itself.

    z[k] = [k / (L - 1), Re exp(-i f w[k]), Im exp(-i f w[k])],  w[k] = 2 pi k / L,  f from 1e-4 to bands - 1, even
    taps[k] = W_n sin(a * (... W_2 sin(a * (W_1 z[k] + b_1)) + b_2 ...)) * exp(-k / (L - 1) * |delta|),  + D at k = 0

arXiv 2302.10866, section 3.3, with the parameters of safari's HyenaFilter: one learned frequency a for each unit that
all sines share, deltas between ln(0.01) / 1.5 and ln(0.01) / 0.3 over the channels, never trained, D the skip, from
N(0, 1). L is an option and not the length of the sequence at hand, so that pieces equal the whole. With 3 features
there is one band, of frequency 1e-4, so that z is little more than k / (L - 1), in the original as here; its features
can be trained (at a rate of 1e-5), ours are fixed.

Shapes: K taps, D channels of one stream, O streams, W width of the network.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import linear_flops
from seqmix.mixers.long_convolution.online_convolution import TapFilter

FADED = 0.01
"""What a channel's window has come to after slow_decay or fast_decay times L positions."""


class ImplicitFilter(TapFilter):
    """Filters of `length` taps from a network of fixed size.

    Args:
        dim, streams, length: as of a LongFilter.
        features: of z, an odd number from 3 on. width, layers: of the network, whose first and last layers are not
            counted. frequency: what a is at first.
        fast_decay, slow_decay: the share of the length after which the fastest and the slowest channel have faded to
            a hundredth.
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        length: int,
        *,
        features: int,
        width: int,
        layers: int,
        frequency: float,
        fast_decay: float,
        slow_decay: float,
    ) -> None:
        super().__init__(dim, streams, length)
        self.features, self.frequency, self.decays = features, frequency, (slow_decay, fast_decay)
        widths = [features, *[width] * (layers + 1)]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.out = nn.Linear(width, dim * streams, bias=False)
        self.sine_frequency = nn.Parameter(torch.empty(width))
        self.skip = nn.Parameter(torch.empty(streams, dim))

    def reset_parameters(self) -> None:
        for layer in (*self.layers, self.out):
            layer.reset_parameters()
        nn.init.constant_(self.sine_frequency, self.frequency)
        nn.init.normal_(self.skip)

    def no_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters()}

    def taps(self, count: int) -> Tensor:
        # The phases of the sines lose their meaning in low precision, so that autocast is kept out too.
        wide = torch.promote_types(self.skip.dtype, torch.float32)
        with torch.autocast(self.skip.device.type, enabled=False):
            z, time = self._features(count)
            hidden, frequency = z.to(wide), self.sine_frequency.to(wide)
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                hidden = torch.sin(frequency * F.linear(hidden, layer.weight.to(wide), layer.bias.to(wide)))
            slow, fast = (math.log(FADED) / decay for decay in self.decays)
            deltas = torch.linspace(slow, fast, self.out.out_features, device=z.device, dtype=torch.float64)
            window = torch.exp(time.to(wide)[:, None] * deltas.to(wide))
            taps = F.linear(hidden, self.out.weight.to(wide)) * window
            taps = taps.unflatten(1, (self.dim, self.streams)).permute(2, 1, 0)
            return torch.cat([taps[:, :, :1] + self.skip.to(wide)[:, :, None], taps[:, :, 1:]], dim=2)

    def _features(self, count: int) -> tuple[Tensor, Tensor]:
        """z (count, features) and the normalised time (count,), in float64."""
        steps = torch.arange(count, device=self.skip.device, dtype=torch.float64)
        bands = (self.features - 1) // 2
        frequencies = torch.linspace(1e-4, bands - 1, bands, device=steps.device, dtype=torch.float64)
        phases = steps[:, None] * (2 * math.pi / self.length) * frequencies
        time = steps / max(1, self.length - 1)
        return torch.cat([time[:, None], phases.cos(), -phases.sin()], dim=1), time

    def tap_flops(self, count: int) -> tuple[int, int]:
        width, outputs = self.out.in_features, self.out.out_features
        layers = len(self.layers)
        products = self.features * width + (layers - 1) * width * width + width * outputs
        return linear_flops(count, products, 1), count * (layers * 4 * width + 3 * outputs + 4 * self.features)
