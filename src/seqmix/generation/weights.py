"""Smaller weights for generation: the matrices rounded to bfloat16, or to int8 with a scale for each output.

    int8:  W[o, i] ~ scale[o] * q[o, i],  scale[o] = max_i |W[o, i]| / 127,  q in -127 ... 127

Every matrix that multiplies a vector is rounded (linear layers, the head and with it a tied embedding, the LSTM's
two matrices); kernels of depthwise convolutions, norms and biases are small and stay. Sums are float32 and
activations are not rounded, except where torch's bfloat16 product takes them as bfloat16.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.errors import unknown_name
from seqmix.export.int8 import to_int8
from seqmix.mixers.recurrent.lstm import LSTM
from seqmix.models import SeqmixForCausalLM

WeightType = Literal["f32", "bf16", "int8"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)


def check_weight_type(weights: str) -> WeightType:
    """The type of a name; InputError for an unknown one."""
    if weights not in WEIGHT_TYPES:
        raise unknown_name("weight type", weights, WEIGHT_TYPES)
    return weights


def round_matrix(weight: Tensor, weights: WeightType) -> Tensor:
    """A matrix (out, in) rounded to a weight type, in float32."""
    if weights == "bf16":
        return weight.detach().bfloat16().float()
    if weights == "int8":
        values, scales = to_int8(weight)
        return values.float() * scales[:, None]
    return weight.detach().float()


def rounded_weights(model: SeqmixForCausalLM, weights: WeightType) -> SeqmixForCausalLM:
    """A copy of the model with every matrix rounded to a weight type; the model itself for "f32"."""
    if check_weight_type(weights) == "f32":
        return model
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in _matrices(rounded):
            matrix.copy_(round_matrix(matrix, weights))
    return rounded


def _matrices(model: SeqmixForCausalLM) -> list[Tensor]:
    """What is rounded, each tensor once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        own = [module.weight] if isinstance(module, nn.Linear) else []
        if isinstance(module, LSTM):
            own = [module.weight_ih, module.weight_hh]
        found |= {id(matrix): matrix for matrix in own}
    return list(found.values())


class Int8Linear(nn.Module):
    """W x + b with W in int8 and a scale for each output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.values, self.scales = to_int8(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.values, self.scales)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Bfloat16Linear(nn.Module):
    """W x + b with W and x in bfloat16; the product is given as float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach().bfloat16()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.bfloat16(), self.weight).to(x.dtype)
        return y if self.bias is None else y + self.bias


def with_packed_weights(model: SeqmixForCausalLM, weights: WeightType) -> SeqmixForCausalLM:
    """The model with linear layers that keep their matrix in the weight type; the model itself for "f32".

    Parameters that are not packed are shared with the model. Rounding a rounded matrix changes nothing.
    """
    if weights == "f32" or model.device.type != "cpu":
        return model
    kind = Int8Linear if weights == "int8" else Bfloat16Linear
    # Parameters are shared through the memo, so that the copy consists of modules alone.
    packed = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for module in list(packed.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return packed
