"""A model's weights as named tensors, each once, and their way back into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seqmix.errors import InputError


def weight_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor that two modules share stands under its first name."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies tensors into a model.

    Args:
        source: where they come from, for the error.

    Raises:
        InputError: names or shapes differ; it names the first that does. The model is left as it was.
    """
    own = weight_tensors(model)
    for name, tensor in own.items():
        if name not in tensors:
            raise InputError(f"{source} has no weight {name!r}, which this model needs: use the same model and options")
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"the weight {name!r} has the shape {tuple(tensors[name].shape)} in {source} and "
                f"{tuple(tensor.shape)} in this model: use the same model, size and tokenizer"
            )
    shared = model.state_dict().keys() - own.keys()
    for name in tensors:
        if name not in own and name not in shared:
            raise InputError(f"{source} has a weight {name!r} that this model lacks: use the same model and options")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def read_run_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a finished run."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{str(folder)!r} holds no model.safetensors: give the folder of a finished run")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): give the folder of a finished run") from error
