"""Texts as the tokens that a model reads, and each token as a word that can be shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from seqmix.data.tokenizers import TextEncoder, byte_letters
from seqmix.errors import InputError

SAMPLE = (
    "A convolution looks at its neighbours with the same weights everywhere. Attention looks at every earlier word and "
    "weighs it by what it says. A recurrence keeps a summary and reads each word once. The neighbours, the earlier "
    "words and the summary answer the same question: who listens to whom?\n"
)
"""What is read when no text is given."""


@dataclass(frozen=True)
class Text:
    """name: what the text is called. input_ids: (1, T). tokens: each as it is shown, bytes that are no whole character
    as \\xNN. cut_from: the tokens it had, where it was cut; None where it is whole.
    """

    name: str
    input_ids: Tensor
    tokens: list[str]
    cut_from: int | None


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, name: str, longest: int) -> Text:
    """A text as a document of its own: the end token of the one before it, then its tokens, at most `longest` in all.

    Raises:
        InputError: the text is empty.
    """
    if not text:
        raise InputError(f"{name} is empty: give at least one character")
    # Every token is at least a byte, and only so many can be shown.
    found = TextEncoder(tokenizer).encode([text])[0].tolist()
    return cut_text(tokenizer, [tokenizer.eos_token_id, *found], name, longest)


def cut_text(tokenizer: PreTrainedTokenizerFast, ids: list[int], name: str, longest: int) -> Text:
    """The first `longest` of these token ids."""
    if longest < 2:
        raise InputError(f"tokens is {longest}: at least 2 are needed for one to listen to another")
    shown = ids[:longest]
    return Text(
        name=name,
        input_ids=torch.tensor([shown]),
        tokens=token_labels(tokenizer, shown),
        cut_from=len(ids) if len(ids) > longest else None,
    )


def with_one_token_changed(text: Text, tokenizer: PreTrainedTokenizerFast) -> Text:
    """The text with the token at a third of it replaced by another of the same text, to see what that moves."""
    ids = text.input_ids[0].tolist()
    place = len(ids) // 3
    others = [other for other in ids[1:] if other != ids[place]]
    # In a text of one token alone, its neighbour in the vocabulary is as good as any.
    ids[place] = others[len(others) // 2] if others else (ids[place] + 1) % len(tokenizer)
    labels = token_labels(tokenizer, ids)
    return Text(f"{text.name}, token {place} changed", torch.tensor([ids]), labels, text.cut_from)


def token_labels(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    """What each token stands for by itself."""
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    special = set(tokenizer.all_special_ids)
    labels = []
    for token, word in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token in special or not all(letter in letters for letter in word):
            labels.append(str(tokenizer.decode([token], skip_special_tokens=False)) or word)
            continue
        content = bytes(letters[letter] for letter in word)
        try:
            labels.append(content.decode())
        except UnicodeDecodeError:
            labels.append("".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in content))
    return labels
