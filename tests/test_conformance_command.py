"""`seqmix check` and `python -m seqmix.conformance`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seqmix.cli.main import main

BROKEN = Path(__file__).with_name("broken_answers.py")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["check", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_is_one_document_with_a_status_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "gated_conv", "--only", "flops", "--only", "causality", "--json")
    assert status == 0
    assert json.loads(out) == {
        "mixers": {"gated_conv": {"flops": "passed", "causality": "passed"}},
        "passed": 2,
        "failed": 0,
    }


def test_a_file_of_the_users_is_checked_and_its_failure_explained(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{BROKEN}:LooksAhead"
    status, out, _ = run(capsys, name, "--only", "causality", "--only", "flops")
    assert status == 1
    assert "1 passed, 1 failed" in out
    assert "the output at 0 depends on the later input at 1" in out
    status, out, _ = run(capsys, name, "--only", "causality", "--json")
    assert status == 1
    assert json.loads(out) == {"mixers": {name: {"causality": "failed"}}, "passed": 0, "failed": 1}


def test_a_class_in_a_module_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "seqmix.mixers.convolution:GatedConv", "--only", "flops", "--json")
    assert status == 0
    assert json.loads(out)["passed"] == 1


def test_all_means_every_registered_mixer(capsys: pytest.CaptureFixture[str]) -> None:
    from seqmix.mixers import list_mixers

    status, out, _ = run(capsys, "--all", "--only", "config_round_trip", "--json")
    assert list(json.loads(out)["mixers"]) == list_mixers()
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --all"),
        (("gated_conv", "--all"), "give --all"),
        (("gated_conf",), "did you mean 'gated_conv'"),
        (("nowhere.py:Mixer",), "there is no file"),
        ((f"{BROKEN}:Nothing",), "has no Mixer class 'Nothing'"),
        (("no.such.module:Mixer",), "cannot be imported"),
        (("gated_conv", "--only", "flop"), "did you mean 'flops'"),
    ],
)
def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_file_that_fails_to_import_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import seqmix\n1 / 0\n", encoding="utf-8")
    status, _, err = run(capsys, f"{file}:Mixer")
    assert status == 2
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


def test_the_module_runs_without_the_command_line() -> None:
    command = [sys.executable, "-m", "seqmix.conformance", "pool", "--only", "flops"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(line.split()[:3] == ["passed", "pool", "flops"] for line in done.stdout.splitlines())
    assert done.stdout
