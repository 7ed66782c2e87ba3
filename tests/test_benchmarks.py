"""The scripts in benchmarks/ run: each with --quick, and their goals are judged in the right direction."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def shared() -> ModuleType:
    """benchmarks/shared.py, which is no part of the package."""
    found = importlib.util.spec_from_file_location("benchmarks_shared", FOLDER / "shared.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "smaller", "verdict"),
    [
        (2.0, False, "aim"),
        (1.5, False, "reached"),
        (1.2, False, "reached"),
        (1.1, False, "missed"),
        (0.5, True, "aim"),
        (1.1, True, "reached"),
        (1.3, True, "missed"),
        (None, False, "not measured"),
    ],
)
def test_a_goal_is_judged(shared: ModuleType, value: float | None, smaller: bool, verdict: str) -> None:
    aim = 0.6 if smaller else 1.6
    goal = shared.Goal(what="speed", value=value, at_least=1.2, aim=aim, smaller=smaller)
    assert goal.cells()[-1] == verdict
    assert ("≤ 1.2 ×" if smaller else "≥ 1.2 ×") in goal.cells()


def test_a_share_is_written_as_a_percentage(shared: ModuleType) -> None:
    goal = shared.Goal(what="share", value=0.655, at_least=0.6, aim=0.95, unit="%")
    assert goal.cells() == ("share", "66 %", "≥ 60 %", "≥ 95 %", "reached")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["depthwise_conv", "long_forward", "loop_overhead", "step_position", "window_attention"]
)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert document["goals"]
    assert all(goal["value"] > 0 for goal in document["goals"])
