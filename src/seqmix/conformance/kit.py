"""Which checks there are, which apply to a mixer, and how they are run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from seqmix.conformance.costs import flops, state_bytes
from seqmix.conformance.documents import packed_equals_separate
from seqmix.conformance.exceptions import EXCEPTIONS
from seqmix.conformance.heads import head_spans_by_gradient
from seqmix.conformance.matrix import (
    links_by_gradient,
    matrix_reproduces_forward,
    readout_is_positionwise,
    values_are_local,
)
from seqmix.conformance.numerics import compiles, gradcheck, low_precision
from seqmix.conformance.reach import causality, receptive_field_by_gradient
from seqmix.conformance.round_trips import config_round_trip, state_dict_round_trip
from seqmix.conformance.rows import batch_invariance, odd_sizes, repeatable_and_pure
from seqmix.conformance.streaming import forward_equals_steps, pieces_equal_whole
from seqmix.conformance.subject import CheckFailure, Subject, label
from seqmix.errors import unknown_name
from seqmix.mixer import Mixer, Traits

Status = Literal["passed", "failed", "expected failure"]
Example = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check and the mixers it is for.

    run: raises where the mixer does not keep its promise. applies: whether it makes sense for these traits.
    crosses: whether a cross mixer passes it a second time, with a second sequence for its keys and values.
    first_only: whether it is run on the first example alone, because it is slow and options change little.
    """

    run: Callable[[Subject], None]
    applies: Callable[[Traits], bool]
    crosses: bool = False
    first_only: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found for one example; the message is empty where it passed."""

    check: str
    example: str
    status: Status
    message: str = ""


def _always(traits: Traits) -> bool:
    return True


def _plain(traits: Traits) -> bool:
    return not traits.resamples


def _streams(traits: Traits) -> bool:
    return _plain(traits) and traits.causal


def _exact(traits: Traits) -> bool:
    return traits.matrix == "exact"


_CHECKS: dict[str, Check] = {
    "forward_equals_steps": Check(run=forward_equals_steps, applies=_streams),
    "pieces_equal_whole": Check(run=pieces_equal_whole, applies=_streams),
    "matrix_reproduces_forward": Check(run=matrix_reproduces_forward, applies=_always, crosses=True),
    "readout_is_positionwise": Check(
        run=readout_is_positionwise, applies=lambda traits: _exact(traits) and _plain(traits), crosses=True
    ),
    "values_are_local": Check(run=values_are_local, applies=_exact, crosses=True),
    "causality": Check(run=causality, applies=_streams),
    "links_by_gradient": Check(run=links_by_gradient, applies=_plain),
    "receptive_field_by_gradient": Check(run=receptive_field_by_gradient, applies=_always),
    "head_spans_by_gradient": Check(run=head_spans_by_gradient, applies=_exact),
    "packed_equals_separate": Check(run=packed_equals_separate, applies=_plain),
    "batch_invariance": Check(run=batch_invariance, applies=_always, crosses=True),
    "odd_sizes": Check(run=odd_sizes, applies=_always, crosses=True),
    "repeatable_and_pure": Check(run=repeatable_and_pure, applies=_always, crosses=True),
    "gradcheck": Check(run=gradcheck, applies=_always, crosses=True),
    "state_bytes": Check(run=state_bytes, applies=_plain),
    "flops": Check(run=flops, applies=_always),
    "config_round_trip": Check(run=config_round_trip, applies=_always),
    "state_dict_round_trip": Check(run=state_dict_round_trip, applies=_always),
    "compiles": Check(run=compiles, applies=_always, crosses=True, first_only=True),
    "low_precision": Check(run=low_precision, applies=_always, crosses=True),
}

CHECKS: tuple[str, ...] = tuple(_CHECKS)
"""The names of all checks, in the order in which they are run."""


def _run(check: Check, mixer_class: type[Mixer], example: Example, with_memory: bool) -> str | None:
    """What is wrong with one example, None where nothing is; a check that does not apply raises _NotApplicable."""
    try:
        subject = Subject(mixer_class, *example, with_memory=with_memory)
        applies = check.applies(subject.traits) and (not with_memory or (check.crosses and subject.traits.cross))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's class raises is a finding
        return f"it cannot be built: {_describe(error)}"
    if not applies:
        raise _NotApplicable
    try:
        check.run(subject)
    except CheckFailure as failure:
        return str(failure)
    except Exception as error:  # noqa: BLE001 - the same
        return _describe(error)
    return None


class _NotApplicable(Exception):
    pass


def _describe(error: Exception) -> str:
    """An unforeseen error with the place it comes from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({place.filename}:{place.lineno})"


def check_mixer(
    mixer_class: type[Mixer],
    *,
    examples: Sequence[Example] | None = None,
    checks: Iterable[str] | None = None,
    exceptions: Mapping[tuple[str, str], str] | None = None,
) -> list[CheckResult]:
    """Holds a mixer class to the contract.

    Args:
        mixer_class: the class; it need not be registered.
        examples: (dim, options) pairs; None takes the class's own. Each must take sequences of 100 positions.
        checks: names from CHECKS; None runs all.
        exceptions: ("module:Class", check) to the reason why its failure is accepted; None takes seqmix's table.

    Returns:
        One result for each check that applies and each example. A failure that is listed as an exception is
        an "expected failure"; a listed exception none of whose examples fails is "failed".
    """
    table = EXCEPTIONS if exceptions is None else exceptions
    names = list(CHECKS) if checks is None else list(checks)
    chosen = list(mixer_class.examples() if examples is None else examples)
    results = []
    for name in names:
        if name not in _CHECKS:
            raise unknown_name("check", name, CHECKS)
        check = _CHECKS[name]
        reason = table.get((f"{mixer_class.__module__}:{mixer_class.__qualname__}", name))
        results += _check(name, check, mixer_class, chosen, reason)
    return results


def _check(
    name: str, check: Check, mixer_class: type[Mixer], examples: Sequence[Example], reason: str | None
) -> list[CheckResult]:
    found: list[tuple[str, str | None]] = []
    for dim, options in examples:
        for with_memory in (False, True) if check.crosses else (False,):
            try:
                problem = _run(check, mixer_class, (dim, options), with_memory)
            except _NotApplicable:
                continue
            found.append((label(options, dim) + (", with memory" if with_memory else ""), problem))
        if check.first_only and found:
            break
    if reason is None:
        return [
            CheckResult(
                check=name, example=example, status="passed" if problem is None else "failed", message=problem or ""
            )
            for example, problem in found
        ]
    if all(problem is None for _, problem in found):
        message = f"it is listed as an exception ({reason}), but it passes: remove the entry"
        return [CheckResult(check=name, example=example, status="failed", message=message) for example, _ in found]
    return [
        CheckResult(check=name, example=example, status="passed")
        if problem is None
        else CheckResult(check=name, example=example, status="expected failure", message=f"{reason}: {problem}")
        for example, problem in found
    ]


def run_checks(names: Iterable[str], *, checks: Iterable[str] | None = None) -> dict[str, list[CheckResult]]:
    """The results of `check_mixer` for mixers by their registered names."""
    from seqmix.mixers import mixer_class

    chosen = None if checks is None else list(checks)
    return {name: check_mixer(mixer_class(name), checks=chosen) for name in names}


def parametrize_with_checks(mixer_classes: Iterable[type[Mixer]]) -> Any:
    """A pytest decorator that runs a test for every mixer class and every check that applies to it.

    The test takes `mixer_class` and `check`, and calls `check(mixer_class)`, which raises an AssertionError
    that names the examples that fail:

        @parametrize_with_checks([MyMixer])
        def test_contract(mixer_class, check):
            check(mixer_class)
    """
    import pytest

    cases = []
    for mixer_class in mixer_classes:
        for name, check in _CHECKS.items():
            if _applies(check, mixer_class):
                run = partial(_assert_passes, name)
                cases.append(pytest.param(mixer_class, run, id=f"{mixer_class.__name__}-{name}"))
    return pytest.mark.parametrize("mixer_class, check", cases)


def _applies(check: Check, mixer_class: type[Mixer]) -> bool:
    """Whether a check applies to any example; a class that cannot be built gets every check, and fails it."""
    try:
        return any(check.applies(Subject(mixer_class, *example).traits) for example in mixer_class.examples())
    except Exception:  # noqa: BLE001 - the check itself then reports it
        return True


def _assert_passes(name: str, mixer_class: type[Mixer]) -> None:
    failures = [result for result in check_mixer(mixer_class, checks=[name]) if result.status == "failed"]
    text = "\n".join(f"{name} of {mixer_class.__name__} ({result.example}): {result.message}" for result in failures)
    if failures:
        raise AssertionError(text)


def summarize(results: Iterable[CheckResult]) -> dict[str, Status]:
    """The status of each check over all examples: failed where any failed, then expected failure, then passed."""
    order: list[Status] = ["passed", "expected failure", "failed"]
    summary: dict[str, Status] = {}
    for result in results:
        worst = max(order.index(result.status), order.index(summary.get(result.check, "passed")))
        summary[result.check] = order[worst]
    return summary


__all__ = ["CHECKS", "CheckResult", "check_mixer", "parametrize_with_checks", "run_checks", "summarize"]
