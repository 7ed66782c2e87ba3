"""The frame of the command line: help, errors in one sentence, exit status, JSON on stdout and nothing else there."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

import seqmix
from seqmix.cli import main as frame
from seqmix.cli import output
from seqmix.cli.main import COMMANDS, Command, main
from seqmix.errors import InputError, SeqmixError


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Adds a function to the commands as `seqmix trial`."""

    def add(function: Callable[..., Any]) -> None:
        module = types.ModuleType("trial_command")
        module.trial = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trial_command", module)
        monkeypatch.setitem(frame.COMMANDS, "trial", Command("trial_command:trial", "for a test"))

    return add


def raising(error: BaseException) -> Callable[[], None]:
    def trial() -> None:
        raise error

    return trial


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", text, re.MULTILINE)


def test_no_command_shows_the_help_and_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"seqmix {seqmix.__version__}\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text or name == "train"
    assert f"seqmix {name}" in text.partition("Options")[0].partition("Usage")[2].partition("\n")[2], "no example"


@pytest.mark.parametrize(
    "words, near",
    [(["comprae"], "'compare'"), (["--versoin"], "'--version'"), (["evla"], "'eval'")],
)
def test_unknown_names_come_with_the_nearest(words: list[str], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"error: unknown (command|option) '{words[0]}': did you mean {near}\?\n", shown.err)


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["--cuont", "3"], r"error: no such option: --cuont \(Possible options: --count\); see seqmix trial --help\n"),
        (["--count", "many"], r"error: invalid value 'many' for '--count': .*integer.*; see seqmix trial --help\n"),
        (["--count=x"], r"error: invalid value 'x' for '--count': .*; see seqmix trial --help\n"),
        (["--count"], r"error: option '--count' requires an argument; see seqmix trial --help\n"),
        (["extra", "--count", "3"], r"error: .*extra.*; see seqmix trial --help\n"),
        ([], r"error: missing option '--count'; see seqmix trial --help\n"),
    ],
)
def test_usage_errors_are_one_sentence(
    words: list[str],
    pattern: str,
    add_command: Callable[[Callable[..., Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def trial(count: Annotated[int, typer.Option(help="How many.")]) -> None:
        pytest.fail("must not run")

    add_command(trial)
    assert main(["trial", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(pattern, shown.err), shown.err


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (InputError("size is -1:\n  give one above 0"), 2, "error: size is -1: give one above 0"),
        (SeqmixError("the loss is not a number"), 1, "error: the loss is not a number"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file"), 1, "error: no space left on device: a/file"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: permission denied: x"),
        (KeyError("k"), 1, "error: KeyError: 'k'; run again with --debug to see where"),
        (RuntimeError(), 1, "error: RuntimeError: no message; run again with --debug to see where"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line_and_an_exit_status(
    error: BaseException,
    status: int,
    sentence: str,
    add_command: Callable[[Callable[..., Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_command(raising(error))
    assert main(["trial"]) == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", sentence + "\n")


@pytest.mark.parametrize("words", [["--debug", "trial"], ["trial", "--debug"]])
def test_debug_lets_the_error_through(words: list[str], add_command: Callable[[Callable[..., Any]], None]) -> None:
    add_command(raising(InputError("a bad value")))
    with pytest.raises(InputError, match="a bad value"):
        main(words)


def test_debug_behind_two_dashes_belongs_to_the_command(
    add_command: Callable[[Callable[..., Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def trial(text: str) -> None:
        print(text)

    add_command(trial)
    assert main(["trial", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "--debug\n"


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_command_may_choose_its_exit_status(status: int, add_command: Callable[[Callable[..., Any]], None]) -> None:
    add_command(raising(typer.Exit(status)))
    assert main(["trial"]) == status


def test_the_process_ends_with_the_status_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "seqmix", "lits"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'lits': did you mean 'list'?\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = (
        "import sys\nfrom seqmix.cli import main as frame\n"
        "import types; m = types.ModuleType('m'); m.f = lambda: [print('x' * 1000) for _ in range(1000)] and None\n"
        "sys.modules['m'] = m; frame.COMMANDS['trial'] = frame.Command('m:f', '')\n"
        "sys.exit(frame.main(['trial']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert error == ""


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    code = (
        "import sys, time, types\nfrom seqmix.cli import main as frame\n"
        "def f() -> None:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "m = types.ModuleType('m'); m.f = f\n"
        "sys.modules['m'] = m; frame.COMMANDS['trial'] = frame.Command('m:f', '')\n"
        "sys.exit(frame.main(['trial']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_list_as_json_is_one_document_with_the_promised_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"mixers", "models"}
    by_name = {mixer["name"]: mixer for mixer in document["mixers"]}
    assert sorted(by_name) == seqmix.list_mixers()
    assert [model["name"] for model in document["models"]] == seqmix.list_models()
    for mixer in document["mixers"]:
        assert set(mixer) == {"name", "causal", "content_dependent", "state_growth", "matrix"}
    assert by_name["depthwise_conv"] == {
        "name": "depthwise_conv",
        "causal": True,
        "content_dependent": False,
        "state_growth": "constant",
        "matrix": "exact",
    }
    assert by_name["attention"]["state_growth"] == "linear"
    assert by_name["lstm"]["matrix"] == "jacobian"


@pytest.mark.parametrize("columns", [80, 120])
def test_list_for_people_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for name in (*seqmix.list_mixers(), *seqmix.list_models()):
        assert any(line.startswith(f"{name} ") for line in lines), name


def test_json_has_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": ({"d": -float("inf")},), "e": "×"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5],
        "c": [{"d": None}],
        "e": "×",
    }


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (940, "940"), (0.25, "0.25"), (300_000, "300k"), (999_999, "1M"), (1_234_567, "1.23M"), (7e18, "7e+18")],
)
def test_human_numbers(value: float, text: str) -> None:
    assert output.human_number(value) == text


@pytest.mark.parametrize(
    "value, text", [(0.1, "0.1 s"), (48, "48 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_human_seconds(value: float, text: str) -> None:
    assert output.human_seconds(value) == text


@pytest.mark.parametrize("value, text", [(5, "5 B"), (1023.9, "1 KiB"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB")])
def test_human_bytes(value: float, text: str) -> None:
    assert output.human_bytes(value) == text


def test_progress_into_a_pipe_is_plain_lines_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with output.progress("training") as bar:
        bar.update(0.5, note="loss 2.1", time_left=90)
        bar.message("saved")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "training: 50%, loss 2.1, 1 min 30 s left\nsaved\n"


@pytest.mark.parametrize("columns", [48, 60, 200])
def test_numbers_in_a_table_stay_whole_while_headings_wrap(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    output.print_table(
        ["model", "tokens read before", "parameters", "what it is"],
        [("convtransformer", "1,234", "12.5 KiB", "a hybrid of [two] things")],
        left=["what it is"],
    )
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    for whole in ("convtransformer", "1,234", "12.5 KiB", "[two]"):
        assert whole in text


def test_a_table_narrower_than_its_words_still_shows_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    output.print_table(["name", "value"], [("abcdefgh", "123456789")])
    shown = "".join(capsys.readouterr().out.split())
    assert sorted(shown.replace("─", "")) == sorted("namevalueabcdefgh123456789")
