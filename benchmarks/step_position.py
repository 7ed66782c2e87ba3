"""The time of a step at position 1,000,000 over that at 128, for every preset whose state has a constant size.

    python benchmarks/step_position.py [--params 10M] [--engines torch,onnx] [--threads 2] [--rounds 15] [--read-all]

A preset whose step does more work while its window fills (its own `step_cost` says so) is compared with the filled
window instead of position 128. The later state is that after two contexts, which fill every ring, with its position
set to a million: the work of a step depends on the position alone. `--read-all` really reads a million tokens, which
takes minutes a model.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from typing import Any

import torch
from shared import Goal, arguments, finish, progress

from seqmix.bench.timing import busy_warning, environment, quartiles, ratio, take_turns, with_threads
from seqmix.errors import InputError
from seqmix.generation import ENGINES, Engine, create_engine
from seqmix.mixer import State
from seqmix.models import ModelState, SeqmixForCausalLM, create_model, list_models

EARLY, LATE = 128, 1_000_000
CONTEXT = 8192
VOCABULARY = 258
STEPS = 16
PIECE = 4096


def read(model: SeqmixForCausalLM, count: int, state: ModelState | None = None) -> ModelState:
    """The state after random tokens."""
    with torch.inference_mode():
        for tokens in torch.randint(VOCABULARY, (1, count)).split(PIECE, dim=1):
            _, state = model.prefill(tokens, state)
    assert state is not None
    return state


def at_position(state: Any, position: int) -> Any:
    """The same state, and all states within it, at another position."""
    if isinstance(state, tuple):
        return tuple(at_position(part, position) for part in state)
    if not isinstance(state, State):
        return state
    fields = {field.name: at_position(getattr(state, field.name), position) for field in dataclasses.fields(state)}
    return type(state)(**{**fields, "position": torch.full_like(state.position, position)})


def steps(engine: Engine) -> None:
    for token in range(STEPS):
        engine.step(token)


def is_constant(model: SeqmixForCausalLM) -> bool:
    return all(block.mixer.traits.state_growth == "constant" for block in model.model.layers)


def measure(
    model: SeqmixForCausalLM, states: dict[str, ModelState], engine_name: str, rounds: int, threads: int
) -> dict[str, Any]:
    """Microseconds of a step at both positions, and their ratio."""
    engine = create_engine(engine_name, model, threads=threads)
    sides = {name: partial(steps, engine) for name in states}
    prepare = {name: partial(engine.load_state, state) for name, state in states.items()}
    times = take_turns(sides, rounds=rounds, prepare=prepare)
    microseconds = {name: quartiles(1e6 * t / STEPS for t in times[name]).to_dict() for name in states}
    return {"ratio": ratio(times, "late", "early").to_dict(), "microseconds": microseconds}


def main() -> None:
    parser = arguments("A step at position 1,000,000 over one at 128.")
    parser.add_argument("--params", default=None, help="size without the embedding [10M]")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--read-all", action="store_true", help="read a million tokens")
    given = parser.parse_args()
    params = given.params or ("100k" if given.quick else "10M")
    rounds = given.rounds or (3 if given.quick else 25)
    torch.manual_seed(0)
    rows = []
    busy = busy_warning()
    with with_threads(given.threads) as threads, progress("steps") as bar:
        names = list_models()
        context = 256 if given.quick else CONTEXT
        for index, name in enumerate(names):
            bar.update(index / len(names), note=name)
            model = create_model(name, vocab_size=VOCABULARY, params=params, context=context).eval()
            if not is_constant(model):
                continue
            filled = read(model, 2 * context)
            grows = model.step_cost(1, EARLY).product_flops != model.step_cost(1, LATE).product_flops
            early, at = (filled, 2 * context) if grows else (read(model, EARLY), EARLY)
            late = read(model, LATE) if given.read_all else at_position(filled, LATE)
            for engine in given.engines.split(","):
                try:
                    found = measure(model, {"early": early, "late": late}, engine, rounds, threads)
                except InputError as error:
                    bar.message(f"left out: {name} with the engine {engine}, {error}")
                    continue
                rows.append({"model": name, "engine": engine, "early": at, **found})
        document = {
            "environment": environment(),
            "busy": busy,
            "settings": {"params": params, "rounds": rounds, "threads": threads, "read_all": given.read_all},
            "rows": rows,
        }
    found_goals = [
        Goal(
            what=f"{row['model']}, {row['engine']} from {row['early']:,}",
            value=row["ratio"]["median"],
            at_least=1.15,
            aim=1.02,
            smaller=True,
        )
        for row in rows
    ]
    finish(given, found_goals, document, [busy] if busy else [])


if __name__ == "__main__":
    sys.exit(main())
