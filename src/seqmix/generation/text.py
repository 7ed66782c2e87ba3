"""Tokens to text while they come: no character is shown before all of its bytes are there."""

from __future__ import annotations

import codecs
import json
from typing import Protocol

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from seqmix.data.tokenizers import byte_letters


class TextStream(Protocol):
    """Takes tokens one by one and gives the text that is complete by then."""

    def add(self, token: int) -> str:
        """The text that one more token completes, possibly none."""

    def finish(self) -> str:
        """What is left at the end: bytes that are no UTF-8 become U+FFFD."""


class ByteLevelStream:
    """For byte-level tokenizers, whose tokens are bytes: an incremental UTF-8 decoder. Special tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        letters = {letter: byte for byte, letter in enumerate(byte_letters())}
        special = set(tokenizer.all_special_ids)
        self._bytes = {
            token: bytes(letters[letter] for letter in text)
            for text, token in tokenizer.get_vocab().items()
            if token not in special and all(letter in letters for letter in text)
        }
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._bytes.get(token, b""))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class AnyStream:
    """For any other tokenizer, by the tokenizers library's own stream."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        return self._stream.step(self._backend, token) or ""

    def finish(self) -> str:
        return ""


def text_stream(tokenizer: PreTrainedTokenizerFast) -> TextStream:
    """The stream for a tokenizer."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    return ByteLevelStream(tokenizer) if decoder.get("type") == "ByteLevel" else AnyStream(tokenizer)
