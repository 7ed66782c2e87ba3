"""One sequence, token by token: our engines beside llama.cpp and beside generate() of Hugging Face.

    python benchmarks/decode.py [--models gated_conv,convsamba,mamba2] [--engine native] [--params 8M] [--threads N]
        [--weights f32|int8] [--contexts 128,4096] [--rounds 15] [--json]

All sides take turns in one process with equally many threads, after a pause in which the other side's threads fall
asleep; a ratio is formed in each round. Without --threads one thread is measured, then two. llama.cpp computes the
same step for models of the same size: a Llama, whose cost grows with the context, and a Mamba-2. Without
llama-cpp-python and gguf its rows are not measured.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llama_cpp_peer import VOCABULARY, LlamaCpp, write_llama, write_mamba2
from shared import Goal, arguments, finish, progress

from seqmix.bench.decoders import GenerateDecoder
from seqmix.bench.floors import reads
from seqmix.bench.timing import busy_warning, environment, quartiles, ratio, take_turns, with_threads
from seqmix.generation import ENGINES, Engine, create_engine
from seqmix.models import create_model

STEPS = 16
"""Tokens of one turn."""
GENERATED = 8
"""Tokens that generate() gives in its turn, which is much slower."""
PAUSE = 0.01
"""Seconds before each turn: longer than any of the libraries lets its threads spin."""
LLAMA_AT = {128: (1.0, 1.4), 4096: (6.0, 9.0)}
"""At least and aim, by context; between and beyond them nothing is asked for."""


class Side:
    """One of what take turns: `run` is timed, `prepare` is done before it."""

    def __init__(self, run: Callable[[], object], count: int, prepare: Callable[[], object] | None = None) -> None:
        self.run, self.count, self._prepare = run, count, prepare

    def prepare(self) -> None:
        if self._prepare is not None:
            self._prepare()
        time.sleep(PAUSE)


def seconds_a_token(sides: dict[str, Side], rounds: int, show: Callable[[float], None]) -> dict[str, list[float]]:
    times = take_turns(
        {name: side.run for name, side in sides.items()},
        prepare={name: side.prepare for name, side in sides.items()},
        rounds=rounds,
        show=show,
    )
    return {name: [one / sides[name].count for one in times[name]] for name in times}


def our_steps(engine: Engine) -> None:
    for token in range(STEPS):
        engine.step(token)


def their_steps(peer: LlamaCpp) -> None:
    for token in range(STEPS):
        peer.step(token)


@contextmanager
def llama_cpp_files(weights: str) -> Iterator[dict[str, Path]]:
    """The peers' models, none where llama.cpp is not there."""
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "llama_cpp")):
        yield {}
        return
    kind = {"int8": "q8_0"}.get(weights, weights)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.gguf" for name in ("Llama", "Mamba-2")}
        write_llama(files["Llama"], kind)
        write_mamba2(files["Mamba-2"], kind)
        yield files


class Benchmark:
    """Collects goals and documents while it goes through threads and contexts."""

    def __init__(self, given: Any, files: dict[str, Path], bar: Any) -> None:
        self.given, self.files, self.bar = given, files, bar
        self.rounds = given.rounds or (3 if given.quick else 15)
        self.models = given.models.split(",")
        self.contexts = [int(word) for word in given.contexts.split(",")]
        self.params = "100k" if given.quick else given.params
        self.goals: list[Goal] = []
        self.documents: list[dict[str, Any]] = []

    def goal(self, what: str, times: dict[str, list[float]], peer: str, name: str, limits: tuple[float, float]) -> None:
        value = ratio(times, peer, name).median if peer in times else None
        self.goals.append(Goal(what=what, value=value, at_least=limits[0], aim=limits[1]))

    def note(self, kind: str, context: int, threads: int, times: dict[str, list[float]]) -> None:
        self.documents.append(
            {
                "kind": kind,
                "context": context,
                "threads": threads,
                "seconds_a_token": {name: quartiles(values).to_dict() for name, values in times.items()},
            }
        )

    def build(self, name: str, context: int) -> Any:
        torch.manual_seed(0)
        return create_model(name, vocab_size=VOCABULARY, params=self.params, context=context).eval()

    def peers(self, context: int, threads: int, tokens: list[int]) -> dict[str, LlamaCpp]:
        found = {
            f"llama.cpp's {name}": LlamaCpp(path, threads=threads, context=context) for name, path in self.files.items()
        }
        for peer in found.values():
            peer.read(tokens)
        return found

    def decode(self, context: int, threads: int) -> None:
        tokens = torch.randint(256, (context,)).tolist()
        sides: dict[str, Side] = {}
        peers = self.peers(context, threads, tokens)
        for name, peer in peers.items():
            stand = partial(peer.stand, context) if "Llama" in name else None
            sides[name] = Side(partial(their_steps, peer), STEPS, stand)
        for name in self.models:
            engine = create_engine(
                self.given.engine, self.build(name, context), weights=self.given.weights, threads=threads
            )
            engine.prefill(tokens)
            sides[name] = Side(partial(our_steps, engine), STEPS)
        for name, floor in reads().items():
            sides[name] = Side(floor.run, 1)
        times = seconds_a_token(sides, self.rounds, partial(self.show, f"decode at {context}, threads {threads}"))
        self.note("decode", context, threads, times)
        for name in self.models:
            where = f"{name}, context {context}, threads {threads}"
            if context in LLAMA_AT:
                self.goal(
                    f"decode against llama.cpp's Llama: {where}", times, "llama.cpp's Llama", name, LLAMA_AT[context]
                )
            self.goal(f"decode against llama.cpp's Mamba-2: {where}", times, "llama.cpp's Mamba-2", name, (1.2, 1.8))
        for peer in peers.values():
            peer.close()

    def prefill(self, context: int, threads: int) -> None:
        tokens = torch.randint(256, (context,)).tolist()
        peers = self.peers(context, threads, tokens)
        sides = {name: Side(partial(peer.read, tokens), context) for name, peer in peers.items()}
        for name in self.models:
            engine = create_engine(
                self.given.engine, self.build(name, context), weights=self.given.weights, threads=threads
            )
            sides[name] = Side(partial(engine.prefill, tokens), context, engine.reset)
        rounds = max(3, self.rounds // 3)
        times = seconds_a_token(sides, rounds, partial(self.show, f"prefill of {context}, threads {threads}"))
        self.note("prefill", context, threads, times)
        for name in self.models:
            where = f"{name}, threads {threads}"
            self.goal(f"prefill of {context} against its Llama: {where}", times, "llama.cpp's Llama", name, (1.5, 2.5))
        for peer in peers.values():
            peer.close()

    def generate(self, context: int, threads: int) -> None:
        tokens = torch.randint(256, (context,)).tolist()
        sides: dict[str, Side] = {}
        for name in self.models:
            model = self.build(name, context)
            # generate() warns when it goes on beyond the length that the config states.
            model.config.max_position_embeddings = context + GENERATED + 1
            slow = GenerateDecoder(name, model)
            slow.read(tokens)
            sides[f"generate() of {name}"] = Side(partial(slow.generate, GENERATED), GENERATED, slow.stand)
            engine = create_engine(self.given.engine, model, weights=self.given.weights, threads=threads)
            engine.prefill(tokens)
            sides[name] = Side(partial(our_steps, engine), STEPS)
        times = seconds_a_token(sides, self.rounds, partial(self.show, f"generate() at {context}, threads {threads}"))
        self.note("generate", context, threads, times)
        for name in self.models:
            what = f"decode against generate() of the same model: {name}, threads {threads}"
            self.goal(what, times, f"generate() of {name}", name, (6.0, 12.0))

    def show(self, label: str, share: float) -> None:
        self.bar.update(share, label=label)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", default="gated_conv,convsamba,mamba2")
    parser.add_argument("--engine", default="native", choices=ENGINES)
    parser.add_argument("--params", default="8M")
    parser.add_argument("--contexts", default="128,4096")
    parser.add_argument("--weights", default="f32", choices=("f32", "bf16", "int8"))
    given = parser.parse_args()
    counts = [1, 2] if given.threads is None else [given.threads]
    warning = busy_warning()
    with llama_cpp_files(given.weights) as files, progress("decode") as bar:
        benchmark = Benchmark(given, files, bar)
        for count in counts:
            with with_threads(count):
                for context in benchmark.contexts:
                    benchmark.decode(context, count)
                benchmark.prefill(max(benchmark.contexts), count)
                benchmark.generate(min(benchmark.contexts), count)
    lines = [] if warning is None else [warning]
    if not files:
        lines.append("llama.cpp is not here: pip install llama-cpp-python gguf")
    document = {"environment": environment(), "engine": given.engine, "weights": given.weights}
    finish(given, benchmark.goals, {**document, "measured": benchmark.documents}, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
