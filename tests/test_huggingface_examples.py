"""The examples with Hugging Face's Trainer, PEFT and TRL run and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trainer")
    size = ("--params", "50k", "--context", "64", "--steps", "60")
    text = run("huggingface_trainer.py", "--model", "convtransformer", *size, "--out", str(folder))
    return folder, text


def test_the_trainer_trains_and_saves(trained: tuple[Path, str]) -> None:
    folder, text = trained
    mean = float(re.search(r"mean training loss ([0-9.]+)", text).group(1))  # type: ignore[union-attr]
    assert mean < 4.5, "a uniform guess over 258 tokens costs 5.55 nats"
    assert (folder / "model.safetensors").exists()
    assert (folder / "tokenizer.json").exists()


def test_the_trainer_checkpoints_gradients(tmp_path: Path) -> None:
    size = ("--params", "50k", "--context", "64", "--steps", "3")
    run("huggingface_trainer.py", "--model", "mamba2", *size, "--gradient-checkpointing", "--out", str(tmp_path))


def test_lora_adapts_and_merges(trained: tuple[Path, str], tmp_path: Path) -> None:
    text = run("huggingface_lora.py", str(trained[0]), "--steps", "40", "--out", str(tmp_path))
    first, last = (float(number) for number in re.search(r"loss ([0-9.]+) -> ([0-9.]+)", text).groups())  # type: ignore[union-attr]
    assert last < first
    difference = float(re.search(r"differ by ([0-9.e+-]+)", text).group(1))  # type: ignore[union-attr]
    assert difference < 1e-3
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_dpo_widens_the_margin(trained: tuple[Path, str], tmp_path: Path) -> None:
    text = run("huggingface_dpo.py", str(trained[0]), "--steps", "8", "--out", str(tmp_path))
    margin = float(re.search(r"margin [-0-9.]+ -> ([-0-9.]+)", text).group(1))  # type: ignore[union-attr]
    assert margin > 0
