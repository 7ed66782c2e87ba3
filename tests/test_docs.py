"""The documentation: a page for every mixer, links that lead somewhere, examples that run, a site that builds."""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import seqmix
from seqmix import inspection
from seqmix.mixers import mixer_class

DOCS = Path(__file__).parents[1] / "docs"
GALLERY = DOCS / "gallery"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
FRAGMENTS = "your_own_mixer"
"""The page whose blocks are pieces of a file that the tests run as a whole."""
WIDEST = 92
"""Characters that fit beside the contents at 1280 pixels."""


def name(path: Path) -> str:
    return str(path.relative_to(DOCS))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language; of none for the empty one, as equations are."""
    found: list[str] = []
    opened: str | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            opened = line.removeprefix("```") if opened is None else None
            found += [""] if opened == language else []
        elif opened == language:
            found[-1] += line + "\n"
    return found


def examples(path: Path) -> list[str]:
    return blocks(path, "python")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's own modules can be imported."""
    monkeypatch.syspath_prepend(str(DOCS / "_site"))


@pytest.mark.parametrize("mixer", seqmix.list_mixers())
def test_every_mixer_has_a_page_with_its_source_its_picture_and_what_is_computed(mixer: str) -> None:
    text = (GALLERY / f"{mixer}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# `{mixer}`: ")
    source = re.search(r"^\*\*Source\.\*\* (.*)$", text, re.MULTILINE)
    assert source is not None
    assert re.search(r"arXiv \d{4}\.\d{4,5}|\b19\d\d\b|^No paper", source[1])
    for directive in ("picture", "mixer-facts", "mixer-costs", "mixer-options"):
        assert f"```{{{directive}}} {mixer}\n" in text, directive
    assert (DOCS / "pictures" / f"{mixer}.png").is_file()
    for heading in ("What it promises, and what it costs", "When to use it, and when not", "Options"):
        assert f"\n## {heading}\n" in text
    assert f'create_mixer("{mixer}", ' in "".join(examples(GALLERY / f"{mixer}.md"))


def test_the_gallery_has_no_page_of_something_else_and_lists_all() -> None:
    pages = {path.stem for path in GALLERY.glob("*.md")} - {"index"}
    listed = re.findall(r"^(\w+)$", (GALLERY / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert pages == set(seqmix.list_mixers())
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).is_file()] == []


@pytest.mark.parametrize("path", [path for path in PAGES if examples(path) and path.stem != FRAGMENTS], ids=name)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, example in enumerate(examples(path)):
        script = tmp_path / f"example_{number}.py"
        script.write_text(example, encoding="utf-8")
        runpy.run_path(str(script))


@pytest.mark.parametrize("path", sorted([*GALLERY.glob("*.md"), *(DOCS / "stories").glob("*.md")]), ids=name)
def test_equations_fit_beside_the_contents(path: Path) -> None:
    assert [line for block in blocks(path, "") for line in block.splitlines() if len(line) > WIDEST] == []


@pytest.mark.parametrize("mixer", seqmix.list_mixers())
def test_every_option_is_described(mixer: str, site: None) -> None:
    options = importlib.import_module("option_texts").options_of(mixer_class(mixer).config_class)
    assert options
    assert [option.name for option in options if not option.text or not option.default] == []


def test_descriptions_are_split_at_the_names_of_options_alone(site: None) -> None:
    described = importlib.import_module("option_texts").described
    found, others = described(
        "Sizes.\n\nkernel: taps. heads, width: of groups.\n    Not width: more.", ["kernel", "heads", "width"]
    )
    assert found == {"kernel": "taps", "heads": "of groups. Not width: more", "width": "of groups. Not width: more"}
    assert others == ["Sizes"]


def test_docstrings_become_restructured_text(site: None) -> None:
    convert = importlib.import_module("plain_docstrings").convert
    lines = [
        "A star * and `code`.",
        "",
        "    y = a * b_",
        "",
        "kernel: taps.",
        "width: d_",
        "",
        "Args:",
        "    x: a | b.",
    ]
    assert convert(lines) == [
        r"A star \* and ``code``.",
        "",
        "::",
        "",
        "    y = a * b_",
        "",
        "``kernel``: taps.",
        "",
        r"``width``: d\_",
        "",
        "Args:",
        r"    x: a \| b.",
        "",
    ]


def test_the_reference_names_everything_public() -> None:
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert [public for public in seqmix.__all__ if public != "__version__" and f"`seqmix.{public} <" not in text] == []


def test_the_reference_has_every_part_of_the_inspection(site: None) -> None:
    described = set(importlib.import_module("package_parts").parts("seqmix.inspection", ["page", "live"]))
    assert {getattr(inspection, public).__module__ for public in inspection.__all__} <= described
    files = {path.stem for path in Path(inspection.__file__).parent.iterdir() if path.stem[0] not in "_."}
    assert {f"seqmix.inspection.{stem}" for stem in files} - described == {
        "seqmix.inspection.page",
        "seqmix.inspection.live",
    }


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'seqmix[docs]'")
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-d",
            tmp_path / "doctrees",
            DOCS,
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        asked = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"", text)
        asked += re.findall(r"<link\b[^>]*rel=\"(?:stylesheet|icon|preload|prefetch)\"[^>]*href=\"([^\"]+)\"", text)
        assert [url for url in asked if re.match(r"(https?:)?//", url)] == [], page.name
        assert re.findall(r"<img\b(?![^>]*\balt=\"[^\"]+\")[^>]*>", text) == [], page.name
    attention = (tmp_path / "gallery" / "attention.html").read_text(encoding="utf-8")
    parameters = seqmix.create_mixer("attention", 256).num_parameters
    assert f"{parameters / 1e3:.0f} k parameters as created" in attention
    classes = (tmp_path / "reference" / "mixers.html").read_text(encoding="utf-8")
    inspected = (tmp_path / "reference" / "inspection.html").read_text(encoding="utf-8")
    assert 'id="seqmix.inspection.costs.' in inspected
    for mixer in seqmix.list_mixers():
        cls = mixer_class(mixer)
        assert f'id="{cls.__module__}.{cls.__qualname__}"' in classes, mixer
