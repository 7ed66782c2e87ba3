"""What the README says about files, commands and names is true."""

from __future__ import annotations

import re
from pathlib import Path

from seqmix.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def tree_entries() -> list[str]:
    """The paths in the tree, from the root of the repository."""
    block = TEXT.partition("## The tree")[2].split("```")[1]
    entries, folder = [], ""
    for line in block.strip().splitlines():
        name = line.split()[0]
        if line == name:
            folder = name
        else:
            entries.append(folder + name if line.startswith(" ") else name)
    return entries


def test_every_path_in_the_tree_exists() -> None:
    assert [entry for entry in tree_entries() if not (ROOT / entry).exists()] == []


def test_every_part_of_the_package_is_in_the_tree() -> None:
    package = ROOT / "src" / "seqmix"
    parts = {f"src/seqmix/{path.name}{'/' if path.is_dir() else ''}" for path in package.iterdir()}
    parts = {part for part in parts if "__init__" not in part and "__pycache__" not in part}
    assert parts - set(tree_entries()) - {"src/seqmix/py.typed"} == set()


def test_every_command_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `seqmix (\w+)", TEXT, re.MULTILINE)) == set(COMMANDS)


def test_local_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_python_example_is_valid_and_uses_what_exists() -> None:
    import seqmix

    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in re.findall(r"seqmix\.([A-Za-z_]+)\(", block):
            assert name in dir(seqmix), name


def test_the_changelog_names_every_mixer_and_model() -> None:
    import seqmix

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in (*seqmix.list_mixers(), *seqmix.list_models()) if f"`{name}`" not in text] == []
