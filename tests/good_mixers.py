"""Mixers that keep the whole contract, each with one example; the broken ones are made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv
from seqmix.mixers.attention.attention import Attention
from seqmix.mixers.convolution import DepthwiseConv, GatedConv


class Gated(GatedConv):
    """A good mixer with projections, a gate, a bias and a state."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": (1, 2), "causal": True, "bias": True})]

    def _mix(self, x: Tensor, *weights: Any, **how: Any) -> tuple[Tensor, DepthwiseConvState | None]:
        """Step by step, so that a broken mixer can break one of the steps."""
        values, gate = self._values(x)
        convolved, after = depthwise_conv(values, *weights, **how)
        return self._readout(convolved, gate), after


class Banded(DepthwiseConv):
    """A good mixer with nothing around its matrix."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": 1, "causal": True, "bias": False})]


class Attending(Attention):
    """A good mixer with a growing state."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {field.name: field.default for field in dataclasses.fields(cls.config_class)} | {"heads": 2})]
