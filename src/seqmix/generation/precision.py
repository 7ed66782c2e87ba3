"""What smaller weights cost: bits per byte of held-out text, token by token through the engine that will be used."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np

from seqmix.data import TokenStore
from seqmix.errors import InputError
from seqmix.generation.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Loss:
    """bits_per_byte of the tokens read; an <|end|> between documents counts, as in `seqmix.evaluation`.

    tokens: how many were predicted. tokens_per_second: of reading them one by one.
    """

    bits_per_byte: float
    tokens: int
    tokens_per_second: float


def measure_loss(engine: Engine, store: TokenStore, max_tokens: int) -> Loss:
    """Reads the first documents of a store, each from an empty state, until `max_tokens` are predicted.

    The bytes of a part of the text are the same share of the whole's.

    Raises:
        InputError: fewer than two tokens.
    """
    if max_tokens < 1 or len(store) < 2:
        raise InputError(f"{len(store)} tokens and at most {max_tokens} of them to predict: both are too few")
    bits, predicted, seconds = 0.0, 0, 0.0
    for first, last in itertools.pairwise(store.documents.tolist()):
        engine.reset()
        # The token that follows a document is the end token that the next one begins with.
        for position in range(first, min(last, len(store) - 1)):
            begin = time.perf_counter()
            logits = engine.step(int(store.tokens[position]))
            seconds += time.perf_counter() - begin
            bits -= _log_share(logits, int(store.tokens[position + 1])) / math.log(2)
            predicted += 1
            if predicted == max_tokens:
                break
        if predicted == max_tokens:
            break
    share = predicted / (len(store) - 1)
    return Loss(
        bits_per_byte=bits / (share * store.bytes), tokens=predicted, tokens_per_second=predicted / max(seconds, 1e-9)
    )


def _log_share(logits: np.ndarray, token: int) -> float:
    """The natural logarithm of a token's probability, in float64."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    return float(wide[token] - highest - np.log(np.exp(wide - highest).sum()))
