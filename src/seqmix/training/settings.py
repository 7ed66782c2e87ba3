"""What a training run is told: one frozen dataclass, checked field by field, from Python, YAML or the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from seqmix.data import check_context, is_task, natural_context
from seqmix.errors import InputError, unknown_name
from seqmix.models.sizing import parse_size

BUDGETS = ("tokens", "seconds")
PRECISIONS = ("float32", "bfloat16")
PARALLEL = ("none", "ddp", "fsdp")

_SIZES = {"params", "tokens", "evaluate_tokens", "final_evaluate_tokens"}
_AT_LEAST_ONE = _SIZES | {"context", "batch_size", "accumulate", "threads"}
_POSITIVE = {"seconds", "learning_rate", "clip", "evaluate_every", "stop_at_accuracy"}
_NOT_NEGATIVE = {"weight_decay", "checkpoint_every_seconds", "seed"}
_SHARES = {"warmup_share", "min_lr_share", "evaluate_every", "stop_at_accuracy"}
MAY_CHANGE = {"out", "checkpoint_every_seconds", "tensorboard", "parallel", "imports"}
"""Settings that a resumed run may be given anew: they change no number, beyond the order of sums."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides a training run. Wrong types and values raise an InputError that names the field.

    data, valid, tokenizer: the corpus, as `seqmix.data.load_corpus` takes them.
    model, params, context, options: the model, as `seqmix.models.create_model` takes them. The context may be left
        out: it is then that of a synthetic task's rows, else 256.
    out: the run folder.
    tokens, seconds: the budget, exactly one: training tokens (whole batches, so slightly more may be
        read), or seconds spent in training steps (evaluations and checkpoints are not counted).
    batch_size: rows of `context` tokens in one optimizer step. accumulate: pieces a batch is computed in.
    learning_rate: the peak; None takes the rule that the model's preset states.
    warmup_share, min_lr_share: the share of the budget with a rising rate; the last rate over the peak.
    clip: the greatest norm of the gradient; None leaves it as it is.
    precision: "bfloat16" computes under autocast, with weights and optimizer in float32.
    device: "cpu", "cuda", "cuda:1", ...; None takes a GPU where there is one.
    evaluate_every: the share of the budget between two evaluations. evaluate_tokens: about how many held-out
        tokens (of a task: answers) those read, spread evenly. final_evaluate_tokens: how many the last one reads.
        None: all of them.
    stop_at_accuracy: an evaluation on the way that finds this accuracy of a synthetic task ends the training, whatever
        is left of the budget; None spends all of it.
    checkpoint_every_seconds: wall-clock time between checkpoints.
    parallel: how the processes that torchrun started share the work: "ddp" (every one holds the model), "fsdp" (every
        one holds a shard of it), or "none"; None is ddp. One process alone has nothing to share.
    threads: CPU threads; None leaves torch's choice. init_from: a run whose weights are taken at the start.
    imports: the files and modules that were imported for mixers of the user's own, for display: training imports none.
    """

    data: str
    model: str
    out: str
    valid: str | None = None
    tokenizer: str = "bytes"
    params: int | None = None
    context: int = None  # type: ignore[assignment]  # filled in from the data
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    seconds: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float | None = None
    warmup_share: float = 0.05
    min_lr_share: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    device: str | None = None
    parallel: str | None = None
    evaluate_every: float = 0.25
    evaluate_tokens: int | None = 131072
    final_evaluate_tokens: int | None = None
    stop_at_accuracy: float | None = None
    checkpoint_every_seconds: float = 60.0
    threads: int | None = None
    init_from: str | None = None
    tensorboard: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.context is None:
            object.__setattr__(self, "context", natural_context(self.data))
        hints = get_type_hints(type(self))
        for one in dataclasses.fields(self):
            value = _convert(one.name, getattr(self, one.name), hints[one.name])
            if value is not None:
                _check_range(one.name, value)
            object.__setattr__(self, one.name, value)
        if (self.tokens is None) == (self.seconds is None):
            raise InputError(
                f"the budget is tokens={self.tokens}, seconds={self.seconds}: give one of --tokens and --seconds"
            )
        check_context(self.data, self.context)
        if self.stop_at_accuracy is not None and not is_task(self.data):
            raise InputError(
                f"stop_at_accuracy is {self.stop_at_accuracy}, and {self.data!r} has no answers to count: "
                "leave it out, or train on a synthetic task such as mqar"
            )
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.parallel is not None and self.parallel not in PARALLEL:
            raise unknown_name("parallel", self.parallel, PARALLEL)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"a batch_size of {self.batch_size} cannot be split into accumulate={self.accumulate} equal pieces: "
                "choose a divisor"
            )

    @property
    def tokens_per_step(self) -> int:
        """The training tokens that one optimizer step reads."""
        return self.batch_size * self.context

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON and YAML can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas), "imports": list(self.imports)}


def _convert(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type, where that loses nothing."""
    kinds = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int:
        if name in _SIZES and isinstance(value, str):
            return parse_size(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
    if kind is float and not isinstance(value, bool):
        # YAML reads 3e-4 as a string, since it has no point.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if name == "betas" and isinstance(value, list | tuple) and len(value) == 2:
        return tuple(_convert("each of betas", beta, float) for beta in value)
    if name == "imports" and isinstance(value, list | tuple):
        return tuple(str(place) for place in value)
    if name == "options" and isinstance(value, Mapping):
        return {str(key): option for key, option in value.items()}
    expected = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    words = {"betas": "a pair of numbers", "options": "a mapping", "imports": "a list of names"}
    word = words.get(name) or expected[kind]
    raise InputError(f"{name} is {value!r}: it must be {word}")


def _check_range(name: str, value: Any) -> None:
    if name in _AT_LEAST_ONE and value < 1:
        raise InputError(f"{name} is {value}: it must be at least 1")
    if name in _POSITIVE and not 0 < value < float("inf"):
        raise InputError(f"{name} is {value}: it must be a number above 0")
    if name in _NOT_NEGATIVE and not 0 <= value < float("inf"):
        raise InputError(f"{name} is {value}: it must be at least 0")
    if name in _SHARES and not 0 <= value <= 1:
        raise InputError(f"{name} is {value}: it is a share and must lie between 0 and 1")
    if name == "betas" and not all(0 <= beta < 1 for beta in value):
        raise InputError(f"betas are {value}: each must be at least 0 and below 1")


def settings_from(values: Mapping[str, Any]) -> TrainSettings:
    """TrainSettings from a mapping; unknown and missing keys raise an InputError."""
    known = {one.name: one for one in dataclasses.fields(TrainSettings)}
    for key in values:
        if key not in known:
            raise unknown_name("setting", key, known)
    for name, one in known.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and values.get(name) is None:
            raise InputError(f"{name} is missing: give --{name}, or write it in the --config file")
    return TrainSettings(**values)


def gather_values(
    config: str | os.PathLike[str] | None, assignments: Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of a YAML file, of `key=value` assignments and of the command line, the later ones winning.

    An assignment to `options.NAME` sets one option of the model. A budget given later replaces one
    given earlier, also when it is of the other kind.
    """
    values = _read_yaml(config) if config else {}
    for layer in (_read_assignments(assignments), given):
        values = lay_over(values, layer)
    return values


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of values; where both have one, that of `above`. Model options are joined one by one."""
    values = dict(below)
    if any(above.get(budget) is not None for budget in BUDGETS):
        for budget in BUDGETS:
            values.pop(budget, None)
    options = {**(values.get("options") or {}), **(above.get("options") or {})}
    return {**values, **above, **({"options": options} if options else {})}


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the settings file {os.fspath(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise InputError(f"the settings file {os.fspath(path)!r} is not valid YAML: {first}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"the settings file {os.fspath(path)!r} holds {values!r}: it must hold lines of `key: value`")
    if not isinstance(values.get("options", {}), dict | NoneType):
        raise InputError(f"options is {values['options']!r} in {os.fspath(path)!r}: it must be a mapping")
    return {str(key): value for key, value in values.items()}


def _read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment!r} has no key or no value: write --set key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment!r}: the value is not valid YAML, put it in quotes") from error
        if key.startswith("options."):
            values.setdefault("options", {})[key.removeprefix("options.")] = value
        else:
            values[key] = value
    return values


def first_difference(stored: Mapping[str, Any], settings: TrainSettings) -> tuple[str, Any, Any] | None:
    """(name, stored value, new value) of the first setting that a resumed run must not change, or None."""
    for name, value in settings.to_dict().items():
        if name not in MAY_CHANGE and name in stored and stored[name] != value:
            return name, stored[name], value
    return None
