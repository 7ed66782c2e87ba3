"""The loop of generation: read the prompt, then draw a token, show it, and read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from seqmix.errors import InputError
from seqmix.generation.engine import Engine
from seqmix.generation.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class Generated:
    """tokens: what was drawn, without the token that ended it. stopped: whether an end token was drawn.

    prompt_tokens: how many were read first. prefill_seconds: reading them. decode_seconds: all that followed.
    """

    tokens: list[int]
    stopped: bool
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float


def generate(
    engine: Engine,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler,
    *,
    end_tokens: Collection[int] = (),
    show: Callable[[int], None] | None = None,
) -> Generated:
    """Draws up to `max_new_tokens` tokens after a prompt; stops before a token of `end_tokens`.

    Args:
        show: is told every token as soon as it is drawn.

    Raises:
        InputError: an empty prompt, a number of tokens below 0.
    """
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}: it must not be negative")
    begin = time.perf_counter()
    logits = engine.prefill(prompt)
    read = time.perf_counter()
    tokens: list[int] = []
    stopped = False
    while len(tokens) < max_new_tokens:
        token = sampler(logits)
        if token in end_tokens:
            stopped = True
            break
        tokens.append(token)
        if show is not None:
            show(token)
        if len(tokens) < max_new_tokens:
            logits = engine.step(token)
    return Generated(
        tokens=tokens,
        stopped=stopped,
        prompt_tokens=len(prompt),
        prefill_seconds=read - begin,
        decode_seconds=time.perf_counter() - read,
    )
