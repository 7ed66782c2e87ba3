"""From a source to two parts: what is held out, what is cached, and what a failure leaves behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqmix.data import Corpus, TokenStore, byte_tokenizer, corpus, count_words, load_corpus, memory_store
from seqmix.data.documents import Documents, store_documents
from seqmix.data.encoding import write_part
from seqmix.data.readers import Document
from seqmix.data.splits import Span, Split, split_documents
from seqmix.data.token_store import open_store
from seqmix.errors import InputError, SeqmixError

END = 256
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def documents_of(store: TokenStore) -> list[bytes]:
    """The text of each document of a part of bytes."""
    parts = [store.tokens[a:b] for a, b in zip(store.documents[:-1], store.documents[1:], strict=True)]
    assert all(part[0] == END for part in parts)
    return [part[1:].astype(np.uint8).tobytes() for part in parts]


def split_of(
    contents: list[bytes], path: Path, share: float = 0.1, seed: int = 0
) -> tuple[Split, list[bytes], list[bytes]]:
    """The split of documents, and the bytes of both parts span by span."""
    stored = store_documents((Document("a", i, [text]) for i, text in enumerate(contents)), path, lambda message: None)
    split = split_documents(stored, share=share, seed=seed)
    parts = [
        [bytes(stored.text(span.document)[span.first : span.last]) for span in spans]
        for spans in (split.train, split.valid)
    ]
    return split, parts[0], parts[1]


def test_one_document_is_cut_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {number} of the text\n" for number in range(200)).encode()
    (tmp_path / "text.txt").write_bytes(text)
    loaded = load_corpus(tmp_path / "text.txt")
    (train,), (valid,) = documents_of(loaded.train), documents_of(loaded.valid)
    assert train + valid == text
    assert train.endswith(b"\n")
    assert abs(len(valid) - 0.1 * len(text)) < 30
    assert (loaded.train_bytes, loaded.valid_bytes) == (len(train), len(valid))


def test_a_document_without_lines_is_cut_at_a_character(tmp_path: Path) -> None:
    text = "日本語" * 101
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    loaded = load_corpus(tmp_path / "text.txt")
    (train,), (valid,) = documents_of(loaded.train), documents_of(loaded.valid)
    assert train.decode() + valid.decode() == text
    assert 80 < len(valid) < 100


def test_a_far_line_does_not_move_the_cut(tmp_path: Path) -> None:
    _, train, valid = split_of([b"title\n" + b"x" * 5000], tmp_path / "t")
    assert len(valid[0]) == pytest.approx(500, abs=2)
    assert train[0].startswith(b"title")


@same_folder
@given(
    contents=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=25),
    share=st.sampled_from([0.01, 0.1, 0.3, 0.9]),
    seed=st.integers(0, 3),
)
def test_parts_are_disjoint_and_nothing_is_lost(contents: list[bytes], share: float, seed: int, tmp_path: Path) -> None:
    if max(map(len, contents)) < 2:
        return
    split, train, valid = split_of(contents, tmp_path / "t", share, seed)
    assert train
    assert valid
    whole = {span.document for span in (*split.train, *split.valid)}
    held_out = {span.document for span in split.valid}
    trained = {span.document for span in split.train}
    cut = held_out & trained
    assert len(cut) <= 1
    # A copy of a held-out document is trained on nowhere, and only copies of the cut one are dropped.
    assert not {contents[i] for i in held_out - cut} & {contents[i] for i in trained}
    dropped = set(range(len(contents))) - whole
    assert len(dropped) == split.dropped
    assert {contents[i] for i in dropped} <= {contents[i] for i in cut}
    if not cut:
        assert sorted(train + valid) == sorted(contents)
    for i in cut:
        (head,) = [text for span, text in zip(split.train, train, strict=True) if span.document == i]
        assert head + valid[0] == contents[i]


def test_whole_documents_are_held_out_near_the_share(tmp_path: Path) -> None:
    contents = [os.urandom(50 + 7 * number % 90) for number in range(200)]
    split, train, valid = split_of(contents, tmp_path / "t")
    assert split_of(contents, tmp_path / "t")[0] == split
    assert split_of(contents, tmp_path / "t", seed=1)[2] != valid
    assert 0.08 < sum(map(len, valid)) / sum(map(len, contents)) < 0.13
    # Stable: one more document moves few others.
    _, _, more = split_of([*contents, b"new" * 30], tmp_path / "t")
    assert len(set(valid) & set(more)) > 0.8 * len(valid)
    assert not set(train) & set(valid)


def test_few_documents(tmp_path: Path) -> None:
    equal = [bytes([65 + number]) * 1000 for number in range(4)]
    split, _, valid = split_of(equal, tmp_path / "t")
    assert len(valid) == 1
    assert valid[0] in equal
    # One document is nearly everything: its end is held out, not the small one alone.
    _, _, valid = split_of([b"x" * 10_000, b"small"], tmp_path / "t")
    assert valid == [b"x" * len(valid[0])]
    assert 900 < len(valid[0]) < 1100
    split, train, _ = split_of([b"x" * 10_000] * 3, tmp_path / "t")
    assert split.dropped == 2
    assert len(train) == 1


def test_valid_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "four"}\n')
    loaded = load_corpus(tmp_path / "a.jsonl", valid=tmp_path / "b.jsonl")
    assert documents_of(loaded.train) == [b"one", b"three"]
    assert documents_of(loaded.valid) == [b"two", b"four"]
    assert loaded.notes == ("left out 1 training documents that repeat held-out text",)
    with pytest.raises(InputError, match="every training document is also held out"):
        load_corpus(tmp_path / "a.jsonl", valid=tmp_path / "a.jsonl")


def test_the_splits_of_a_folder_are_kept(tmp_path: Path) -> None:
    for name, text in (("train.txt", "to train on\n"), ("valid.txt", "held out\n"), ("test.txt", "never seen\n")):
        (tmp_path / name).write_text(text * 5)
    loaded = load_corpus(tmp_path)
    assert documents_of(loaded.train) == [b"to train on\n" * 5]
    assert documents_of(loaded.valid) == [b"held out\n" * 5]


def test_a_bpe_is_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcabc abcabc\n" * 200)
    (tmp_path / "valid.txt").write_text("xyzxyz xyzxyz\n" * 200)
    loaded = load_corpus(tmp_path, tokenizer="bpe:300")
    vocabulary = loaded.tokenizer.get_vocab()
    assert any("abc" in token for token in vocabulary)
    assert not any("xy" in token for token in vocabulary)
    assert loaded.vocab_size == len(vocabulary) <= 300
    assert loaded.tokenizer.decode(loaded.valid.tokens[1:].tolist()) == "xyzxyz xyzxyz\n" * 200


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_impossible_shares(share: float, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words\n" * 9)
    with pytest.raises(InputError, match=f"the held-out share is {share}: it must be between 0 and 1"):
        load_corpus(tmp_path / "text.txt", valid_share=share)


def test_a_single_byte_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(InputError, match="no document of two bytes: give more text, or a held-out part of its own"):
        load_corpus(tmp_path / "text.txt")


@given(st.text(alphabet="ab \n\t\r", max_size=40))
def test_words_are_counted_as_split_does(text: str) -> None:
    assert count_words(text.encode()) == (len(text.split()), text.count("\n"))


@same_folder
@given(
    contents=st.lists(st.text(alphabet="ab \n", min_size=1, max_size=30), min_size=1, max_size=8),
    piece=st.integers(2, 12),
)
def test_token_files_in_pieces_equal_those_in_memory(contents: list[str], piece: int, tmp_path: Path) -> None:
    raw = [text.encode() for text in contents]
    stored = store_documents((Document("a", 0, [text]) for text in raw), tmp_path / "text", lambda message: None)
    spans = [*split_whole(stored)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqmix.data.documents._PIECE_BYTES", piece)
        patch.setattr("seqmix.data.documents._CUT_SEARCH_BYTES", piece)
        patch.setattr("seqmix.data.encoding._BATCH_BYTES", 2 * piece)
        header, lossless = write_part(tmp_path, "part", stored, spans, byte_tokenizer(), lambda message: None)
    store = open_store(tmp_path, "part", header)
    expected = memory_store(raw, END)
    assert lossless
    assert store is not None
    assert np.array_equal(store.tokens, expected.tokens)
    assert np.array_equal(store.documents, expected.documents)
    lines = sum(text.count("\n") + (not text.endswith("\n")) for text in contents)
    assert (store.bytes, expected.words) == (sum(map(len, raw)), sum(len(text.split()) for text in contents) + lines)
    # A word is counted twice only where a piece had to end within one.
    assert expected.words <= store.words <= expected.words + sum(map(len, raw)) // max(1, piece - 3)


def split_whole(stored: Documents) -> Iterator[Span]:
    yield from (Span(index, 0, stored.size(index)) for index in range(len(stored)))


def test_words_follow_the_convention_of_wikitext(tmp_path: Path) -> None:
    # A blank line, a heading and a sentence: 0, 3 and 5 words, and an <eos> for each line.
    (tmp_path / "train.txt").write_text("one line\n")
    (tmp_path / "valid.txt").write_text(" \n = Heading = \n The cat sat . <unk>\n")
    assert load_corpus(tmp_path).valid_words == 0 + 3 + 5 + 3


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}\n" for number in range(200)))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "own_cache"


def cached(cache: Path) -> Path:
    """The one folder that the cache holds."""
    (folder,) = (cache / "corpora").iterdir()
    return folder


def same(one: Corpus, other: Corpus) -> bool:
    return one.fingerprint == other.fingerprint and np.array_equal(one.train.tokens, other.train.tokens)


def test_the_second_call_reads_the_cache(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_corpus(text_file, cache_dir=cache)
    # The same content elsewhere is the same corpus; nothing may be built again.
    monkeypatch.setattr(corpus, "_build", None)
    (text_file.parent / "elsewhere").mkdir()
    other = shutil.copy(text_file, text_file.parent / "elsewhere")
    assert same(first, load_corpus(other, cache_dir=cache))
    assert isinstance(first.train.tokens.base, np.memmap)
    assert first.train.tokens.dtype == np.uint16
    assert sorted(path.name for path in cached(cache).iterdir()) == [
        "corpus.json", "tokenizer.json", "tokenizer_config.json",
        "train.documents", "train.tokens", "valid.documents", "valid.tokens",
    ]  # fmt: skip


def test_other_settings_are_other_corpora(text_file: Path, cache: Path) -> None:
    kinds = [{}, {"valid_share": 0.2}, {"tokenizer": "bpe:260"}, {"valid": text_file.with_name("v.txt")}]
    text_file.with_name("v.txt").write_text("held out\n")
    prints = {load_corpus(text_file, cache_dir=cache, **kind).fingerprint for kind in kinds}
    text_file.write_text(text_file.read_text() + "one more\n")
    prints.add(load_corpus(text_file, cache_dir=cache).fingerprint)
    assert len(prints) == 5


def test_the_environment_names_the_cache(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQMIX_CACHE", str(cache))
    load_corpus(text_file)
    assert cached(cache).is_dir()


@pytest.mark.parametrize(
    "name",
    ["train.tokens", "valid.tokens", "train.documents", "corpus.json", "tokenizer.json", "tokenizer_config.json"],
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_cache_is_rebuilt(name: str, damage: str, text_file: Path, cache: Path) -> None:
    first = load_corpus(text_file, cache_dir=cache)
    tokens = first.train.tokens.copy()
    path = cached(cache) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        # Not in place: the first corpus still reads the old file.
        path.unlink()
        path.write_bytes(content[:-5] if damage == "truncated" else changed)
    again = load_corpus(text_file, cache_dir=cache)
    assert same(first, again)
    assert np.array_equal(again.train.tokens, tokens)
    assert path.read_bytes() == content
    assert cached(cache) == path.parent


def test_what_a_killed_process_left_is_removed(text_file: Path, cache: Path) -> None:
    old, new = cache / "corpora" / ".building-old", cache / "corpora" / ".building-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    load_corpus(text_file, cache_dir=cache)
    assert not old.exists()
    assert new.exists()  # perhaps another process is at work


def test_processes_may_build_at_the_same_time(text_file: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_corpus(text_file, cache_dir=cache), range(4)))
    assert all(same(loaded[0], one) for one in loaded)
    assert cached(cache).is_dir()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1000, 2000, 4000])
def test_a_full_disk_leaves_nothing_behind(size: int, text_file: Path, cache: Path) -> None:
    text = text_file.stat().st_size
    # The limit is met by the documents, by the token file, or by the tokenizer.
    assert 1000 < text < 2000 < 2 * 0.85 * text
    assert 2 * text < 4000 < len(byte_tokenizer().backend_tokenizer.to_str(pretty=True))
    with disk_of(size), pytest.raises(SeqmixError, match=r"cannot be written to .* \(File too large.*\): make room"):
        load_corpus(text_file, cache_dir=cache)
    assert not list((cache / "corpora").iterdir())
    assert load_corpus(text_file, cache_dir=cache).train_bytes > 0


def test_no_space_left(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("seqmix.data.token_store.os.fsync", full)
    with pytest.raises(
        SeqmixError, match=r"\(No space left on device\): make room there or name another folder"
    ) as error:
        load_corpus(text_file, cache_dir=cache)
    assert not isinstance(error.value, InputError)
    assert not list((cache / "corpora").iterdir())


def test_a_cache_that_cannot_be_made(text_file: Path) -> None:
    with pytest.raises(SeqmixError, match=r"cannot be written to .*text\.txt.* \(Not a directory\): .* SEQMIX_CACHE"):
        load_corpus(text_file, cache_dir=text_file)


def test_progress_is_reported(text_file: Path, cache: Path) -> None:
    said: list[str] = []
    load_corpus(text_file, cache_dir=cache, tokenizer="bpe:260", progress=said.append)
    assert said == [f"reading {text_file}", "training a BPE of 260 tokens"]
