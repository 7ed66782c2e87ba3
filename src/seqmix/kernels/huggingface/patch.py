"""Puts our forms in the place of transformers' functions, and takes them out again.

Since 5.17 a model of transformers calls its convolution and its scan through functions of its modeling file, each
wrapped so that a package for GPUs is used where one is installed, and slow torch with a warning where not. A call
looks such a function up when it happens, so a replacement serves models that were made before and after it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

from seqmix.kernels.huggingface.forms import FORMS, causal_conv1d_fn_of_one_document

KNOWN_VERSIONS = "5.17 to 5.23"
NOT_SERVED = {
    "minimax": "its attention is a method of a class, in blocks of matrix products",
    "rwkv": "its recurrence is of another kind, with a running maximum",
    "xlstm": "its recurrence is of another kind, with a running maximum",
}
"""Models with a recurrence that no form of ours stands for, and why."""
DELTA_RULES = {name for name in FORMS if "delta" in name}


_OURS: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class _Replaced(NamedTuple):
    owner: ModuleType | type
    name: str
    original: Callable[..., Any]
    ours: Callable[..., Any]


class TransformersPatch:
    """What `patch_transformers` has replaced; leaving it as a context, or `undo()`, puts everything back.

    patched: by model type, the functions of its modeling file that ours stand for.
    not_patched: by model type, why it, or a part of it, runs as before.
    """

    def __init__(self) -> None:
        self.patched: dict[str, tuple[str, ...]] = {}
        self.not_patched: dict[str, str] = {}
        self._replaced: list[_Replaced] = []

    def undo(self) -> None:
        """Puts the originals back, once; what somebody else has replaced since stays as it is."""
        while self._replaced:
            owner, name, original, ours = self._replaced.pop()
            if vars(owner)[name] is ours:
                setattr(owner, name, original)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"TransformersPatch(patched={sorted(self.patched)})"


def patch_transformers(model_types: Iterable[str] | None = None) -> TransformersPatch:
    """Runs the convolutions and scans of transformers' models on our kernels, for tensors on a CPU.

    Serves Mamba, Mamba-2, FalconMamba, FalconH1, Jamba, Bamba, Zamba, Zamba2, GraniteMoeHybrid, NemotronH and LFM2
    whole, RecurrentGemma's recurrence, and the convolutions of the models with a gated delta rule (Qwen3-Next,
    OLMo-hybrid, Kimi-Linear, ...): whichever the installed transformers has. Outputs and gradients are the same up to
    rounding, packed documents (`seq_idx`) work where the scan is Mamba-2's, and no message says that a slow path is
    taken. Models made before and after are served.

        with patch_transformers() as patch:
            model.generate(...)
        print(patch.patched)

    Args:
        model_types: the ones to serve, such as ("mamba2", "lfm2"); None for all.

    Returns:
        What has been replaced, by model type. As a context manager it is undone at the end; else `undo()` does so.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a model type that transformers does not have, or that has nothing to replace.
    """
    patch = TransformersPatch()
    wanted = None if model_types is None else set(model_types)
    strange: list[str] = []
    for model_type, module_name, names in _modeling_files():
        if wanted is not None:
            if model_type not in wanted:
                continue
            wanted.discard(model_type)
        _patch_model(patch, model_type, module_name, names, strange)
    if wanted:
        patch.undo()
        raise ValueError(
            f"model type {sorted(wanted)[0]!r} has nothing to patch: choose from "
            f"{', '.join(model_type for model_type, _, _ in _modeling_files())}"
        )
    for model_type, reason in NOT_SERVED.items():
        if model_types is None and importlib.util.find_spec(f"transformers.models.{model_type}") is not None:
            patch.not_patched[model_type] = reason
    if strange or not patch.patched:
        version = importlib.import_module("transformers").__version__
        what = f"{', '.join(strange[:5])} and {len(strange) - 5} more" if len(strange) > 5 else ", ".join(strange)
        warnings.warn(
            f"transformers {version} differs from the versions that seqmix knows ({KNOWN_VERSIONS}): "
            f"{what or 'every function'} stays as it is and runs at transformers' own speed",
            stacklevel=2,
        )
    return patch


def _patch_model(
    patch: TransformersPatch, model_type: str, module_name: str, names: list[str], strange: list[str]
) -> None:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        patch.not_patched[model_type] = f"{module_name} cannot be imported: {error}"
        return
    done = []
    for name in names:
        form, parameters = FORMS[name]
        if name == "causal_conv1d_fn" and "mamba_selective_scan" in names:
            form = causal_conv1d_fn_of_one_document
        of_class, _, attribute = name.rpartition(".")
        owner = vars(module).get(of_class) if of_class else module
        original = None if owner is None else vars(owner).get(attribute)
        if owner is None or original is None or not _begins_with(original, parameters):
            strange.append(f"{model_type}.{name}")
            patch.not_patched[model_type] = f"{name} has another signature than the one that is known"
            continue
        done.append(name)
        if original in _OURS:
            continue
        ours = form(original)
        _OURS.add(ours)
        setattr(owner, attribute, ours)
        patch._replaced.append(_Replaced(owner, attribute, original, ours))
    if done:
        patch.patched[model_type] = tuple(name for name in done if name not in DELTA_RULES)
    if DELTA_RULES.intersection(done):
        patch.not_patched.setdefault(model_type, "its delta rule keeps transformers' own form, without the warning")


def _modeling_files() -> Iterator[tuple[str, str, list[str]]]:
    """(model type, module, names of functions to replace) for every modeling file of transformers that has one."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("transformers is not installed: install it with `pip install transformers`")
    root = Path(next(iter(found.submodule_search_locations))) / "models"
    functions, classes = [name for name in FORMS if "." not in name], [name for name in FORMS if "." in name]
    pattern = re.compile(rf"^def ({'|'.join(functions)})\(", re.MULTILINE)
    for path in sorted(root.glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        names = pattern.findall(text) + [name for name in classes if f"\nclass {name.partition('.')[0]}(" in text]
        if names:
            yield path.parent.name, f"transformers.models.{path.parent.name}.{path.stem}", names


def _begins_with(function: Callable[..., Any], parameters: tuple[str, ...]) -> bool:
    try:
        found = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return found[: len(parameters)] == parameters
