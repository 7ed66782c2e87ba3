"""Generating and reading tokens at one row, by context: the engines of seqmix beside generate() and other programs.

All take turns at a context. Decode is timed over a few tokens from exactly that context, which is restored each time;
prefill is the reading of a whole prompt of that length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import torch

from seqmix.bench import contenders, llama_cpp
from seqmix.bench.collect import Case, Row, Watch, collect
from seqmix.bench.decoders import GENERATE, Decoder, EngineDecoder, GenerateDecoder
from seqmix.bench.timing import quartiles, ratio, take_turns, with_threads
from seqmix.compare.progress import Display
from seqmix.errors import InputError, unknown_name
from seqmix.generation import ENGINES

DEFAULT_MODELS = ("convsamba", "gated_conv", *contenders.HUGGING_FACE, *llama_cpp.MODELS)
"""Those of llama.cpp are measured where it is installed."""

DEFAULT_CONTEXTS = (128, 1024, 4096)
STEPS = 32
"""Tokens that are generated in one turn."""

PAUSE = 0.01
"""Seconds before each turn: libraries let their idle threads spin for less, and those would be in the way."""


def _decoders(
    models: Sequence[str],
    engines: Sequence[str],
    params: str,
    vocab_size: int,
    context: int,
    threads: int,
    device: torch.device,
    watch: Watch,
) -> list[Decoder]:
    """Every way to generate that is asked for and can be had, of models made for the longest context."""
    found: list[Decoder] = []
    for name in models:
        if name in llama_cpp.MODELS and not llama_cpp.is_available():
            watch.leave_out(name, "it needs the packages llama-cpp-python and gguf")
            continue
        model = contenders.build(llama_cpp.MODELS.get(name, name), params, vocab_size, context, device).eval()
        # generate() warns when it goes on beyond the length that the config states.
        model.config.max_position_embeddings = context + STEPS + 1
        if name in llama_cpp.MODELS:
            found.append(llama_cpp.LlamaCppDecoder(name, model, threads, context + STEPS))
            continue
        if not contenders.is_ours(model):
            found.append(GenerateDecoder(name, model))
            continue
        for engine in engines:
            if engine == GENERATE:
                found.append(GenerateDecoder(name, model))
                continue
            try:
                found.append(EngineDecoder(name, engine, model, threads))
            except InputError as error:
                watch.leave_out(f"{name} with the engine {engine}", str(error))
    return found


def _times(
    sides: Sequence[Decoder],
    work: Callable[[Decoder], None],
    prepare: Callable[[Decoder], None],
    rounds: int,
    device: torch.device,
    watch: Watch,
) -> dict[str, list[float]]:
    return take_turns(
        {side.name: partial(work, side) for side in sides},
        rounds=rounds,
        warmup=1,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
        prepare={side.name: partial(_settle, prepare, side) for side in sides},
        budget_seconds=watch.budget_seconds,
        show=watch.progress(""),
    )


def _settle(prepare: Callable[[Decoder], None], side: Decoder) -> None:
    prepare(side)
    time.sleep(PAUSE)


def _rows(
    kind: str, context: int, tokens: int, sides: Sequence[Decoder], times: dict[str, list[float]], compared: set[str]
) -> list[Row]:
    """One row for each way, compared with those of the names in `compared`, and with generate() of its own model."""
    rows = []
    for side in sides:
        others = {
            other.model if other.name in compared else GENERATE: other.name
            for other in sides
            if other.name != side.name
            and (other.name in compared or (other.engine == GENERATE and other.model == side.model))
        }
        rows.append(
            {
                "kind": kind,
                "context": context,
                "model": side.model,
                "engine": side.engine,
                "faster_than": {name: ratio(times, other, side.name).to_dict() for name, other in others.items()},
                "tokens_per_second": quartiles(tokens / seconds for seconds in times[side.name]).to_dict(),
            }
        )
    return rows


def _measure(
    make_sides: Callable[[Watch], list[Decoder]],
    vocab_size: int,
    context: int,
    rounds: int,
    device: torch.device,
    watch: Watch,
) -> list[Row]:
    """Rows of one context."""
    watch.show(0.0, "making models")
    sides = make_sides(watch)
    compared = {side.name for side in sides if side.model in (*contenders.HUGGING_FACE, *llama_cpp.MODELS)}
    prompt = [Random(0).randrange(vocab_size) for _ in range(context)]
    # Every engine reads prompts in the same way, so one of each model is enough.
    readers = list({(side.model, side.engine == GENERATE): side for side in reversed(sides)}.values())[::-1]
    for side in sides:
        if side not in readers:
            side.read(prompt)
    first, second = watch.part(0, 2, "reading prompts"), watch.part(1, 2, "generating")
    reading = _times(readers, lambda side: side.read(prompt), lambda side: None, max(1, rounds // 3), device, first)
    stepping = _times(sides, lambda side: side.generate(STEPS), Decoder.stand, rounds, device, second)
    return [
        *_rows("decode", context, STEPS, sides, stepping, compared),
        *_rows("prefill", context, context, readers, reading, compared),
    ]


def bench_decode(
    display: Display,
    *,
    models: Sequence[str] = DEFAULT_MODELS,
    engines: Sequence[str] = (*ENGINES, GENERATE),
    contexts: Sequence[int] = DEFAULT_CONTEXTS,
    params: str = "10M",
    vocab_size: int = 258,
    threads: int | None = None,
    rounds: int = 9,
    budget_seconds: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Row:
    """Tokens per second of one row at some contexts; see `collect` for the document.

    Of a row: kind ("decode" or "prefill"), context, model, engine, tokens_per_second, and faster_than: by the name of
    each other program's model, and by "generate" (of the same model), its time over this one's, round by round.

    Raises:
        InputError: an unknown model or engine, a context below 1, or a precision that is not float32.
    """
    contenders.check_names(models, others=list(llama_cpp.MODELS))
    for engine in engines:
        if engine not in (*ENGINES, GENERATE):
            raise unknown_name("engine", engine, (*ENGINES, GENERATE))
    if min(contexts) < 1:
        raise InputError(f"context is {min(contexts)}: at least 1 token must have been read")
    if precision != "float32":
        raise InputError(f"precision is {precision!r}: decode is measured in float32 alone")
    made_of = [llama_cpp.MODELS.get(name, name) for name in models]
    contenders.check_sizes(made_of, params, vocab_size, [max(contexts)])
    with with_threads(threads) as used:
        made: list[Decoder] = []

        def make_sides(watch: Watch) -> list[Decoder]:
            if not made:
                made.extend(
                    _decoders(models, engines, params, vocab_size, max(contexts), used, torch.device(device), watch)
                )
            return made

        cases = [
            Case(
                label=f"decode at context {context}",
                run=partial(_measure, make_sides, vocab_size, context, rounds, torch.device(device)),
            )
            for context in contexts
        ]
        settings = {
            "models": list(models),
            "engines": list(engines),
            "contexts": list(contexts),
            "params": params,
            "vocab_size": vocab_size,
            "threads": used,
            "rounds": rounds,
            "tokens_a_turn": STEPS,
        }
        return collect("decode", cases, display, settings=settings, budget_seconds=budget_seconds, device=device)
