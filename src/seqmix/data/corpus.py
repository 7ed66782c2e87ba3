"""From a name to a corpus: read, split, tokenized, cached.

The cache holds one folder a corpus, named by a hash of the content, the tokenizer and the split. It is filled in a
temporary folder beside it and renamed, so that it is whole or absent, and it is checked by hash when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from seqmix.data.documents import Documents, store_documents
from seqmix.data.encoding import training_texts, write_part
from seqmix.data.sources import Role, Source, open_source
from seqmix.data.splits import Split, split_as_given, split_documents
from seqmix.data.synthetic import ExampleStore, Task, is_task, open_task, parse_task
from seqmix.data.token_store import TokenStore, open_store, read_header, write_header
from seqmix.data.tokenizers import (
    BYTES,
    bpe_size,
    byte_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_key,
    train_bpe,
    word_tokenizer,
)
from seqmix.errors import InputError, SeqmixError

Progress = Callable[[str], None]
_FORMAT = 1
_TEMPORARY = ".building-"
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to train on and text held out, as tokens; or the rows of a synthetic task.

    name: as it was asked for. fingerprint: a hash of the tokens of both parts and of the tokenizer, the same on every
    machine (of a task: of its options, its words and the beginning of both parts). notes: what a user should know,
    such as files that were skipped.
    """

    name: str
    train: TokenStore | ExampleStore
    valid: TokenStore | ExampleStore
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    notes: Sequence[str] = ()

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer, the special ones included."""
        return len(self.tokenizer)

    @property
    def task(self) -> Task | None:
        """The synthetic task that this is, or None for text."""
        return self.valid.task if isinstance(self.valid, ExampleStore) else None

    @property
    def train_bytes(self) -> int | None:
        """Bytes of text in the training part; None for a task."""
        return None if isinstance(self.train, ExampleStore) else self.train.bytes

    @property
    def valid_bytes(self) -> int | None:
        """Bytes of text in the held-out part; None for a task."""
        return None if isinstance(self.valid, ExampleStore) else self.valid.bytes

    @property
    def valid_words(self) -> int | None:
        """Words of the held-out part and ends of lines, as papers on WikiText count them; None for a task."""
        return None if isinstance(self.valid, ExampleStore) else self.valid.words

    @property
    def train_tokens(self) -> int | None:
        """Tokens of the training part; None for a task that draws rows without end."""
        return _tokens(self.train)

    @property
    def valid_tokens(self) -> int:
        """Tokens of the held-out part."""
        return _tokens(self.valid) or 0

    @property
    def valid_targets(self) -> int:
        """Tokens of the held-out part that a model is scored on: all but the first, or a task's answers."""
        return self.valid.answers if isinstance(self.valid, ExampleStore) else len(self.valid) - 1


def _tokens(store: TokenStore | ExampleStore) -> int | None:
    if isinstance(store, TokenStore):
        return len(store)
    return None if store.rows is None else store.rows * store.length


def load_corpus(
    source: str | os.PathLike[str],
    *,
    valid: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] = BYTES,
    cache_dir: str | os.PathLike[str] | None = None,
    valid_share: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Corpus:
    """Reads a corpus, holds a part out, and gives both as memory-mapped tokens; a second call reads the cache.

    source: a text file, a folder, .jsonl, .parquet, .gz or .xz of these, `hf:NAME[/CONFIG]`, a built-in name, or a
    synthetic task, NAME:key=value,... (which brings its own held-out part and words).
    valid: the held-out part, named likewise; None for the source's own (files or splits named train and valid), else
    about `valid_share` of the bytes, chosen by `seed` and content.
    tokenizer: "bytes", "bpe:N" (trained on the training part alone) or the path of a tokenizer.json.
    cache_dir: None for $SEQMIX_CACHE, else ~/.cache/seqmix. progress: called with a sentence now and then.

    Raises InputError for a source, tokenizer or share that cannot be used, SeqmixError when the cache cannot be
    written.
    """
    if not 0 < valid_share < 1:
        raise InputError(f"the held-out share is {valid_share}: it must be between 0 and 1")
    report = progress or _silent
    if is_task(os.fspath(source)):
        return _task_corpus(os.fspath(source), None if valid is None else os.fspath(valid), os.fspath(tokenizer))
    opened = open_source(source)
    given = None if valid is None else open_source(valid)
    spec = os.fspath(tokenizer)
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "source": opened.content_hash(),
        "valid": None if given is None else given.content_hash(),
        "tokenizer": tokenizer_key(spec),
    }
    if given is None and not opened.has_valid:
        settings |= {"valid_share": valid_share, "seed": seed}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    root = _cache_root(cache_dir)
    corpus = _open(root / key, opened)
    if corpus is None:
        try:
            _build(root, key, opened, given, spec, (valid_share, seed), report)
        except OSError as error:
            raise SeqmixError(
                f"the token files of {opened.name} cannot be written to {root} ({error.strerror or error}): "
                "make room there or name another folder with SEQMIX_CACHE"
            ) from error
        corpus = _open(root / key, opened)
        if corpus is None:
            raise SeqmixError(f"the token files in {root / key} were damaged while they were written: check that disk")
    for note in corpus.notes:
        report(note)
    return corpus


def _task_corpus(name: str, valid: str | None, tokenizer: str) -> Corpus:
    """A task, with a tokenizer of its words, or with a given one that has these words."""
    task = parse_task(name)
    if valid is not None:
        raise InputError(f"{valid!r} cannot be held out of {task.name}: a task draws its own, as many as valid=N says")
    words = word_tokenizer(task.words)
    if tokenizer != BYTES:
        if bpe_size(tokenizer) is not None:
            raise InputError(
                f"the tokenizer {tokenizer!r} does not go with {task.name}: leave it out, a task has words"
            )
        words = load_tokenizer(Path(tokenizer).expanduser())
        ids = words.get_vocab()
        for number, word in enumerate(task.words):
            if ids.get(word) != number:
                raise InputError(
                    f"{tokenizer!r} does not have word {number} of {name!r}, {word!r}: give a task of its vocabulary"
                )
    train, held_out = open_task(task)
    digest = hashlib.sha256(json.dumps([_FORMAT, task.spec(), task.words]).encode())
    for part in (train, held_out):
        beginning = part.read(np.arange(1))
        digest.update(beginning.tokens.astype("<i8").tobytes() + beginning.targets.astype("<i8").tobytes())
    return Corpus(name=name, train=train, valid=held_out, tokenizer=words, fingerprint=digest.hexdigest())


def _silent(message: str) -> None:
    pass


def _cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    chosen = cache_dir or os.environ.get("SEQMIX_CACHE") or Path.home() / ".cache" / "seqmix"
    return Path(chosen).expanduser() / "corpora"


def _open(folder: Path, source: Source) -> Corpus | None:
    """The corpus in a folder of the cache, or None when it is absent, damaged, or of another format."""
    header = read_header(folder, _FORMAT)
    if header is None:
        return None
    train = open_store(folder, "train", header["train"])
    valid = open_store(folder, "valid", header["valid"])
    if train is None or valid is None or _tokenizer_hash(folder) != header["tokenizer_sha256"]:
        return None
    identity = [header["tokenizer_sha256"]]
    for part in ("train", "valid"):
        identity += [header[part]["sha256"], header[part]["documents_sha256"]]
    return Corpus(
        name=source.name,
        train=train,
        valid=valid,
        tokenizer=load_tokenizer(folder),
        fingerprint=hashlib.sha256("\n".join(identity).encode()).hexdigest(),
        notes=(*source.notes, *header["notes"]),
    )


def _tokenizer_hash(folder: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            digest.update((folder / name).read_bytes())
    except OSError:
        return None
    return digest.hexdigest()


def _build(
    root: Path, key: str, source: Source, given: Source | None, spec: str, choice: tuple[float, int], report: Progress
) -> None:
    """Fills the folder `key`; nothing is left of it when that fails."""
    root.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
    try:
        train, valid, split, notes = _read_and_split(folder, source, given, choice, report)
        tokenizer = _make_tokenizer(spec, train, split, report)
        header: dict[str, Any] = {"format": _FORMAT, "source": source.name}
        for name, documents, spans in (("train", train, split.train), ("valid", valid, split.valid)):
            header[name], lossless = write_part(folder, name, documents, spans, tokenizer, report)
            if not lossless:
                notes.append(f"the tokenizer {spec} changes the text: bits per byte then count what is lost as known")
        save_tokenizer(tokenizer, folder)
        header["tokenizer_sha256"] = _tokenizer_hash(folder)
        header["notes"] = list(dict.fromkeys(notes))
        write_header(folder, header)
        for path in folder.glob("*.text"):
            path.unlink()
        _publish(folder, root / key, source)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_and_split(
    folder: Path, source: Source, given: Source | None, choice: tuple[float, int], report: Progress
) -> tuple[Documents, Documents, Split, list[str]]:
    """(documents of the training part, of the held-out part, who goes where, notes)."""
    train = _read(folder, source, "train", report)
    notes: list[str] = []
    if given is not None:
        valid = _read(folder, given, "valid" if given.has_valid else "train", report, "valid")
    elif source.has_valid:
        valid = _read(folder, source, "valid", report)
    else:
        valid = train
    chosen = valid is train
    split = split_documents(train, share=choice[0], seed=choice[1]) if chosen else split_as_given(train, valid)
    if split.dropped:
        notes.append(f"left out {split.dropped} training documents that repeat held-out text")
    return train, valid, split, notes


def _read(folder: Path, source: Source, role: Role, report: Progress, name: str | None = None) -> Documents:
    report(f"reading {source.name}")
    documents = store_documents(source.documents(role), folder / f"{name or role}.text", report)
    if not len(documents):
        raise InputError(f"{source.name} holds no text: give a source that does")
    return documents


def _make_tokenizer(spec: str, documents: Documents, split: Split, report: Progress) -> PreTrainedTokenizerFast:
    size = bpe_size(spec)
    if spec == BYTES:
        return byte_tokenizer()
    if size is None:
        return load_tokenizer(Path(spec).expanduser())
    report(f"training a BPE of {size} tokens")
    return train_bpe(training_texts(documents, split.train), size)


def _publish(folder: Path, final: Path, source: Source) -> None:
    """Renames a finished folder, in the place of a damaged one; a process that was faster has written the same."""
    for _ in range(2):
        try:
            os.rename(folder, final)
            return
        except OSError:
            if not final.is_dir():
                raise
        if _open(final, source) is not None:
            return
        shutil.rmtree(final, ignore_errors=True)
    raise OSError(f"{final} holds damaged files that cannot be removed")


def _remove_stale(root: Path) -> None:
    """Removes what killed processes left behind."""
    for path in root.glob(f"{_TEMPORARY}*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
