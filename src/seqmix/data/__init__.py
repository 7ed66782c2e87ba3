"""Text to rows of tokens: sources, splits, tokenizers, cached token files, packing; and synthetic tasks."""

from __future__ import annotations

from seqmix.data.batch import IGNORED, Batch
from seqmix.data.corpus import Corpus, load_corpus
from seqmix.data.packing import PackedStream, held_out_rows
from seqmix.data.sources import BUILT_IN, open_source
from seqmix.data.stream import DEFAULT_CONTEXT, RowStream, check_context, natural_context, open_stream
from seqmix.data.synthetic import TASKS, ExampleStore, Task, example_batches, is_task, parse_task
from seqmix.data.token_store import TokenStore, count_words, memory_store
from seqmix.data.tokenizers import byte_tokenizer, load_tokenizer, train_bpe

__all__ = [
    "BUILT_IN",
    "DEFAULT_CONTEXT",
    "IGNORED",
    "TASKS",
    "Batch",
    "Corpus",
    "ExampleStore",
    "PackedStream",
    "RowStream",
    "Task",
    "TokenStore",
    "byte_tokenizer",
    "check_context",
    "count_words",
    "example_batches",
    "held_out_rows",
    "is_task",
    "load_corpus",
    "load_tokenizer",
    "memory_store",
    "natural_context",
    "open_source",
    "open_stream",
    "parse_task",
    "train_bpe",
]
