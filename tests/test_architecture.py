"""Rules about the source as a whole: which part may import which, how long a file may be, what is never called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import seqmix

ROOT = Path(seqmix.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each part may import besides itself; anyone may read `seqmix.__version__`, and nothing else of the package's
# own file, which would hide what is really imported.
GROUND = {"cost", "errors", "kernels", "mixer"}
MODELS = GROUND | {"files", "mixers", "models", "properties"}
ONE_MODEL = {"training", "evaluation", "export", "generation", "inspection"}
ALLOWED: dict[str, set[str]] = {
    "cost": set(),
    "errors": set(),
    "files": {"errors"},
    "kernels": set(),
    "mixer": {"cost", "errors", "kernels"},
    "mixers": GROUND,
    "flop_counter": {"kernels"},
    "conformance": GROUND | {"flop_counter", "mixers"},
    "properties": GROUND | {"mixers"},
    "models": GROUND | {"flop_counter", "mixers", "properties"},
    "hf": MODELS,
    "data": {"errors"},
    "training": MODELS | {"data", "evaluation"},
    "evaluation": MODELS | {"data"},
    "export": MODELS,
    "generation": MODELS | {"data", "export"},
    "inspection": MODELS | {"data", "evaluation"},
    "compare": MODELS | {"data", *ONE_MODEL},
    "serve": MODELS | {"data", "hf", *ONE_MODEL},
    "bench": MODELS | {"data", "hf", "flop_counter", "compare", *ONE_MODEL},
    "cli": MODELS | {"bench", "conformance", "data", "hf", "compare", "properties", "serve", *ONE_MODEL},
    "__main__": {"cli"},
    "seqmix": set(),
}
TORCH_ALONE = {"cost", "errors", "flop_counter", "kernels", "mixer", "mixers", "conformance", "properties"}
LIBRARIES = {
    "accelerate",
    "datasets",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "plotly",
    "pyarrow",
    "rich",
    "safetensors",
    "tokenizers",
    "transformers",
    "trl",
    "typer",
    "yaml",
}
MAXIMUM_LINES = 400


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: its first folder or its own name."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "seqmix" if first == "__init__" else first


def target_of(module: str) -> str:
    """The part that a module of ours belongs to."""
    return "seqmix" if module == "seqmix" else module.split(".")[1]


def module_of(path: Path) -> list[str]:
    """The dotted package that relative imports of a file count from."""
    return ["seqmix", *path.relative_to(ROOT).parent.parts]


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Every module a file imports, with the line; imports for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types or (top_level_only and id(node) in inside):
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path)[: len(module_of(path)) + 1 - node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            if base == "seqmix":
                for name in node.names:
                    if name.name == "__version__":
                        continue
                    is_part = (ROOT / name.name).is_dir() or (ROOT / f"{name.name}.py").is_file()
                    yield f"seqmix.{name.name}" if is_part else "seqmix", node.lineno
            else:
                yield base, node.lineno


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"{part} is a new part: say in ALLOWED what it may import"
    wrong = [
        f"{relative_name(path)}:{line} imports {module}"
        for module, line in imports(path)
        if module.partition(".")[0] == "seqmix" and target_of(module) not in {part, *ALLOWED[part]}
    ]
    assert not wrong


@pytest.mark.parametrize("path", [file for file in FILES if part_of(file) in TORCH_ALONE], ids=relative_name)
def test_the_ground_needs_torch_alone(path: Path) -> None:
    assert [(module, line) for module, line in imports(path) if module.partition(".")[0] in LIBRARIES] == []


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=relative_name)
def test_commands_import_heavy_modules_inside_functions(path: Path) -> None:
    light = {"seqmix", "seqmix.errors"}
    for module, line in imports(path, top_level_only=True):
        root = module.partition(".")[0]
        where = f"{relative_name(path)}:{line} imports {module} at the top"
        assert root not in LIBRARIES - {"typer"} | {"torch"}, where
        assert root != "seqmix" or module in light or module.startswith("seqmix.cli"), where


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAXIMUM_LINES


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for module, line in imports(path):
        assert module.partition(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, line
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}, f"line {node.lineno}"
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"
            assert options.get("trust_remote_code", "False") == "False", f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_no_question_is_asked_with_hasattr(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [node.lineno for node in calls if ast.unparse(node.func) == "hasattr"] == []


def test_a_wrong_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_architecture.ROOT", tmp_path)
    (tmp_path / "mixers").mkdir()
    (tmp_path / "models").mkdir()
    file = tmp_path / "mixers" / "wrong.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from seqmix import models\n"
        "from ..models import block\n"
        "if TYPE_CHECKING:\n    import seqmix.cli\n"
        "def inside():\n    import seqmix.compare.results\n",
        encoding="utf-8",
    )
    found = {module for module, _ in imports(file) if module.startswith("seqmix")}
    assert found == {"seqmix.models", "seqmix.compare.results"}
    assert "seqmix.compare.results" not in {module for module, _ in imports(file, top_level_only=True)}
