"""The loop from settings to a finished run, what it refuses, and how it stops."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seqmix import files
from seqmix.cli.main import main
from seqmix.errors import InputError, SeqmixError
from seqmix.models import create_model, list_models, preset
from seqmix.models.presets import PRESETS
from seqmix.training import RunFolder, TrainResult, read_metrics, settings_from, train
from seqmix.training.loop import Training
from seqmix.training.memory import PeakMemory, memory_errors
from seqmix.training.stability import LossMonitor

Values = dict[str, Any]


@pytest.fixture
def values(corpus_folder: Path, tmp_path: Path) -> Values:
    return {
        "data": str(corpus_folder),
        "model": "gated_conv",
        "options": {"hidden_size": 16, "num_hidden_layers": 2},
        "context": 32,
        "batch_size": 4,
        "tokens": 2560,
        "out": str(tmp_path / "run"),
        "evaluate_tokens": 200,
        "final_evaluate_tokens": 500,
    }


def run(values: Values, *, resume: bool = False, **changes: Any) -> tuple[TrainResult, list[str]]:
    said: list[str] = []
    return train(settings_from({**values, **changes}), resume=resume, message=said.append), said


def steps_of(values: Values) -> list[dict[str, Any]]:
    return read_metrics(Path(values["out"]) / "metrics.jsonl", "step")


def weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_weights(first: str | Path, second: str | Path) -> None:
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_is_a_folder_that_hugging_face_opens(values: Values) -> None:
    result, said = run(values, tokens=10_000)
    folder = Path(values["out"])
    assert said == []
    assert result.status == "finished"
    assert result.tokens == 79 * 128 >= 10_000
    assert result.resumed_from is None

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import seqmix.hf  # noqa: F401 - registers the classes

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)("cat")["input_ids"]) >= 3
    assert result.parameters == model.non_embedding_parameters

    steps = steps_of(values)
    assert [step["step"] for step in steps] == list(range(1, 80))
    assert steps[-1]["tokens"] == result.tokens
    assert sum(step["loss"] for step in steps[-5:]) / 5 < steps[0]["loss"] - 1
    assert all(math.isfinite(step["gradient_norm"]) and step["learning_rate"] > 0 for step in steps)
    assert [step["seconds"] for step in steps] == sorted(step["seconds"] for step in steps)

    evaluations = read_metrics(folder / "metrics.jsonl", "evaluation")
    assert [one["final"] for one in evaluations] == [False] * 4 + [True]
    assert [one["held_out_tokens"] for one in evaluations] == [192] * 4 + [480]  # whole rows
    assert result.bits_per_byte == evaluations[-1]["bits_per_byte"]
    assert result.best_bits_per_byte == min(one["bits_per_byte"] for one in evaluations[:-1])

    gradients = read_metrics(folder / "metrics.jsonl", "gradients")
    assert [one["step"] for one in gradients][:2] == [1, 9]
    assert len(gradients) == 10
    assert all(len(one["norms"]) == 2 and min(one["norms"]) > 0 for one in gradients)

    stored = RunFolder(folder).read_settings()
    assert settings_from(stored["settings"]) == settings_from({**values, "tokens": 10_000})
    assert stored["environment"]["versions"]["torch"] == torch.__version__
    assert not list(folder.rglob(".*"))
    assert {oct(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {
        oct((folder / "settings.json").stat().st_mode)
    }


def test_layer_gradient_norms_add_up_to_less_than_the_whole(values: Values) -> None:
    run(values)
    metrics = Path(values["out"]) / "metrics.jsonl"
    whole = {step["step"]: step["gradient_norm"] for step in steps_of(values)}
    for one in read_metrics(metrics, "gradients"):
        assert 0 < math.hypot(*one["norms"]) < whole[one["step"]]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(values: Values, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(values, out=str(tmp_path / name), seed=seed)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "a", tmp_path / "c")


def test_accumulation_gives_the_losses_of_the_one_big_batch(values: Values, tmp_path: Path) -> None:
    run(values)
    run(values, out=str(tmp_path / "pieces"), accumulate=4)
    pieces = steps_of({"out": str(tmp_path / "pieces")})
    for one, other in zip(steps_of(values), pieces, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


def test_bfloat16_keeps_weights_and_optimizer_in_float32(values: Values, tmp_path: Path) -> None:
    run(values)
    run(values, out=str(tmp_path / "low"), precision="bfloat16")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "low").values()} == {torch.float32}
    checkpoint = next((tmp_path / "low" / "checkpoints").iterdir())
    assert {tensor.dtype for tensor in load_file(checkpoint / "optimizer.safetensors").values()} == {torch.float32}
    low, full = steps_of({"out": str(tmp_path / "low")}), steps_of(values)
    assert low[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    assert low[0]["loss"] != full[0]["loss"]
    assert low[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.1)


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_gradients_under_autocast(name: str) -> None:
    model = create_model(name, vocab_size=64, context=32, params="60k")
    ids = torch.randint(0, 64, (2, 32))
    documents = (torch.arange(32) >= 11).long().expand(2, -1)
    for document_ids in (None, documents):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, shift_labels=ids, document_ids=document_ids, use_cache=False).loss
        model.zero_grad()
        loss.backward()
        assert loss.dtype == torch.float32
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), key


def test_a_budget_in_seconds_is_kept_and_the_rate_follows_it(values: Values) -> None:
    result, _ = run(values, tokens=None, seconds=0.5, learning_rate=1e-3)
    assert 0.5 <= result.seconds < 1.5
    steps = steps_of(values)
    peak = max(step["learning_rate"] for step in steps)
    assert peak == pytest.approx(1e-3, rel=0.2)
    assert steps[-1]["learning_rate"] < 0.5 * peak


def test_clipping_limits_the_step_but_records_the_norm(values: Values, tmp_path: Path) -> None:
    run(values, clip=1e-3)
    run(values, out=str(tmp_path / "free"), clip=None)
    assert steps_of(values)[0]["gradient_norm"] == steps_of({"out": str(tmp_path / "free")})[0]["gradient_norm"] > 1e-3
    with pytest.raises(AssertionError):
        assert_equal_weights(values["out"], tmp_path / "free")


def interrupt_at(step_wanted: int, number: int) -> Callable[..., None]:
    """A reporter that sends this process a signal."""
    sent = []

    def reporter(*, step: int, tokens: int, seconds: float, loss: float, time_left: float) -> None:
        assert tokens == step * 128
        assert loss > 0
        assert time_left >= 0
        if step >= step_wanted and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    return reporter


def evaluations_of(folder: str | Path) -> list[tuple[int, float]]:
    records = read_metrics(Path(folder) / "metrics.jsonl", "evaluation")
    return [(record["step"], record["bits_per_byte"]) for record in records]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint_and_resume_ends_the_same(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("seqmix.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
    run(values, out=str(tmp_path / "whole"))
    said: list[str] = []
    before = signal.getsignal(number)
    result = train(settings_from(values), reporter=interrupt_at(7, number), message=said.append)
    assert signal.getsignal(number) == before
    assert (result.status, result.steps, result.bits_per_byte) == ("interrupted", 7, None)
    assert f"continue with seqmix train --resume --out {values['out']}" in said[0]
    assert not RunFolder(values["out"]).is_finished

    result, said = run(values, resume=True)
    assert said == ["resumed from step 7"]
    assert (result.status, result.resumed_from, result.steps) == ("finished", 7, 20)
    assert_equal_weights(values["out"], tmp_path / "whole")
    assert [record["step"] for record in read_metrics(Path(values["out"]) / "metrics.jsonl", "resume")] == [7]
    pairs = zip(steps_of(values), steps_of({"out": str(tmp_path / "whole")}), strict=True)
    assert all(one["loss"] == other["loss"] for one, other in pairs)
    assert evaluations_of(values["out"]) == evaluations_of(tmp_path / "whole")


def test_a_signal_in_an_evaluation_leaves_it_for_later(values: Values, tmp_path: Path) -> None:
    run(values, out=str(tmp_path / "whole"))
    sent: list[str] = []

    def show(activity: str) -> None:
        if activity.startswith("evaluating") and not sent:
            sent.append(activity)
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(settings_from(values), message=sent.append, show=show)
    assert (result.status, result.steps) == ("interrupted", 5)
    assert evaluations_of(values["out"]) == []
    run(values, resume=True)
    assert evaluations_of(values["out"]) == evaluations_of(tmp_path / "whole")


def test_resume_of_a_finished_run_says_so_and_changes_nothing(values: Values) -> None:
    first, _ = run(values)
    content = (Path(values["out"]) / "metrics.jsonl").read_bytes()
    again, said = run(values, resume=True)
    assert again == first
    assert said == [f"the run in {values['out']!r} is finished already"]
    assert (Path(values["out"]) / "metrics.jsonl").read_bytes() == content


def test_a_run_killed_before_its_result_is_finished_by_resume(values: Values) -> None:
    first, _ = run(values)
    (Path(values["out"]) / "result.json").unlink()
    (Path(values["out"]) / "model.safetensors").unlink()
    second, _ = run(values, resume=True)
    assert second.bits_per_byte == first.bits_per_byte
    assert (Path(values["out"]) / "model.safetensors").exists()


def test_resume_keeps_the_model_and_rate_that_the_run_began_with(
    values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(values)
    (Path(values["out"]) / "result.json").unlink()
    later = dataclasses.replace(preset("gated_conv"), rate=0.5, build=preset("transformer").build)
    monkeypatch.setitem(PRESETS, "gated_conv", later)
    second, _ = run(values, resume=True)
    assert second.learning_rate == first.learning_rate
    assert second.bits_per_byte == first.bits_per_byte


def test_resume_with_nothing_there_starts(values: Values) -> None:
    result, said = run(values, resume=True)
    assert result.status == "finished"
    assert result.resumed_from is None
    assert said == [f"there is no run in {values['out']!r} yet: starting at step 0"]


def refused(values: Values, words: str, *, resume: bool = False, **changes: Any) -> None:
    with pytest.raises(InputError) as caught:
        run(values, resume=resume, **changes)
    assert words in str(caught.value), str(caught.value)


def test_what_an_existing_folder_refuses(values: Values, tmp_path: Path) -> None:
    run(values)
    refused(values, "continue it with --resume, or choose another --out")
    refused(values, "was started with seed 0, not 1", resume=True, seed=1)
    refused(values, "was started with tokens 2560, not 5000", resume=True, tokens=5000)
    settings = Path(values["out"]) / "settings.json"
    settings.write_text(settings.read_text().replace('"format": 1', '"format": 7'))
    refused(values, "has run format 7 and this version of seqmix reads format 1", resume=True)
    settings.write_text("{")
    refused(values, "was not written by seqmix or is damaged", resume=True)

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    refused(values, "holds files that are not a run", out=str(tmp_path / "other"))
    refused(values, "is a file", out=str(tmp_path / "other" / "thesis.txt"))
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_changed_data_are_not_resumed(values: Values) -> None:
    run(values)
    (Path(values["out"]) / "result.json").unlink()
    with open(Path(values["data"]) / "part00.txt", "a") as file:
        file.write("one more line\n")
    refused(values, "have changed since it was started", resume=True)


def test_a_damaged_checkpoint_is_skipped_with_a_message(values: Values) -> None:
    run(values, checkpoint_every_seconds=0)
    (Path(values["out"]) / "result.json").unlink()
    checkpoints = Path(values["out"]) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000019", "step-00000020"]
    os.truncate(checkpoints / "step-00000020" / "model.safetensors", 100)
    result, said = run(values, resume=True)
    assert result.resumed_from == 19
    assert "step-00000020" in said[0]
    assert "truncated" in said[0]
    assert [step["step"] for step in steps_of(values)] == list(range(1, 21))


def test_one_process_at_a_time(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmix.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
    started = []

    def reporter(**_: float) -> None:
        if not started:
            started.append(True)
            with pytest.raises(SeqmixError, match="another process is training in"):
                run(values, resume=True)

    train(settings_from(values), reporter=reporter)
    assert started


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"context": 100_000, "options": {}, "params": "50k"}, "too few for a context of 100000"),
        ({"model": "transformr"}, "did you mean 'transformer'"),
        ({"options": {"hiden_size": 3}}, "did you mean 'hidden_size'"),
        ({"data": "no/such/file.txt"}, "no/such/file.txt"),
        ({"device": "cuda:99"}, "is not there"),
        ({"device": "gpu"}, "is not known"),
        ({"init_from": "no/such/run"}, "holds no model.safetensors"),
    ],
)
def test_bad_input_leaves_no_folder_behind(values: Values, changes: Values, words: str) -> None:
    refused(values, words, **changes)
    assert not Path(values["out"]).exists()


def test_weights_of_another_run_are_the_start(values: Values, tmp_path: Path) -> None:
    run(values)
    run(values, out=str(tmp_path / "second"), init_from=values["out"])
    second = steps_of({"out": str(tmp_path / "second")})
    assert second[0]["loss"] < steps_of(values)[0]["loss"] - 0.3
    refused(
        values,
        "'model.embed_tokens.weight' has the shape (258, 16)",
        out=str(tmp_path / "third"),
        init_from=values["out"],
        options={"hidden_size": 24, "num_hidden_layers": 2},
    )
    refused(
        values,
        "lacks",
        out=str(tmp_path / "third"),
        init_from=values["out"],
        options={"hidden_size": 16, "num_hidden_layers": 1},
    )


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_loss = Training._loss

    def loss(self: Training, first_row: int, rows: int) -> torch.Tensor:
        return true_loss(self, first_row, rows) * (float("nan") if first_row >= 40 else 1.0)

    monkeypatch.setattr(Training, "_loss", loss)
    with pytest.raises(SeqmixError) as caught:
        run(values, checkpoint_every_seconds=0)
    assert "the loss became nan in step 11: try a lower --learning-rate" in str(caught.value)
    assert len(steps_of(values)) == 10
    folder = RunFolder(values["out"])
    newest = folder.checkpoints.newest(lambda text: None)
    assert newest is not None
    assert newest.name == "step-00000010"
    assert not folder.is_finished
    assert not (folder.path / "model.safetensors").exists()

    monkeypatch.undo()
    result, _ = run(values, resume=True, checkpoint_every_seconds=0)
    assert (result.resumed_from, result.status) == (10, "finished")


def test_a_learning_rate_that_is_far_too_high_is_noticed(values: Values) -> None:
    with pytest.raises(SeqmixError, match="try a lower --learning-rate"):
        run(values, tokens=50_000, learning_rate=30.0, clip=None)


def test_the_monitor_is_patient() -> None:
    monitor = LossMonitor()
    for step, loss in enumerate([5.0] * 10 + [9.0] * 5 + [4.0] * 200, start=1):
        monitor.watch(step, loss, 1.0)
    with pytest.raises(SeqmixError, match=r"the loss diverges: it was 5\.00 at the start and has stayed above 5\.50"):
        list(map(monitor.watch, range(1000), [7.0] * 1000, [1.0] * 1000))
    with pytest.raises(SeqmixError, match="the gradient norm became inf in step 3"):
        LossMonitor().watch(3, 1.0, float("inf"))


def test_a_full_disk_stops_in_one_sentence_and_resume_goes_on(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(values, out=str(tmp_path / "whole"))
    true_fsync, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true_fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(SeqmixError, match="is full: free some space, then give the command again"):
        run(values, checkpoint_every_seconds=0)
    monkeypatch.undo()
    assert not list(Path(values["out"]).rglob(".*"))
    result, said = run(values, resume=True)
    assert said == [f"resumed from step {result.resumed_from}"]
    assert_equal_weights(values["out"], tmp_path / "whole")


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit on file sizes is the nearest to a full disk that needs no mount."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_stops_taking_bytes(
    values: Values, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    run(values, out=values["out"] + "-first")
    request.getfixturevalue("small_files")
    options = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    assert main(["train", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "cannot be written: File too large" in error
    assert not list(Path(values["out"]).rglob(".*"))
    assert not list(Path(values["out"], "checkpoints").iterdir())
    assert not Path(values["out"], "model.safetensors").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(values: Values, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(values, "change its permissions or choose another --out", out=str(tmp_path / "locked" / "run"))


def test_an_impossible_folder(values: Values) -> None:
    with pytest.raises(SeqmixError, match="'/proc/seqmix/run' cannot be written"):
        run(values, out="/proc/seqmix/run")


def test_out_of_memory_names_the_remedy() -> None:
    words = "out of memory with batch_size 8 and context 64: use a smaller --batch-size"
    with pytest.raises(SeqmixError, match=words), memory_errors(8, 64):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="unrelated"), memory_errors(8, 64):
        raise RuntimeError("unrelated")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the high-water mark cannot be set back")
def test_peak_memory_counts_this_run_alone() -> None:
    size = 64 << 20
    big = torch.ones(2 * size, dtype=torch.uint8)
    del big
    memory = PeakMemory(torch.device("cpu"))
    block = torch.ones(size, dtype=torch.uint8)
    del block
    with memory.excluded():
        big = torch.ones(3 * size, dtype=torch.uint8)
        del big
    assert 0.9 * size < memory.peak() < 1.5 * size


def test_tensorboard_gets_the_same_numbers(values: Values) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(values, tensorboard=True)
    events = EventAccumulator(str(Path(values["out"]) / "tensorboard"))
    events.Reload()
    drawn = [event.value for event in events.Scalars("step/loss")]
    assert drawn == pytest.approx([step["loss"] for step in steps_of(values)], rel=1e-6)


def test_tensorboard_that_is_missing_is_one_sentence(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(values, "pip install 'seqmix[tensorboard]'", tensorboard=True)
    assert not Path(values["out"]).exists()


def test_the_command_prints_one_document_and_resumes_from_the_folder_alone(
    values: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--set={key}={json.dumps(value)}" for key, value in values.items() if key not in ("data", "out")]
    assert main(["train", "--data", values["data"], "--out", values["out"], *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "finished"
    assert document["bits_per_byte"] > 0
    assert main(["train", "--resume", "--out", values["out"]]) == 0
    output = capsys.readouterr()
    assert values["out"] in output.out
    assert "finished already" in output.err
    assert main(["train", "--resume", "--out", values["out"], "--seconds", "3"]) == 2
    assert "was started with tokens 2560" in capsys.readouterr().err
    assert main(["train", "--out", values["out"]]) == 2
    assert "data is missing: give --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_trains_the_same(values: Values, tmp_path: Path) -> None:
    run(values)
    run(values, out=str(tmp_path / "compiled"), compile=True)
    for one, other in zip(steps_of(values), steps_of({"out": str(tmp_path / "compiled")}), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
