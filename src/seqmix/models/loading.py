"""Opening the folder of a saved model, with errors that say what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING

from seqmix.errors import InputError
from seqmix.mixers import list_mixers
from seqmix.models.config import SeqmixConfig
from seqmix.models.contenders import LanguageModel
from seqmix.models.huggingface import HuggingFaceModel, config_from_document, open_inner
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
    require_mixers(config, imports_of(path), f"the run in {str(path)!r}")
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


def open_model(
    folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LanguageModel:
    """As `load_model`, and of runs that trained a model of Hugging Face as well."""
    path = Path(folder)
    document = _read_document(path)
    if document.get("model_type") == SeqmixConfig.model_type:
        return load_model(folder, device=device, dtype=dtype)
    config = config_from_document(document)
    if not (path / WEIGHTS).is_file():
        _refuse_unfinished(path)
        raise InputError(f"{str(path)!r} holds no {WEIGHTS}: give the folder of a finished run")
    try:
        inner = open_inner(config, path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model in {str(path)!r} cannot be opened ({words}): restore it, or train again with another --out"
        ) from error
    model = HuggingFaceModel(config, inner)
    nn.Module.to(model, device=device, dtype=dtype)
    return model.eval()


def require_mixers(config: SeqmixConfig, imports: Sequence[str], owner: str) -> None:
    """Raises an InputError that names the --import which is missing, where a config uses a mixer that is not known.

    Args:
        imports: the files that its training imported. owner: whose config it is, for the error.
    """

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            if isinstance(value.get("name"), str):
                yield value["name"]
            value = list(value.values())
        if isinstance(value, list | tuple):
            for part in value:
                yield from names(part)

    for name in names([config.mixers, config.feed_forward_mixers]):
        if name not in list_mixers():
            place = " ".join(f"--import {one}" for one in imports) or "--import FILE.py with the file that registers it"
            raise InputError(f"{owner} uses the mixer {name!r}, which is not known here: give {place}")


def imports_of(folder: Path) -> list[str]:
    """The files and modules that the training of a run imported, for display alone: nothing that a run names is run."""
    try:
        found = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]["imports"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


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
    document = _read_document(folder)
    kind = document.get("model_type")
    if kind != SeqmixConfig.model_type and kind in CONFIG_MAPPING:
        raise InputError(
            f"{str(folder)!r} holds a {kind} of Hugging Face, which this command cannot run: "
            "open it with AutoModelForCausalLM of transformers, or give the folder of a run of seqmix's own models"
        )
    if kind != SeqmixConfig.model_type:
        raise InputError(f"{str(folder)!r} holds a model of type {kind!r}, not of seqmix: give the folder of a run")
    try:
        return SeqmixConfig.from_dict(document)
    except InputError as error:
        path = str(folder / "config.json")
        raise InputError(f"{path!r} is of another version of seqmix ({error}): use that version") from error


def _read_document(folder: Path) -> dict[str, Any]:
    """config.json of a run, of whatever model."""
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
        document.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is damaged or cannot be read: give the folder of a run") from error
    return document
