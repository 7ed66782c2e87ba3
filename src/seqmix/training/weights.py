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
        InputError: as `check_weights`. The model is left as it was.
    """
    check_weights(model, {name: tensor.shape for name, tensor in tensors.items()}, source)
    with torch.no_grad():
        for name, tensor in weight_tensors(model).items():
            tensor.copy_(tensors[name])


def check_weights(model: nn.Module, shapes: Mapping[str, torch.Size], source: str) -> None:
    """Raises an InputError where the names or shapes of some weights are not the model's; it names the first."""
    own = weight_tensors(model)
    for name, tensor in own.items():
        if name not in shapes:
            raise InputError(f"{source} has no weight {name!r}, which this model needs: use the same model and options")
        if shapes[name] != tensor.shape:
            raise InputError(
                f"the weight {name!r} has the shape {tuple(shapes[name])} in {source} and "
                f"{tuple(tensor.shape)} in this model: use the same model, size and tokenizer"
            )
    shared = model.state_dict().keys() - own.keys()
    for name in shapes:
        if name not in own and name not in shared:
            raise InputError(f"{source} has a weight {name!r} that this model lacks: use the same model and options")


def read_run_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a finished run."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{str(folder)!r} holds no model.safetensors: give the folder of a finished run")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): give the folder of a finished run") from error
