"""Two processes under torchrun, talking through gloo, against one process at the same global batch."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from seqmix.data import load_corpus
from seqmix.errors import InputError
from seqmix.evaluation import evaluate
from seqmix.models import create_model
from seqmix.training import RunFolder, TrainResult, read_metrics, settings_from, train
from seqmix.training.checkpoint import find_fault
from seqmix.training.random_state import seed_everything

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
]

WORKER = Path(__file__).with_name("distributed_training.py")
EPS = torch.finfo(torch.float32).eps
STEPS, STOP = 10, 4
BUILD = {"name": "transformer", "vocab_size": 258, "params": "12M", "context": 64}

Values = dict[str, Any]


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        output, errors = process.communicate()
        pytest.fail(f"no end after {seconds} s: {errors}")
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a test session, since what is made in it takes long."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    path.mkdir(exist_ok=True)
    return path


@contextmanager
def once(folder: Path, name: str) -> Iterator[bool]:
    """Whether the block is the first of all workers to do this; the others wait until it is done."""
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / f"{name}.done"
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="module")
def values(folder: Path) -> Values:
    draw = random.Random(7)
    words = ("a cat", "the dog", "sees", "hears", "it", "her")
    with once(folder, "corpus") as is_first:
        if is_first:
            (folder / "corpus").mkdir()
            for number in range(6):
                text = "\n".join(" ".join(draw.choices(words, k=4)) for _ in range(100))
                (folder / "corpus" / f"part{number}.txt").write_text(text, encoding="utf-8")
    return {
        "data": str(folder / "corpus"),
        "model": "gated_conv",
        "options": {"hidden_size": 15, "num_hidden_layers": 2},  # an odd width leaves uneven shards
        "context": 32,
        "batch_size": 8,
        "tokens": STEPS * 8 * 32,
        "evaluate_tokens": 200,
        "final_evaluate_tokens": 500,
    }


def alone(
    values: Values, out: Path, *, resume: bool = False, stop_at: int | None = None, **changes: Any
) -> TrainResult:
    """The same training in this one process."""
    sent: list[int] = []

    def reporter(*, step: int, **rest: float) -> None:
        if step == stop_at and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqmix.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
        settings = settings_from({**values, "out": str(out), **changes})
        return train(settings, resume=resume, reporter=reporter, message=lambda text: None)


@pytest.fixture(scope="module")
def runs(folder: Path, values: Values) -> Path:
    """One torchrun that does everything the tests below look at, beside the runs of one process."""
    with once(folder, "runs") as is_first:
        if is_first:
            _make_runs(folder, values)
    return folder


def _make_runs(folder: Path, values: Values) -> None:
    for name, pieces in (("one", 1), ("pieces", 2), ("small_pieces", 8)):
        alone(values, folder / name, accumulate=pieces)
    alone(values, folder / "one_stopped", stop_at=STOP)
    fsdp = {**values, "parallel": "fsdp"}
    stopped = {"copy_from": str(folder / "one_stopped"), "resume": True}
    jobs: list[dict[str, Any]] = [
        {"name": "ddp", "values": values},
        {"name": "ddp_pieces", "values": {**values, "accumulate": 2}},
        {"name": "fsdp", "values": fsdp},
        {"name": "fsdp_pieces", "values": {**fsdp, "accumulate": 2}},
        {"name": "fsdp_stopped", "values": fsdp, "stop_at": STOP},
        {"name": "one_to_ddp", "values": values, **stopped},
        {"name": "one_to_fsdp", "values": fsdp, **stopped},
        {"name": "fsdp_to_ddp", "values": values, "copy_from": str(folder / "fsdp_stopped"), "resume": True},
        {"name": "fsdp_to_fsdp", "values": fsdp, "copy_from": str(folder / "fsdp_stopped"), "resume": True},
        {"name": "low", "values": {**fsdp, "precision": "bfloat16"}},
        {"name": "started_from", "values": {**fsdp, "init_from": str(folder / "one")}},
        {"name": "uneven", "values": {**values, "batch_size": 9}},
        {"name": "refused", "values": {**values, "parallel": "none"}},
        {"name": "unknown", "values": {**fsdp, "model": "no_such_model", "options": {}}},
        {"name": "other_data", "values": values, "only_here": {"1": {"data": str(folder / "corpus" / "part0.txt")}}},
        {"name": "one_fails", "values": values, "only_here": {"1": {"data": str(folder / "missing.txt")}}},
        {"name": "built", "build": BUILD},
    ]
    code, _, errors = finish(torchrun(str(WORKER), str(folder), json.dumps(jobs)))
    assert code == 0, errors


def outcome(runs: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((runs / f"{name}.{rank}.json").read_text())


def numbers(run: Path) -> dict[str, torch.Tensor]:
    """Every loss, gradient norm, and evaluation of a run."""
    steps = read_metrics(run / "metrics.jsonl", "step")
    assert [one["step"] for one in steps] == list(range(1, len(steps) + 1))
    layers = read_metrics(run / "metrics.jsonl", "gradients")
    evaluations = read_metrics(run / "metrics.jsonl", "evaluation")
    return {
        "loss": torch.tensor([one["loss"] for one in steps], dtype=torch.float64),
        "gradient_norm": torch.tensor([one["gradient_norm"] for one in steps], dtype=torch.float64),
        "layers": torch.tensor([one["norms"] for one in layers], dtype=torch.float64),
        "bits_per_byte": torch.tensor([one["bits_per_byte"] for one in evaluations], dtype=torch.float64),
    }


@pytest.mark.parametrize(
    "name", ["ddp", "ddp_pieces", "fsdp", "fsdp_pieces", "one_to_ddp", "one_to_fsdp", "fsdp_to_ddp", "fsdp_to_fsdp"]
)
def test_two_processes_give_the_numbers_of_one(runs: Path, name: str) -> None:
    assert_numbers_of_one(runs, runs / name)


def assert_numbers_of_one(runs: Path, run: Path) -> None:
    """Only the order of float32 sums differs. What that makes is seen in one process that computes its batch in
    pieces; two processes may differ twice as much, plus a band of 32 roundings for sums over few terms."""
    whole, found = numbers(runs / "one"), numbers(run)
    others = [numbers(runs / "pieces"), numbers(runs / "small_pieces")]
    for key, expected in whole.items():
        own = max(float((other[key] / expected - 1).abs().max()) for other in others)
        assert own < 1e-4, "the yardstick itself is off"
        assert found[key].shape == expected.shape, key
        torch.testing.assert_close(found[key], expected, rtol=2 * own + 32 * EPS, atol=0.0)


def test_the_numbers_are_not_equal_by_accident(runs: Path, values: Values, tmp_path: Path) -> None:
    """Another order of rows is far outside the tolerance, so a wrong share of the batch would be seen."""
    alone(values, tmp_path / "other", seed=1)
    difference = numbers(tmp_path / "other")["loss"] / numbers(runs / "one")["loss"] - 1
    assert float(difference.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_run_of_many_is_a_folder_like_any_other(runs: Path, name: str) -> None:
    files = {path.name for path in (runs / "one").iterdir()}
    assert {path.name for path in (runs / name).iterdir()} == files
    assert not list((runs / name).rglob(".*"))
    ours, theirs = load_file(runs / name / "model.safetensors"), load_file(runs / "one" / "model.safetensors")
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}

    from transformers import AutoModelForCausalLM

    import seqmix.hf  # noqa: F401 - registers the classes

    model = AutoModelForCausalLM.from_pretrained(runs / name)
    assert type(model).__name__ == "SeqmixForCausalLM"
    assert json.loads((runs / name / "config.json").read_text())["architectures"] == ["SeqmixForCausalLM"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours.get(key, ours["model.embed_tokens.weight"])), key
    results = [outcome(runs, name, rank) for rank in (0, 1)]
    assert results[1]["said"] == []
    assert results[0]["result"]["bits_per_byte"] == results[1]["result"]["bits_per_byte"]
    assert RunFolder(runs / name).read_settings()["processes"] == 2


def test_shards_hold_no_pickle_and_divide_the_model(runs: Path) -> None:
    (checkpoint,) = (runs / "fsdp_stopped" / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{STOP:08d}"
    shards = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    ours = [name for name in shards if name.startswith("shard-00001-")]
    assert len(shards) == 2 * len(ours) > 2
    assert {path.name for path in checkpoint.iterdir()} == {*shards, "manifest.json", "state.json"}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert set(manifest["files"]) == {*shards, "state.json"}
    assert find_fault(checkpoint) is None
    tensors = [load_file(checkpoint / shard) for shard in shards]
    sizes = [held["model.embed_tokens.weight"].shape for held in tensors if "model.embed_tokens.weight" in held]
    assert sizes == [(129, 15), (129, 15)]


def test_one_process_goes_on_from_shards(runs: Path, values: Values, tmp_path: Path) -> None:
    shutil.copytree(runs / "fsdp_stopped", tmp_path / "run")
    result = alone(values, tmp_path / "run", resume=True)
    assert (result.resumed_from, result.status) == (STOP, "finished")
    assert_numbers_of_one(runs, tmp_path / "run")


def test_damaged_shards_are_not_taken_up(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fsdp_to_fsdp", tmp_path / "run")
    store = RunFolder(tmp_path / "run").checkpoints
    newest = store.newest(lambda text: None)
    assert newest is not None
    shard = sorted(newest.glob("shard-00002*"))[0]
    shard.write_bytes(shard.read_bytes()[:-8])
    said: list[str] = []
    other = store.newest(said.append)
    assert other is not None
    assert other != newest
    assert f"{shard.name} is truncated or altered" in said[0]


def test_bfloat16_gathers_low_and_keeps_float32(runs: Path) -> None:
    assert {tensor.dtype for tensor in load_file(runs / "low" / "model.safetensors").values()} == {torch.float32}
    low, full = numbers(runs / "low"), numbers(runs / "one")
    torch.testing.assert_close(low["loss"], full["loss"], rtol=0.02, atol=0.0)
    assert not torch.equal(low["loss"], full["loss"])


def test_weights_of_another_run_are_the_start(runs: Path) -> None:
    assert numbers(runs / "started_from")["loss"][0] < numbers(runs / "one")["loss"][0] - 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uneven", "a batch_size of 9 in accumulate=1 pieces cannot be shared equally by 2 processes"),
        ("refused", "parallel is 'none' and torchrun started 2 processes"),
        ("unknown", "unknown model 'no_such_model'"),
        ("other_data", "are not the same on all machines"),
        ("one_fails", "process 1 failed: "),
    ],
)
def test_an_error_is_told_once_and_ends_all(runs: Path, name: str, words: str) -> None:
    first, second = outcome(runs, name, 0), outcome(runs, name, 1)
    assert first["error"] == "InputError"
    assert words in first["text"]
    assert second == {"error": "SystemExit", "text": "2"}
    assert not (runs / name).exists()


def test_a_sharded_model_is_drawn_as_one_process_draws_it_and_never_whole_everywhere(runs: Path) -> None:
    seed_everything(3)
    expected = create_model(**BUILD)
    drawn = load_file(runs / "built")
    for key, tensor in expected.state_dict().items():
        assert torch.equal(drawn.get(key, drawn["model.embed_tokens.weight"]), tensor), key
    whole = sum(parameter.nbytes for parameter in expected.parameters())
    for rank in (0, 1):
        built = outcome(runs, "built", rank)
        assert built["is_tied"]
        assert built["held"] <= 0.51 * whole
    if sys.platform == "linux":
        assert outcome(runs, "built", 1)["peak"] < 0.8 * whole


def test_one_process_has_nothing_to_share(values: Values, tmp_path: Path) -> None:
    assert alone(values, tmp_path / "single", parallel="fsdp", tokens=256).status == "finished"
    with pytest.raises(InputError, match="unknown parallel 'fdsp': did you mean 'fsdp'"):
        settings_from({**values, "out": "unused", "parallel": "fdsp"})


class _Turn:
    """One of three processes that evaluate one after the other; each adds its sums to those of the earlier ones."""

    count = 3

    def __init__(self, rank: int, earlier: list[torch.Tensor]) -> None:
        self.rank = rank
        self.earlier = earlier
        self.sums: list[torch.Tensor] = []

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.sums.append(values + (self.earlier[len(self.sums)] if self.earlier else 0))
        return self.sums[-1]


@pytest.mark.parametrize("max_tokens", [None, 500])
def test_a_shared_evaluation_is_the_whole_one(values: Values, max_tokens: int | None) -> None:
    store = load_corpus(values["data"]).valid
    model = create_model("gated_conv", vocab_size=258, context=32, hidden_size=16, num_hidden_layers=1)
    expected = evaluate(model, store, context=32, batch_size=2, max_tokens=max_tokens)
    sums: list[torch.Tensor] = []
    for rank in range(_Turn.count):
        turn = _Turn(rank, sums)
        found = evaluate(model, store, context=32, batch_size=2, max_tokens=max_tokens, part=turn)
        sums = turn.sums
    assert found.tokens == expected.tokens
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-12)
    assert found.bits_by_block == pytest.approx(expected.bits_by_block, rel=1e-12)
    for one, other in zip(found.loss_by_position, expected.loss_by_position, strict=True):
        assert one == pytest.approx(other, rel=1e-12)
    for one, other in zip(found.loss_by_position_bins, expected.loss_by_position_bins, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def wait_for_steps(process: subprocess.Popen[str], out: Path, count: int) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            pytest.fail(f"ended too early: {finish(process)}")
        if (out / "metrics.jsonl").exists() and len(read_metrics(out / "metrics.jsonl", "step")) >= count:
            return
        time.sleep(0.05)
    pytest.fail("the steps never came")


def worker_of(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def command_of(values: Values, out: Path, **changes: Any) -> list[str]:
    options = [f"--set={key}={json.dumps(value)}" for key, value in {**values, **changes}.items()]
    return ["-m", "seqmix", "train", *options, "--out", str(out)]


@pytest.mark.parametrize(
    ("number", "reaches_all"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)]
)
def test_a_signal_to_any_process_stops_all_with_one_checkpoint(
    values: Values, tmp_path: Path, number: int, reaches_all: bool
) -> None:
    out = tmp_path / "run"
    process = torchrun(*command_of(values, out, tokens=10_000_000, parallel="fsdp"))
    wait_for_steps(process, out, 3)
    os.kill(process.pid if reaches_all else worker_of(process, 1).pid, number)
    code, _, errors = finish(process)
    assert code != 0
    assert errors.count("stopped at step") == 1
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert find_fault(checkpoint) is None
    steps = read_metrics(out / "metrics.jsonl", "step")
    assert checkpoint.name == f"step-{len(steps):08d}"
    assert not list(out.rglob(".*"))
    assert not (out / "result.json").exists()


def test_a_process_that_dies_ends_the_others(values: Values, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = torchrun(*command_of(values, out, tokens=10_000_000, checkpoint_every_seconds=0.2))
    wait_for_steps(process, out, 20)
    worker_of(process, 1).kill()
    started = time.monotonic()
    code, _, errors = finish(process, 120)
    assert code != 0
    assert time.monotonic() - started < 60
    assert "error: process 0 lost the other 1: " in errors
    newest = RunFolder(out).checkpoints.newest(lambda text: None)
    assert newest is not None
