"""`import seqmix` and `seqmix --help` stay light: the heavy libraries are imported when they are needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "rich", "typer", "datasets", "plotly")


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after running the code."""
    report = "\nimport sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import seqmix; seqmix.__version__; dir(seqmix)",
        "from seqmix.cli.main import main; assert main(['--help']) == 0",
        "from seqmix.cli.main import main; assert main(['--version']) == 0",
        "from seqmix.cli.main import main; assert main(['comprae']) == 2",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = modules_after(code)
    assert "seqmix" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", ["list", "check", "plan", "train", "eval", "compare", "bench"])
def test_the_help_of_a_command_loads_neither_torch_nor_transformers(command: str) -> None:
    loaded = modules_after(f"from seqmix.cli.main import main; assert main([{command!r}, '--help']) == 0")
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "datasets", "plotly"})


def test_mixers_and_kernels_need_torch_alone() -> None:
    loaded = modules_after(
        "import seqmix; [seqmix.create_mixer(name, *seqmix.mixers.mixer_class(name).examples()[0][:1],"
        " **seqmix.mixers.mixer_class(name).examples()[0][1]) for name in seqmix.list_mixers()];"
        " import seqmix.conformance"
    )
    assert "torch" in loaded
    assert loaded.isdisjoint({"transformers", "datasets", "rich", "typer", "plotly", "yaml"})
