"""The conformance kit itself: what it must reject, how it reports, and how exceptions are kept honest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from broken_answers import LooksAhead, MatrixOfAnotherScale
from broken_mixers import BROKEN
from good_mixers import Attending, Banded, Gated
from sharing_mixers import Sharing
from vacuous_mixers import VACUOUS

from seqmix.conformance import CHECKS, CheckResult, check_mixer, parametrize_with_checks, run_checks, summarize
from seqmix.errors import InputError
from seqmix.mixer import Mixer
from seqmix.mixers.attention.attention import Attention
from seqmix.mixers.convolution import DepthwiseConv, GatedConv
from seqmix.mixers.recurrent.lstm import LSTM

# Compiling takes longer than all other checks together, so it is run only where it is to be rejected.
QUICK = [name for name in CHECKS if name != "compiles"]


def failures(results: Sequence[CheckResult]) -> dict[str, str]:
    return {result.check: result.message for result in results if result.status != "passed"}


@pytest.mark.parametrize("good", [Gated, Banded, Attending, Sharing])
def test_what_the_broken_mixers_are_made_from_passes(good: type[Mixer]) -> None:
    assert failures(check_mixer(good)) == {}


def test_there_is_a_broken_mixer_for_every_check() -> None:
    assert set(BROKEN) == set(CHECKS)
    assert all(BROKEN.values())


@pytest.mark.parametrize(
    ("check", "broken", "also"),
    [
        pytest.param(check, broken, also, id=f"{check}-{broken.__name__}")
        for check, mixers in BROKEN.items()
        for broken, also in mixers.items()
    ],
)
def test_a_broken_mixer_is_rejected_by_its_check(check: str, broken: type[Mixer], also: set[str]) -> None:
    found = failures(check_mixer(broken, checks=CHECKS if check == "compiles" else QUICK))
    assert set(found) == {check, *also}
    assert all(found.values())


@pytest.mark.parametrize("stranger", VACUOUS)
def test_an_identity_around_a_hidden_forward_is_rejected(stranger: type[Mixer]) -> None:
    results = check_mixer(stranger, checks=["values_are_local", "matrix_reproduces_forward", "readout_is_positionwise"])
    assert summarize(results) == {
        "values_are_local": "failed",
        "matrix_reproduces_forward": "passed",
        "readout_is_positionwise": "passed",
    }


def test_checks_that_do_not_apply_are_left_out() -> None:
    without_state = check_mixer(DepthwiseConv, examples=[(5, {"causal": False})], checks=QUICK)
    left_out = {"forward_equals_steps", "pieces_equal_whole", "causality"}
    assert {result.check for result in without_state} == set(QUICK) - left_out
    jacobian = check_mixer(LSTM, examples=[(4, {})], checks=QUICK)
    assert {result.check for result in jacobian} == set(QUICK) - {
        "values_are_local",
        "readout_is_positionwise",
        "head_spans_by_gradient",
    }


def test_a_cross_mixer_is_checked_with_and_without_its_second_sequence() -> None:
    results = check_mixer(Attention, examples=[(6, {"heads": 2})], checks=["matrix_reproduces_forward", "causality"])
    assert [(result.check, result.example) for result in results] == [
        ("matrix_reproduces_forward", "dim=6, heads=2"),
        ("matrix_reproduces_forward", "dim=6, heads=2, with memory"),
        ("causality", "dim=6, heads=2"),
    ]


def test_a_mixer_that_cannot_be_built_fails_every_check() -> None:
    results = check_mixer(GatedConv, examples=[(6, {"kernel": 0})])
    assert {result.check for result in results} == set(CHECKS)
    assert {result.status for result in results} == {"failed"}
    assert "kernel is 0" in results[0].message


def test_an_error_inside_a_mixer_is_reported_with_its_place() -> None:
    class Raises(GatedConv):
        def links(self, time: int) -> Any:
            raise KeyError("nothing here")

    found = failures(check_mixer(Raises, examples=[(6, {})], checks=["links_by_gradient", "flops"]))
    assert list(found) == ["links_by_gradient"]
    assert "KeyError" in found["links_by_gradient"]
    assert "test_conformance.py" in found["links_by_gradient"]


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'causality'"):
        check_mixer(GatedConv, checks=["casuality"])


def key(broken: type[Mixer], check: str) -> tuple[str, str]:
    return f"{broken.__module__}:{broken.__qualname__}", check


def test_a_listed_failure_is_expected() -> None:
    table = {key(MatrixOfAnotherScale, "matrix_reproduces_forward"): "shown on purpose"}
    results = check_mixer(MatrixOfAnotherScale, checks=["matrix_reproduces_forward", "flops"], exceptions=table)
    assert summarize(results) == {"matrix_reproduces_forward": "expected failure", "flops": "passed"}
    assert results[0].message.startswith("shown on purpose: readout")


def test_a_listed_exception_that_passes_is_a_failure() -> None:
    table = {key(GatedConv, "flops"): "once it was wrong"}
    results = check_mixer(GatedConv, checks=["flops"], exceptions=table)
    assert {result.status for result in results} == {"failed"}
    assert "once it was wrong" in results[0].message
    assert "remove the entry" in results[0].message


def test_an_exception_may_concern_some_examples_only() -> None:
    class HalfBroken(MatrixOfAnotherScale):
        def mixing(self, x: Any) -> Any:
            return super().mixing(x) if self.config.bias else GatedConv.mixing(self, x)

    table = {key(HalfBroken, "matrix_reproduces_forward"): "with a bias"}
    examples: list[tuple[int, Mapping[str, Any]]] = [(6, {"bias": True}), (6, {"bias": False})]
    results = check_mixer(HalfBroken, examples=examples, checks=["matrix_reproduces_forward"], exceptions=table)
    assert [result.status for result in results] == ["expected failure", "passed"]


def test_the_summary_takes_the_worst_of_all_examples() -> None:
    def result(status: Any) -> CheckResult:
        return CheckResult(check="flops", example="", status=status)

    assert summarize([result("failed"), result("passed")]) == {"flops": "failed"}
    assert summarize([result("passed"), result("expected failure")]) == {"flops": "expected failure"}
    assert summarize([result("passed"), result("passed")]) == {"flops": "passed"}


def test_registered_mixers_are_run_by_name() -> None:
    results = run_checks(["gated_conv", "pool"], checks=["flops"])
    assert {name: summarize(found) for name, found in results.items()} == {
        "gated_conv": {"flops": "passed"},
        "pool": {"flops": "passed"},
    }


def test_parametrized_checks_raise_with_the_example_and_the_reason() -> None:
    cases = {case.id: case for case in parametrize_with_checks([LooksAhead, GatedConv]).args[1]}
    assert set(cases) == {f"{name}-{check}" for name in ("LooksAhead", "GatedConv") for check in CHECKS}
    broken, check = cases["LooksAhead-causality"].values
    with pytest.raises(AssertionError, match=r"causality of LooksAhead .*the later input"):
        check(broken)
    good, check = cases["GatedConv-causality"].values
    check(good)


def test_results_do_not_depend_on_the_callers_random_numbers() -> None:
    import torch

    torch.manual_seed(1)
    first = check_mixer(LooksAhead, checks=["forward_equals_steps"])
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert check_mixer(LooksAhead, checks=["forward_equals_steps"]) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert dataclasses.asdict(first[0])["status"] == "failed"
