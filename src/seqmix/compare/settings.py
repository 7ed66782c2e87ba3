"""What a comparison is told: one frozen dataclass, checked before anything is read, trained or written."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from seqmix.data.stream import natural_context
from seqmix.errors import InputError, unknown_name

MATCHES = ("params", "flops", "train-flops", "train-seconds", "train-money", "decode-money", "total-money")
BUDGETS = ("tokens", "minutes", "money", "flops")

ALLOWED_BUDGETS = {
    "train-flops": ("flops", "tokens"),
    "train-seconds": ("minutes",),
    "train-money": ("money", "minutes"),
    "total-money": ("money",),
}
"""The budgets of those matches that not every budget goes with."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a contender's training stops: `amount` of `kind` (tokens, minutes, money or flops)."""

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads KIND=AMOUNT, such as tokens=2M or minutes=1.5."""
        kind, equals, amount = text.partition("=")
        if not equals:
            raise InputError(f"budget {text!r} has no amount: write tokens=2M, minutes=5, money=0.5 or flops=1e15")
        if kind not in BUDGETS:
            raise unknown_name("budget", kind, BUDGETS)
        return cls(kind=kind, amount=parse_quantity("budget", amount))


_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_quantity(name: str, text: str) -> float:
    """A number above 0 with an optional k, M, B, G or T behind it; `name` is for the error."""
    digits = text.strip().replace("_", "")
    factor = _UNITS.get(digits[-1:].lower())
    try:
        value = float(digits[:-1]) * factor if factor else float(digits)
    except ValueError:
        raise InputError(f"{name} {text!r} is not a number: write one such as 2M, 0.5 or 1e15") from None
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {text}: it must be above 0")
    return value


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Everything that decides a comparison. Bad values raise an InputError that names the field.

    data, valid, tokenizer: the corpus, as `seqmix.data.load_corpus` takes them.
    models: presets and others, as `seqmix.models.contenders` names them, in the order of the report.
    match: what is held equal, one of `MATCHES`. budget: when training stops, such as "tokens=2M".
    params: non-embedding parameters of the first model or of all, such as "300k".
    seeds: runs of each model; run k of every model reads the same stream.
    tune: learning rates tried for each model at a share of the budget; 0 follows each preset's rule.
    context, batch_size: tokens in a row (None: those of a task's rows, else 256), rows in a step.
    price: money per hour; None takes that of the accelerator: a name that `seqmix plan` knows, for prices and
    accelerator-days; None goes by the device.
    serve_tokens: generated tokens that the total money covers (match "total-money").
    options: fields of the model config to replace, by model. evaluate_tokens: held-out tokens read at
    each evaluation; None reads all. stop_at_accuracy: ends a training that solves a synthetic task before its
    budget is spent. speed_seconds: to measure the speeds, for each model. threads, device,
    precision: as in TrainSettings. imports: files or modules of the user's that register mixers; whoever makes the
    settings has imported them, and the processes that train do so again.
    """

    data: str
    models: tuple[str, ...]
    match: str = "params"
    budget: str = "tokens=1M"
    params: str = "300k"
    seeds: int = 1
    tune: int = 0
    valid: str | None = None
    tokenizer: str = "bytes"
    context: int = None  # type: ignore[assignment]  # filled in from the data
    batch_size: int = 16
    price: float | None = None
    accelerator: str | None = None
    serve_tokens: float | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluate_tokens: int | None = 64_000
    stop_at_accuracy: float | None = None
    speed_seconds: float = 8.0
    threads: int | None = None
    device: str | None = None
    precision: str = "float32"
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "imports", tuple(self.imports))
        if self.context is None:
            object.__setattr__(self, "context", natural_context(self.data))
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, MATCHES)
        self._check_models()
        for name, least in (("seeds", 1), ("tune", 0), ("context", 2), ("batch_size", 1), ("evaluate_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}: it must be at least {least}")
        if self.tune == 1:
            raise InputError("tune is 1: one learning rate leaves no choice, give 0 or at least 2")
        if self.price is not None and not 0 < self.price < math.inf:
            raise InputError(f"price is {self.price}: give the money that an hour costs, above 0")
        if self.stop_at_accuracy is not None and not 0 < self.stop_at_accuracy <= 1:
            raise InputError(f"stop_at_accuracy is {self.stop_at_accuracy}: it must be above 0 and at most 1")
        if not 0 < self.speed_seconds < math.inf:
            raise InputError(f"speed_seconds is {self.speed_seconds}: it must be above 0")
        self._check_budget()

    def _check_models(self) -> None:
        from seqmix.models.contenders import check_contenders
        from seqmix.models.presets import list_models

        if not self.models:
            raise InputError(f"models is empty: name at least one of {', '.join(list_models())}")
        check_contenders(self.models)
        for model in self.options:
            if model not in self.models:
                raise unknown_name("model with options", model, self.models)

    def _check_budget(self) -> None:
        budget = Budget.parse(self.budget)
        allowed = ALLOWED_BUDGETS.get(self.match, BUDGETS)
        if budget.kind not in allowed:
            choices = " or ".join(f"{kind}=N" for kind in allowed)
            raise InputError(f"match {self.match!r} does not go with budget {self.budget!r}: give --budget {choices}")
        if self.match == "total-money":
            if self.serve_tokens is None or not 0 < self.serve_tokens < math.inf:
                given = self.serve_tokens
                raise InputError(f"serve_tokens is {given}: total-money needs --serve-tokens N above 0, such as 100M")
        elif self.serve_tokens is not None:
            raise InputError(f"serve_tokens has no effect on match {self.match!r}: use --match total-money")

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        values = dataclasses.asdict(self)
        options = {name: dict(given) for name, given in self.options.items()}
        return {**values, "models": list(self.models), "options": options, "imports": list(self.imports)}


def command_line(settings: CompareSettings, out: str) -> str:
    """The command that repeats the comparison."""
    words = ["seqmix", "compare"]
    defaults = {one.name: one.default for one in dataclasses.fields(settings)}
    for name, value in settings.to_dict().items():
        flag = f"--{name.replace('_', '-')}"
        if name == "models":
            words += [flag, ",".join(value)]
        elif name == "options":
            for model, options in value.items():
                for key, option in options.items():
                    words += ["--option", f"{model}.{key}={json.dumps(option)}"]
        elif name == "context" and value == natural_context(settings.data):
            continue
        elif name == "imports":
            words += [word for place in value for word in ("--import", place)]
        elif name == "evaluate_tokens" and value is None:
            words += [flag, "all"]
        elif value is not None and (name in ("match", "budget", "params") or value != defaults[name]):
            words += [flag, str(value)]
    return shlex.join([*words, "--out", out])


def first_difference(stored: Mapping[str, Any], settings: CompareSettings) -> tuple[str, Any, Any] | None:
    """(name, stored value, new value) of the first setting that differs, or None."""
    for name, value in settings.to_dict().items():
        # Where the user's files lie decides nothing.
        if name != "imports" and stored.get(name) != value:
            return name, stored.get(name), value
    return None


def parse_options(assignments: Sequence[str], models: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Reads MODEL.KEY=VALUE assignments (values in YAML) into options by model.

    Args:
        models: names that may hold dots and equals signs themselves.
    """
    options: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        named = max((model for model in models if assignment.startswith(f"{model}.")), key=len, default="")
        place, equals, text = assignment[len(named) :].partition("=")
        model, dot, key = place.partition(".")
        model = named or model
        if not (equals and dot and model and key):
            raise InputError(f"option {assignment!r} cannot be read: write MODEL.KEY=VALUE")
        try:
            options.setdefault(model, {})[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"option {assignment!r} has a value that is not valid YAML: put it in quotes") from error
    return options
