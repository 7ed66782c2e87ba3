"""SIGKILL at random moments, then --resume: the same losses and, bit for bit, the same weights."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from seqmix.training import read_metrics

HELPER = Path(__file__).with_name("killed_training.py")


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(one["step"], one["loss"], one["gradient_norm"]) for one in read_metrics(folder / "metrics.jsonl", "step")]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def assert_same_run(killed: Path, whole: Path) -> None:
    steps = losses(killed)
    assert [step for step, _, _ in steps] == list(range(1, len(steps) + 1))
    assert steps == losses(whole)
    assert weights(killed) == weights(whole)
    results = [json.loads((folder / "result.json").read_text())["result"] for folder in (killed, whole)]
    assert results[0]["bits_per_byte"] == results[1]["bits_per_byte"]


@pytest.fixture
def values(corpus_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(corpus_folder),
        "model": "gated_conv",
        "options": {"hidden_size": 16, "num_hidden_layers": 2},
        "context": 32,
        "batch_size": 4,
        "tokens": 8_000,
        "out": str(tmp_path),
        "evaluate_every": 0.3,
        "evaluate_tokens": 200,
        "final_evaluate_tokens": 500,
        "checkpoint_every_seconds": 0.03,
        "threads": 1,
    }


def test_killed_at_random_moments(values: dict[str, Any], tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, str(HELPER), json.dumps(values), "4", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stderr, (seed, done.stderr)
    assert json.loads(done.stdout)["survived"] < 4, "no attempt was killed"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    leftovers = [path.name for path in (tmp_path / "killed").rglob(".*")]
    assert leftovers == []


@pytest.mark.slow
def test_killed_command(values: dict[str, Any], tmp_path: Path) -> None:
    options = [f"--set={key}={json.dumps(value)}" for key, value in values.items() if key != "out"]
    program = "import sys; from seqmix.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, timeout=200)
    for _ in range(2):
        child = subprocess.Popen([*command, "--out", str(killed), "--resume"], stderr=subprocess.PIPE)
        before = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
        while child.poll() is None and (not (killed / "metrics.jsonl").exists() or len(losses(killed)) == before):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = subprocess.run([*command, "--out", str(killed), "--resume"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stderr
    assert_same_run(killed, whole)
