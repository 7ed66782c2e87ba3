"""Opening the folder of a saved model, with errors that say what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from seqmix.errors import InputError
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

WEIGHTS = "model.safetensors"


def load_model(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SeqmixForCausalLM:
    """The model in the folder of a run (or one that `save_pretrained` wrote), in evaluation mode.

    Args:
        dtype: the precision of the weights; None keeps the one they were saved in.

    Raises:
        InputError: the folder holds no seqmix model, one of another version, or a damaged or unfinished one.
    """
    path = Path(folder)
    config = read_config(path)
    tensors = _read_weights(path)
    with torch.device(device):
        model = SeqmixForCausalLM(config)
    nn.Module.to(model, next(iter(tensors.values())).dtype if dtype is None else dtype)
    try:
        report = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        words = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"the weights in {str(path)!r} do not fit its config.json ({words}): use the version of seqmix that "
            "wrote them, or train again"
        ) from error
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    missing = sorted(set(report.missing_keys) - tied)
    if missing or report.unexpected_keys:
        problem = f"lack {missing[0]!r}" if missing else f"have {report.unexpected_keys[0]!r}, which is not known here"
        raise InputError(
            f"the weights in {str(path)!r} {problem}: use the version of seqmix that wrote them, or train again"
        )
    return model.eval()


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors."""
    path = folder / WEIGHTS
    if not path.is_file():
        _refuse_unfinished(folder)
        raise InputError(f"{str(folder)!r} holds no {WEIGHTS}: give the folder of a finished run")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{str(path)!r} is truncated or damaged ({error}): restore it, or train again with another --out"
        ) from error
    if not tensors:
        raise InputError(f"{str(path)!r} holds no weights: restore it, or train again with another --out")
    return tensors


def _refuse_unfinished(folder: Path) -> None:
    if (folder / "checkpoints").is_dir():
        raise InputError(f"the run in {str(folder)!r} is not finished: continue it with seqmix train --resume")


def read_config(folder: Path) -> SeqmixConfig:
    """config.json of a seqmix model; errors as `load_model`."""
    path = folder / "config.json"
    if not folder.exists():
        raise InputError(f"there is no folder {str(folder)!r}: give the folder of a run")
    if not path.is_file():
        if (folder / "checkpoints").is_dir():
            raise InputError(f"the run in {str(folder)!r} is not finished: continue it with seqmix train --resume")
        raise InputError(
            f"{str(folder)!r} is not a run, it holds no config.json: give a folder that seqmix train wrote"
        )
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        kind = document.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is damaged or cannot be read: give the folder of a run") from error
    if kind != SeqmixConfig.model_type:
        raise InputError(f"{str(folder)!r} holds a model of type {kind!r}, not of seqmix: give the folder of a run")
    try:
        return SeqmixConfig.from_dict(document)
    except InputError as error:
        raise InputError(f"{str(path)!r} is of another version of seqmix ({error}): use that version") from error
