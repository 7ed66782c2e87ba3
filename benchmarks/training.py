"""Training steps of our models beside Hugging Face's Llama of the same size: speed, what it is spent on, and memory.

    python benchmarks/training.py [--models convsamba,gated_conv] [--params 10M] [--threads 2] [--rounds 7]
        [--vocab 258] [--parts speed,memory] [--operations] [--quick] [--json] [--out FILE]

In one process, steps of all models take turns with matrix products: forward, loss, backward, AdamW. A ratio is Llama's
time over ours, round by round. The share at the floor is the time that a step's matrix products and convolutions
would take at the product's rate, over the step's. Llama is transformers' LlamaForCausalLM with its own loss and
scaled dot-product attention; both sides use torch's fused AdamW, and the process keeps memory that tensors free, as
our training does, which helps both. The peak of memory is that of two steps over one row
of 8192 tokens, each model in a process of its own. --operations prints what the longest operations of a step are.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from shared import Goal, arguments, finish, progress

from seqmix.bench.peak import TrainingSize, training_peak
from seqmix.bench.step_profile import profile_steps
from seqmix.bench.timing import OtherProcesses, environment, ratio, with_threads
from seqmix.training.memory import freed_memory_kept

CPU = torch.device("cpu")
PEER = "hf-llama"
TOKENS = 4096
LONG = 8192
FASTER = {512: (1.2, 1.4), 4096: (5.0, 6.0)}
"""At least and aim, by context."""
SHARE = (0.7, 0.85)
MEMORY = (0.6, 0.4)


def sizes_of(
    models: list[str], context: int, rows: int, params: str, vocabulary: int, threads: int
) -> list[TrainingSize]:
    return [
        TrainingSize(
            model=model,
            params=params,
            vocab_size=vocabulary,
            context=context,
            batch_size=rows,
            threads=threads,
        )
        for model in models
    ]


def speed_goals(found: dict[str, Any], context: int) -> list[Goal]:
    goals = []
    least, aim = FASTER.get(context, (1.0, 1.0))
    for row in found["rows"]:
        if row["model"] == PEER:
            continue
        faster = ratio(found["times"], PEER, row["model"]).median
        what = f"{row['model']}, T={context}"
        goals.append(Goal(what=f"{what}: tokens/s over Llama's", value=faster, at_least=least, aim=aim))
        share = row["share_at_floor"]["median"]
        goals.append(Goal(what=f"{what}: share at the floor", value=share, at_least=SHARE[0], aim=SHARE[1], unit="%"))
    return goals


def memory_goals(peaks: dict[str, int | str], context: int) -> list[Goal]:
    theirs = peaks[PEER]
    goals = []
    for model, peak in peaks.items():
        if model != PEER:
            value = peak / theirs if isinstance(peak, int) and isinstance(theirs, int) else None
            what = f"{model}, T={context}: peak memory over Llama's"
            goals.append(Goal(what=what, value=value, at_least=MEMORY[0], aim=MEMORY[1], smaller=True))
    return goals


def operation_lines(row: dict[str, Any], most: int = 12) -> list[str]:
    total = sum(entry["milliseconds"] for entry in row["operations"])
    lines = [f"{row['model']}, T={row['context']}, one step of {total:.0f} ms under the profiler:"]
    for entry in row["operations"][:most]:
        share, mark = entry["milliseconds"] / total, "  product" if entry["is_product"] else ""
        lines.append(f"  {share:6.1%} {entry['milliseconds']:8.1f} ms {entry['calls']:5d} × {entry['name']}{mark}")
    return lines


def main() -> None:
    parser = arguments("Training steps beside Hugging Face's Llama.")
    parser.add_argument("--models", default="convsamba,gated_conv")
    parser.add_argument("--params", default=None, help="parameters without the embedding [10M]")
    parser.add_argument("--contexts", default=None, help="[512,4096]")
    parser.add_argument("--vocab", type=int, default=258)
    parser.add_argument("--parts", default="speed,memory", help="speed, memory, or both")
    parser.add_argument("--operations", action="store_true", help="print the longest operations of a step")
    given = parser.parse_args()
    models = [*given.models.split(","), PEER]
    params = given.params or ("100k" if given.quick else "10M")
    default = (64, 128) if given.quick else FASTER
    contexts = [int(context) for context in given.contexts.split(",")] if given.contexts else list(default)
    tokens, long = (128, 256) if given.quick else (TOKENS, LONG)
    rounds = given.rounds or (3 if given.quick else 7)
    parts = given.parts.split(",")
    watch, goals, lines, document = OtherProcesses(), [], [], {}
    with with_threads(given.threads) as threads, progress("training") as display, freed_memory_kept(CPU):
        if "speed" in parts:
            for context in contexts:
                rows = max(1, tokens // context)
                sizes = sizes_of(models, context, rows, params, given.vocab, threads)
                found = profile_steps(
                    sizes, rounds=rounds, show=lambda share, at=context: display.update(share, f"steps at T={at}")
                )
                goals += speed_goals(found, context)
                for row in found["rows"]:
                    speed, rate = row["tokens_per_second"]["median"], row["product_gflops"]["median"]
                    name = f"{row['model']}, T={context}"
                    lines.append(f"{name}: {speed:,.0f} tokens/s, {row['flops'] / 1e9:.0f} GFLOP at {rate:.0f} GFLOP/s")
                    if given.operations:
                        lines += operation_lines(row)
                document[str(context)] = found
        if "memory" in parts:
            peaks: dict[str, int | str] = {}
            for size in sizes_of(models, long, 1, params, given.vocab, threads):
                display.update(len(peaks) / len(models), f"memory of {size.model}")
                peaks[size.model] = training_peak(size)
            goals += memory_goals(peaks, long)
            lines += [
                f"{model}, T={long}: {peak / 2**20:,.0f} MiB" if isinstance(peak, int) else f"{model}: {peak}"
                for model, peak in peaks.items()
            ]
            document["peaks"] = peaks
        machine = environment()
    lines.insert(
        0, f"{machine['hardware']['processor']}, threads: {threads}, {params} parameters, vocabulary {given.vocab}"
    )
    busy = watch.warning()
    if busy:
        print(busy, file=sys.stderr)
    finish(given, goals, {"environment": machine, "measured": document, "busy": busy}, lines)


if __name__ == "__main__":
    main()
