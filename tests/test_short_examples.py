"""The short examples run as they stand, nano with its defaults made small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seqmix.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("model", ["convsamba", "transformer"])
def test_nano_trains_and_samples(model: str, corpus_folder: Path) -> None:
    options = {
        "--model": model,
        "--data": str(corpus_folder),
        "--params": "20k",
        "--context": "32",
        "--batch-size": "2",
        "--steps": "2",
        "--new-tokens": "8",
        "--prompt": "the dog",
    }
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "nano.py"), *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^{model}: \d\d,\d\d\d parameters", done.stdout)
    bits = [float(found) for found in re.findall(r"([\d.]+) bits per token", done.stdout)]
    assert len(bits) == 2
    assert 7.5 < bits[0] < 9, "before the first update every one of 258 tokens is about equally likely"
    assert "the dog" in done.stdout.splitlines()[3]


def test_nano_is_short() -> None:
    assert len((EXAMPLES / "nano.py").read_text(encoding="utf-8").splitlines()) < 80


def test_a_mixer_from_outside_passes_the_kit(capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{EXAMPLES / 'own_mixer.py'}:MovingAverage"
    assert main(["check", target, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 0
    assert document["passed"] == len(document["mixers"][target]) > 15
