"""The beginning of a comparison: is the folder fit, what shapes and budgets, and the results before any training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqmix.compare.held_equal import decode_money, matched
from seqmix.compare.matching import ContenderPlan, MeasureSeconds, config_of, plan_budgets, plan_shapes
from seqmix.compare.prices import Prices
from seqmix.compare.results import FORMAT, Contender, Results, Trial, new_contender, read_results
from seqmix.compare.settings import CompareSettings, command_line, first_difference
from seqmix.data import Corpus, is_task
from seqmix.errors import InputError
from seqmix.training import TrainSettings
from seqmix.training.environment import describe_environment

TRIAL_SHARE = 0.2
"""The share of the budget that a trial of a learning rate gets."""

EVALUATE_EVERY = 0.25
EVALUATE_EVERY_TO_STOP = 0.05
"""The share of the budget between two evaluations; they come more often where one of them may end the training."""

TRIAL_RATIO = 2.0
"""Neighbouring learning rates of the trials."""


def stored_results(folder: Path, settings: CompareSettings) -> Results | None:
    """The results that a folder holds, of the same settings; None where a comparison can begin.

    Raises:
        InputError: a comparison of other settings, naming the first; or something else is there.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: choose another --out")
    results = read_results(folder)
    if results is None:
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise InputError(f"{str(folder)!r} holds files that are not a comparison: choose an empty or new --out")
        return None
    difference = first_difference(results["settings"], settings)
    if difference is not None:
        name, stored, given = difference
        raise InputError(
            f"{str(folder)!r} holds a comparison with {name} {_shown(stored)}, not {_shown(given)}: "
            "give the same settings or choose another --out"
        )
    return results


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else repr(value)


def begin(
    settings: CompareSettings,
    folder: Path,
    corpus: Corpus,
    prices: Prices,
    device: str,
    measure_seconds: MeasureSeconds,
) -> Results:
    """The results of a comparison in which nothing has been trained yet; writes nothing.

    Args:
        measure_seconds: times the generation of a token, for the matches that need it.

    Raises:
        InputError: a size or a budget that cannot be reached.
    """
    plans = plan_shapes(settings, corpus.vocab_size, measure_seconds)
    serving: dict[str, float] | None = None
    if settings.match == "total-money":
        configs = [config_of(plan, corpus.vocab_size, settings.context) for plan in plans]
        seconds = dict(zip(settings.models, measure_seconds(configs), strict=True))
        serving = decode_money(seconds, prices.per_hour)
    plans = plan_budgets(plans, settings, prices.per_hour, serving)
    for plan in plans:
        # Training would refuse these settings too, but only after the first models have been trained.
        train_settings(settings, plan, folder, seed=0)
    environment = describe_environment(device)
    if settings.threads is not None:
        environment["threads"] = settings.threads
    results: Results = {
        "format": FORMAT,
        "status": "running",
        "command": command_line(settings, str(folder)),
        "settings": settings.to_dict(),
        "environment": environment,  # type: ignore[typeddict-item]
        "prices": prices.to_dict(),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "tokenizer": settings.tokenizer,
            "vocab_size": corpus.vocab_size,
            "train_bytes": corpus.train_bytes,
            "train_tokens": corpus.train_tokens,
            "valid_bytes": corpus.valid_bytes,
            "valid_tokens": corpus.valid_tokens,
            "notes": list(corpus.notes),
            "evaluated_tokens": min(settings.evaluate_tokens or corpus.valid_targets, corpus.valid_targets),
        },
        "plans": [dataclasses.asdict(plan) for plan in plans],
        "matched": {"quantity": "", "unit": "", "target": None, "spread": None, "tolerance": None, "reached": {}},
        "not_matched": [],
        "models": [],
        "contenders": [
            _contender(plan, seed, file_name(plan.model, settings.models))
            for seed in range(settings.seeds)
            for plan in plans
        ],
        "tuning": [trial for rank in range(settings.tune) for trial in _trials(plans, settings.tune, rank)],
        "comparisons": [],
        "crossovers": [],
        "verdict": [],
        "notes": [] if is_task(settings.data) else _notes(plans),
    }
    results["matched"] = matched(settings, plans, results)
    return results


def _notes(plans: Sequence[ContenderPlan]) -> list[str]:
    """What every reader of the results should know of the models, in sentences."""
    return [
        f"{plan.model} does not keep packed documents apart: in training and evaluation it reads on across their "
        "borders."
        for plan in plans
        if not plan.separates_documents
    ]


def file_name(model: str, models: Sequence[str]) -> str:
    """The name of a model as a part of paths, different for each of `models`."""
    names = [re.sub(r"[^\w.=+-]+", "-", one).strip("-.")[-80:] for one in models]
    place = list(models).index(model)
    same = [index for index, name in enumerate(names) if name == names[place]]
    return names[place] if len(same) == 1 else f"{names[place]}-{same.index(place) + 1}"


def _contender(plan: ContenderPlan, seed: int, name: str) -> Contender:
    return {
        **new_contender(plan.model, seed, f"runs/{name}-{seed}"),
        "parameters": plan.parameters,
        "total_parameters": plan.total_parameters,
        "width": plan.width,
        "depth": plan.depth,
        "is_reach_known": plan.is_reach_known,
        "flops_per_token": plan.flops_per_token,
        "learning_rate": plan.learning_rate,
        "receptive_field": plan.receptive_field,
        "positions_seen": plan.positions_seen,
        "path_length": plan.path_length,
    }


def _trials(plans: Sequence[ContenderPlan], count: int, rank: int) -> list[Trial]:
    """One trial of each model: rank 0 has the lowest rate, and the preset's own rate is in the middle."""
    factor = TRIAL_RATIO ** (rank - (count - 1) / 2)
    return [
        {
            "model": plan.model,
            "learning_rate": float(f"{plan.learning_rate * factor:.4g}"),
            "status": "pending",
            "error": None,
            "tokens": None,
            "train_seconds": None,
            "train_money": None,
            "bits_per_byte": None,
            "chosen": False,
        }
        for plan in plans
    ]


def stored_plans(results: Results) -> list[ContenderPlan]:
    """The plans that a comparison was begun with."""
    return [ContenderPlan(**plan) for plan in results["plans"]]


def train_settings(
    settings: CompareSettings,
    plan: ContenderPlan,
    out: Path,
    *,
    seed: int,
    learning_rate: float | None = None,
    share: float = 1.0,
) -> TrainSettings:
    """The training of one contender, or with a `share` of the budget of a trial."""
    step = settings.batch_size * settings.context
    stop = settings.stop_at_accuracy
    return TrainSettings(
        data=settings.data,
        valid=settings.valid,
        tokenizer=settings.tokenizer,
        model=plan.model,
        params=None,
        context=settings.context,
        options=plan.shape,
        tokens=None if plan.tokens is None else max(step, round(plan.tokens * share)),
        seconds=None if plan.seconds is None else plan.seconds * share,
        batch_size=settings.batch_size,
        learning_rate=plan.learning_rate if learning_rate is None else learning_rate,
        seed=seed,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        imports=settings.imports,
        evaluate_every=1.0 if share < 1 else EVALUATE_EVERY if stop is None else EVALUATE_EVERY_TO_STOP,
        stop_at_accuracy=stop if share == 1 else None,
        evaluate_tokens=settings.evaluate_tokens,
        final_evaluate_tokens=settings.evaluate_tokens,
        out=str(out),
    )
