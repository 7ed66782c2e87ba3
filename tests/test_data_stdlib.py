"""The built-in corpus of every machine: the running Python's own library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from seqmix.data import load_corpus, open_source
from seqmix.errors import SeqmixError


def test_it_is_real_text_and_the_same_each_time() -> None:
    corpus = load_corpus("python-stdlib")
    assert corpus.train_bytes > 4_000_000
    assert 0.08 < corpus.valid_bytes / (corpus.train_bytes + corpus.valid_bytes) < 0.12
    assert corpus.fingerprint == load_corpus("python-stdlib").fingerprint
    assert any("MB" in note for note in corpus.notes)


def test_it_holds_sources_alone() -> None:
    documents = list(open_source("python-stdlib").documents("train"))
    names = [document.file for document in documents]
    assert names == sorted(names)
    assert "argparse.py" in names
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3", "idlelib"}
    assert all(name.endswith(".py") for name in names)
    source = next(document for document in documents if document.file == "argparse.py")
    assert b"".join(source.pieces) == (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()


def test_a_python_with_part_of_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "decoder.py").write_text("a = 1\n" * 40)
    (tmp_path / "os.py").write_text("b = 2\n" * 30)
    (tmp_path / "os.pyc").write_bytes(b"\0")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "elsewhere.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert [document.file for document in open_source("python-stdlib").documents("train")] == [
        "json/decoder.py",
        "os.py",
    ]


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SeqmixError, match=r"holds no \.py file; install the library's source"):
        open_source("python-stdlib")
