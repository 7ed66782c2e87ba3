"""AdamW (arXiv 1711.05101) over groups of parameters: those that weight decay shrinks and those it leaves alone.

A mixer may also name parameters whose learning rate has a factor; they are groups of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.mixer import Mixer
from seqmix.models.huggingface import HuggingFaceModel

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def decay_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trainable parameters by name: (decayed, left alone).

    Left alone are biases, norms, embeddings, everything with one dimension, and what a mixer's
    or a model of Hugging Face's `no_decay` names. A parameter that two modules share is listed once.
    """
    alone: set[int] = set()
    for module in model.modules():
        if isinstance(module, Mixer | HuggingFaceModel):
            named = dict(module.named_parameters())
            alone.update(id(named[name]) for name in module.no_decay())
        elif isinstance(module, (nn.Embedding, *_NORMS)):
            alone.update(id(parameter) for parameter in module.parameters(recurse=False))
    decayed: dict[str, nn.Parameter] = {}
    kept: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        untouched = id(parameter) in alone or parameter.ndim < 2 or name.rpartition(".")[2].startswith("bias")
        (kept if untouched else decayed)[name] = parameter
    return decayed, kept


def rate_scales(model: nn.Module) -> dict[str, float]:
    """Factors on the learning rate by parameter name, as the mixers name them; all others have 1."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales: dict[str, float] = {}
    for module in model.modules():
        if isinstance(module, Mixer):
            named = dict(module.named_parameters())
            scales.update({names[id(named[name])]: scale for name, scale in module.rate_scales().items()})
    return scales


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def make_optimizer(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW, fused where the device has that (CPU and CUDA do); `set_rate` comes before each step."""
    scales = rate_scales(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    parameters = []
    for decay, named in zip((weight_decay, 0.0), decay_groups(model), strict=True):
        for name, parameter in named.items():
            scale = scales.get(name, 1.0)
            group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "rate_scale": scale})
            group["params"].append(parameter)
            parameters.append(parameter)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.AdamW(
        list(groups.values()),
        lr=0.0,
        betas=betas,
        eps=1e-8,
        fused=fused or None,
    )


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimizer counts them."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, as `NAME OF PARAMETER/NAME OF VALUE`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{key}": value
        for index, name in enumerate(_names(model, optimizer))
        for key, value in state.get(index, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts what `optimizer_tensors` returned back."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        by_name.setdefault(name, {})[what] = value
    state = {index: by_name[name] for index, name in enumerate(_names(model, optimizer)) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
