"""What else is installed that seqmix is measured beside, and how each computes a depthwise causal convolution."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Convolution = Callable[[Tensor, Tensor, int], Tensor]
"""x (batch, time, dim), weight (dim, kernel), dilation -> y (batch, time, dim), causal and without bias."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package besides torch and transformers.

    module: how it is imported. measured_in: the measurements in which it stands beside seqmix.
    """

    package: str
    module: str
    measured_in: str

    @property
    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


PEERS = (
    Peer(package="onnxruntime", module="onnxruntime", measured_in="decode"),
    Peer(package="llama-cpp-python", module="llama_cpp", measured_in="decode"),
    Peer(package="causal-conv1d", module="causal_conv1d", measured_in="kernels, on CUDA"),
    Peer(package="flash-linear-attention", module="fla", measured_in="kernels, on CUDA"),
    Peer(package="mamba-ssm", module="mamba_ssm", measured_in="train, on CUDA, through transformers"),
)


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def torch_conv1d(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """torch's own grouped convolution, with the padding and the transposes that a model needs around it."""
    reach = (weight.shape[1] - 1) * dilation
    padded = F.pad(x.transpose(1, 2), (reach, 0))
    return F.conv1d(padded, weight[:, None], dilation=dilation, groups=len(weight)).transpose(1, 2)


def convolutions(device: torch.device, kernel: int, dilation: int) -> dict[str, Convolution]:
    """The convolutions of others that can do this one, by name."""
    found: dict[str, Convolution] = {"torch conv1d": torch_conv1d}
    if device.type == "cuda" and dilation == 1 and 2 <= kernel <= 4:
        if is_installed("causal_conv1d"):
            found["causal-conv1d"] = _causal_conv1d
        if is_installed("fla"):
            found["flash-linear-attention"] = _flash_linear_attention
    return found


def _causal_conv1d(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x.transpose(1, 2), weight).transpose(1, 2)


def _flash_linear_attention(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    # Where versions 0.6, 0.5 and 0.4 have it.
    homes = ("fla.modules.causal_conv1d", "fla.modules.conv", "fla.modules.convolution")
    home = next(name for name in homes if importlib.util.find_spec(name) is not None)
    return importlib.import_module(home).causal_conv1d(x, weight)[0]
