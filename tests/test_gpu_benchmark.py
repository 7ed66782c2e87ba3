"""benchmarks/gpu.py works: rehearsed on a CPU, and whatever happens in one section, the others are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SECTIONS = (
    "build",
    "check_convolution",
    "time_convolution",
    "check_decode",
    "time_training",
    "time_decode",
    "check_mixers",
    "check_training",
    "time_cross_entropy",
    "time_compiled_training",
    "sweep",
)


def rehearse(folder: Path, *options: str, seconds: float = 280) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, json.loads((folder / "gpu.json").read_text()), done.stdout + done.stderr


def test_one_section_leaves_a_document_with_everything_about_the_run(tmp_path: Path) -> None:
    status, document, output = rehearse(tmp_path, "--sections", "time_cross_entropy")
    assert status == 0, output
    found = document["sections"]["time_cross_entropy"]
    assert found["status"] == "done"
    assert set(found["milliseconds"]) == {"whole", "chunked"}
    assert document["rehearsal"] is True
    assert {"commit", "versions", "hardware"} <= document["environment"].keys()
    assert "mamba-ssm" in document["versions"]
    assert {goal["value"] for goal in document["goals"]} == {None}
    assert "time_cross_entropy: done" in output


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_a_wrong_section_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path)]
    wrong = subprocess.run([*command, "--sections", "sweeep"], capture_output=True, text=True, timeout=120, check=False)
    assert wrong.returncode == 2
    assert "unknown section sweeep: choose of build," in wrong.stderr
    if not torch.cuda.is_available():
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
        assert "There is no CUDA device here" in done.stdout


@pytest.mark.slow
def test_a_section_that_crashes_fails_or_is_late_says_so_and_keeps_its_notes() -> None:
    program = """
import json, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import gpu
from functools import partial
def crash(bench): os.kill(os.getpid(), signal.SIGSEGV)
def fail(bench):
    bench.notes["before"] = 1
    raise ValueError("this went wrong")
def late(bench):
    bench.notes["before"] = 2
    time.sleep(30)
def stuck(bench):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(30)
def wrong(bench): return {"failures": ["a is not b"]}
bench, found = gpu.Bench(is_rehearsal=True), {}
for work in (crash, fail, late, stuck, wrong):
    section = gpu.Section(name=work.__name__, share=1, run=work)
    found[work.__name__] = gpu.in_own_process(partial(gpu.run_section, section, bench, 1), 2)
print(json.dumps(found))
"""
    command = [sys.executable, "-c", program, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: one["status"] for name, one in found.items()} == {
        "crash": "failed",
        "fail": "failed",
        "late": "late",
        "stuck": "failed",
        "wrong": "failed",
    }
    assert found["crash"]["error"] == "its process ended with status -11"
    assert found["fail"]["before"] == 1
    assert "ValueError: this went wrong" in found["fail"]["error"]
    assert found["late"]["before"] == 2
    assert found["late"]["error"] == "stopped after 1 s"
    assert "killed after 2 s" in found["stuck"]["error"]


@pytest.mark.slow
def test_all_sections_are_rehearsed(tmp_path: Path) -> None:
    status, document, output = rehearse(tmp_path)
    sections = document["sections"]
    assert {name: one["status"] for name, one in sections.items()} == dict.fromkeys(SECTIONS, "done"), sections
    assert status == 0, output
    measured = {goal["what"] for goal in document["goals"] if goal["value"] is not None}
    assert "training gated_conv at T=8192 against mamba2" in measured
    assert "decoding gated_conv against mamba2" in measured
    assert "K=4, both: share of the copy bandwidth" in measured
