"""Every kind of source gives its documents, and every bad one says what is wrong in one sentence."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from seqmix.data import load_corpus, open_source
from seqmix.data.sources import Role, role_of
from seqmix.errors import InputError, SeqmixError

ROWS = ["first row\nof two lines", "second row <|end|>", "third, naïve", "fourth"]


def contents(source: str | Path, role: Role = "train") -> list[bytes]:
    return [b"".join(document.pieces) for document in open_source(source).documents(role)]


def write_jsonl(path: Path, rows: Sequence[str] = ROWS) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": row}) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[str | bytes | None] = ROWS, column: str = "text") -> None:
    parquet.write_table(pa.table({"id": list(range(len(rows))), column: list(rows)}), path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ""])
def test_files_and_their_compressed_forms(kind: str, suffix: str, tmp_path: Path) -> None:
    plain = tmp_path / f"plain{kind}"
    if kind == ".jsonl":
        write_jsonl(plain)
    elif kind == ".parquet":
        write_parquet(plain)
    else:
        plain.write_bytes("\n".join(ROWS).encode())
    path = tmp_path / f"data{kind}{suffix}"
    compress: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path.write_bytes(compress(plain.read_bytes()))
    rows = [row.encode() for row in ROWS]
    assert contents(path) == (rows if kind in (".jsonl", ".parquet") else [b"\n".join(rows)])


def test_a_folder_gives_its_text_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "one.txt").write_text("b/one")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "z.py").write_text("print()")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"c"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"\0\1\2"))
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert contents(tmp_path) == [b"a", b"b/one", b"c", b"print()"]
    assert open_source(tmp_path).notes == ["skipped 2 binary files (image.png, packed.gz)"]


def test_a_binary_file_that_is_named_trains_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 8)
    corpus = load_corpus(path)
    assert corpus.train_bytes + corpus.valid_bytes == 2048
    assert set(corpus.train.tokens.tolist()) == set(range(257))


@pytest.mark.parametrize("names", [("train.txt", "valid.txt", "test.txt"), ("a.train.raw", "dev/a.txt", "x_test.md")])
def test_a_folder_with_splits_of_its_own(names: tuple[str, str, str], tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name, text in zip(names, ("to train on", "held out", "never seen"), strict=True):
        (tmp_path / name).write_text(text)
    source = open_source(tmp_path)
    assert source.has_valid
    assert contents(tmp_path) == [b"to train on"]
    assert contents(tmp_path, "valid") == [b"held out"]
    assert source.notes == [f"left out 1 file ({names[2]}) that the names train and valid do not cover"]


def test_a_test_file_beside_a_training_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("to train on")
    (tmp_path / "test.txt").write_text("never seen")
    assert not open_source(tmp_path).has_valid
    assert contents(tmp_path) == [b"to train on"]


def test_a_folder_of_code_with_a_train_script_has_no_splits(tmp_path: Path) -> None:
    for name, size in (("train.py", 10), ("test_model.py", 20), ("dev.py", 5), ("model.py", 100)):
        (tmp_path / name).write_text("#" * size)
    assert not open_source(tmp_path).has_valid
    assert len(contents(tmp_path)) == 4


@pytest.mark.parametrize(
    "name, role",
    [
        ("train-00000-of-00001", "train"),
        ("wiki.valid.raw", "valid"),
        ("val.de.gz", "valid"),
        ("dev/a.txt", "valid"),
        ("test_2016", "test"),
        ("latest.txt", None),
        ("validator.py", None),
        ("development", None),
    ],
)
def test_splits_are_named_by_whole_words(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_parquet_takes_binary_columns_and_skips_nulls(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", [b"one\xff", None, b"two"])
    assert contents(tmp_path / "rows.parquet") == [b"one\xff", b"two"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stands for the hub: OWNER/NAME, NAME with two configs; returns the calls that were made."""
    calls: list[tuple[str, ...]] = []

    def load_dataset(*arguments: str) -> Any:
        calls.append(arguments)
        if arguments in (("owner/set",), ("set", "small"), ("owner/set", "small")):
            return datasets.DatasetDict(
                {
                    "train": datasets.Dataset.from_dict({"text": ["one", "two", None], "id": [1, 2, 3]}),
                    "validation": datasets.Dataset.from_dict({"text": ["three"], "id": [3]}),
                    "test": datasets.Dataset.from_dict({"text": ["four"], "id": [4]}),
                }
            )
        if arguments == ("pictures",):
            return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": [1], "label": [2]})})
        if arguments == ("plain",):
            return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a line\n"] * 9 + ["end"]})})
        if arguments == ("down",):
            raise ConnectionError("no route to the hub\nsecond line")
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {arguments[0]!r} doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", ["hf:owner/set", "hf:set/small", "hf:owner/set/small"])
def test_the_hub_gives_its_splits(name: str, hub: list[tuple[str, ...]]) -> None:
    corpus = load_corpus(name)
    assert corpus.train.tokens.tolist() == [256, *b"one", 256, *b"two"]
    assert corpus.valid.tokens.tolist() == [256, *b"three"]


def test_a_hub_set_without_a_held_out_split_is_split(hub: list[tuple[str, ...]]) -> None:
    corpus = load_corpus("hf:plain")
    assert corpus.train.num_documents + corpus.valid.num_documents == 10


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("hf:", InputError, "'hf:' names no data set: write hf:NAME"),
        ("hf:a/b/c/d", InputError, "names no data set"),
        (
            "hf:absent",
            InputError,
            "hf:absent could not be loaded .*'absent' doesn't exist.*: check the name",
        ),
        ("hf:pictures", InputError, "hf:pictures has no column `text` in 'train' .*'image', 'label'"),
        (
            "hf:down",
            SeqmixError,
            r"hf:down could not be loaded \(no route to the hub\): check .* the network",
        ),
    ],
)
def test_bad_hub_names(name: str, error: type[Exception], message: str, hub: list[tuple[str, ...]]) -> None:
    with pytest.raises(error, match=message) as raised:
        open_source(name)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "name, message",
    [
        ("no/such/file.txt", "there is no file or folder 'no/such/file.txt': check the path"),
        ("python-stdlb", "'python-stdlb': did you mean 'python-stdlib'?"),
        ("wiki", "'wiki': choose one of .*python-stdlib"),
        (os.devnull, "neither a file nor a folder"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_corpus(name)


def refused(path: Path, message: str) -> None:
    """Loading fails with this sentence, which names the file, and leaves nothing in the cache."""
    cache = path.parent / "own_cache"
    with pytest.raises(InputError, match=message) as raised:
        load_corpus(path, cache_dir=cache)
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not [entry for entry in cache.rglob("*") if entry.name != "corpora"]


def test_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    refused(tmp_path / "empty.txt", "is empty: give a file that holds text")
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    refused(tmp_path / "empty.txt.gz", "holds no text")
    write_jsonl(tmp_path / "empty.jsonl", ["", ""])
    refused(tmp_path / "empty.jsonl", "holds no text")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "holds no text .no file at all.: give one that does")
    (tmp_path / "folder" / "image.png").write_bytes(b"\0")
    refused(tmp_path / "folder", "holds no text .skipped 1 binary file .image.png")


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_damaged_compressed_files(suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / f"text.txt{suffix}"
    content = compress(os.urandom(50_000))
    path.write_bytes(content[:-1000])
    refused(path, "cannot be unpacked .*: it is truncated or damaged, copy or download it again")
    path.write_bytes(content[:20_000] + b"\xff" * 500 + content[20_500:])
    refused(path, "cannot be unpacked")
    path.write_bytes(b"no compressed file at all")
    refused(path, "cannot be unpacked")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": 4}', "line 3 has no string field `text` .*'id'.*: rename the field"),
        ('{"text": 5}', "line 3 has no string field `text`"),
        ('["text"]', "line 3 has no string field `text` .it is no object"),
        ('{"text": "open', "line 3 is not JSON"),
        ('{"text": "\\ud800"}', "line 3 holds half a surrogate pair at character 0"),
    ],
)
def test_bad_lines_of_jsonl(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "one"}}\n\n{line}\n')
    refused(tmp_path / "rows.jsonl", message)


def test_jsonl_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    refused(tmp_path / "rows.jsonl", "line 1 is not JSON")


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, column="content")
    refused(path, "has no column `text` .its columns are 'id', 'content'.: rename the column")
    parquet.write_table(pa.table({"text": [1, 2]}), path)
    refused(path, "row 1 holds int in `text`: it must be a string")
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "not a readable parquet file")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "rows.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(tmp_path / "rows.parquet", re.escape("needs pyarrow to be read: pip install 'seqmix[data]'"))


def test_the_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=re.escape("pip install 'seqmix[data]'")):
        open_source("hf:set")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("words")
    opened = Path.open

    # Root may read every file, so a refusal by the system is put in its place.
    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    refused(path, r"secret\.txt cannot be read: Permission denied")
