"""What int8 and bfloat16 weights gain and cost: bits per byte of held-out text, speed and bytes, by engine.

    python benchmarks/weight_types.py RUN --data python-stdlib [--tokens 4096] [--threads 1] [--json]

RUN is the folder of a finished run. Every engine reads the same text token by token; the difference is to torch with
float32 weights, and the engine onnx also rounds activations with int8. `rings` is how the past of convolutions is held.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from seqmix.bench.timing import environment, with_threads
from seqmix.cli.output import print_table
from seqmix.data import load_corpus
from seqmix.data.tokenizers import BYTES, is_byte_tokenizer, load_tokenizer
from seqmix.errors import InputError
from seqmix.generation import ENGINES, WEIGHT_TYPES, create_engine
from seqmix.generation.precision import measure_loss
from seqmix.models.loading import load_model

BYTES_OF = {"f32": 4, "bf16": 2, "int8": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("--data", required=True, help="the corpus whose held-out part is read")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = load_model(given.run, dtype=torch.float32)
    spec = BYTES if is_byte_tokenizer(load_tokenizer(Path(given.run))) else given.run
    store = load_corpus(given.data, tokenizer=spec).valid
    rows: list[dict[str, Any]] = []
    with with_threads(given.threads):
        cases = [(name, weights, "f32") for weights in WEIGHT_TYPES for name in ENGINES]
        cases += [(name, "f32", "bf16") for name in ENGINES if name != "torch"]
        for name, weights, rings in cases:
            try:
                engine = create_engine(name, model, weights=weights, threads=given.threads, rings=rings)
            except InputError as error:
                print(f"{name} with {weights}: {error}", file=sys.stderr)
                continue
            loss = measure_loss(engine, store, given.tokens)
            rows.append(
                {
                    "engine": name,
                    "weights": weights,
                    "rings": rings,
                    "bits_per_byte": loss.bits_per_byte,
                    "difference": loss.bits_per_byte - (rows[0]["bits_per_byte"] if rows else loss.bits_per_byte),
                    "tokens_per_second": loss.tokens_per_second,
                    "weight_bytes": BYTES_OF[weights] * model.num_parameters(),
                    "state_bytes": engine.state_bytes,
                }
            )
    if given.json:
        print(json.dumps({"environment": environment(), "tokens": given.tokens, "rows": rows}, indent=2))
        return 0
    print_table(
        ["engine", "weights", "rings", "bits per byte", "more than float32", "tokens/s"],
        [
            (
                row["engine"],
                row["weights"],
                row["rings"],
                f"{row['bits_per_byte']:.5f}",
                f"{row['difference']:+.5f}",
                f"{row['tokens_per_second']:,.0f}",
            )
            for row in rows
        ],
        left=["weights", "rings"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
