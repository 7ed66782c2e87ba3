"""Text to rows of tokens: sources, splits, tokenizers, cached token files, packing."""

from __future__ import annotations

from seqmix.data.batch import IGNORED, Batch
from seqmix.data.corpus import Corpus, load_corpus
from seqmix.data.packing import PackedStream, held_out_rows
from seqmix.data.sources import BUILT_IN, open_source
from seqmix.data.token_store import TokenStore, count_words, memory_store
from seqmix.data.tokenizers import byte_tokenizer, load_tokenizer, train_bpe

__all__ = [
    "BUILT_IN",
    "IGNORED",
    "Batch",
    "Corpus",
    "PackedStream",
    "TokenStore",
    "byte_tokenizer",
    "count_words",
    "held_out_rows",
    "load_corpus",
    "load_tokenizer",
    "memory_store",
    "open_source",
    "train_bpe",
]
