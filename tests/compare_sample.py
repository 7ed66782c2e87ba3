"""A complete results.json as a comparison of five models and two seeds leaves it, for tests of what reads it.

The numbers follow simple laws instead of a training; everything that is derived from them (intervals, crossings,
ranges, the verdict) comes from the real code. `python tests/compare_sample.py FILE` writes it.
"""

from __future__ import annotations

import base64
import math
import random
import struct
import sys
import zlib
from pathlib import Path

from seqmix.compare.prices import prices
from seqmix.compare.results import FORMAT, Contender, Results, Trial, new_contender
from seqmix.compare.summary import crossover, summarize
from seqmix.compare.verdict import verdict
from seqmix.files import write_json
from seqmix.models.crossings import formula_crossings

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PER_HOUR = 0.1
MODELS = {
    # bits per byte, training tokens/s, layers, state bytes at n, decode tokens/s at n, receptive field
    "transformer": (2.31, 21_000, 4, lambda n: 16 + 2 * 4 * 4 * 72 * n, lambda n: 1e6 / (900 + 0.35 * n), None),
    "convsamba": (2.36, 24_000, 6, lambda n: 6 * 96 * 4 * 600, lambda n: 1e6 / 1150, 1489),
    "gated_conv": (2.24, 26_000, 4, lambda n: 4 * 80 * 4 * 2, lambda n: 1e6 / 820, 9),
    "convtransformer": (
        2.235,
        24_500,
        4,
        lambda n: 3 * 80 * 8 + 2 * 4 * 80 * n,
        lambda n: 1e6 / (850 + 0.09 * n),
        None,
    ),
    "mamba2": (2.29, 9_000, 4, lambda n: 4 * 160 * 128 * 4, lambda n: 1e6 / 2100, None),
}


def sample_results(seeds: int = 2) -> Results:
    """A finished comparison; mamba2 with the last seed has failed."""
    random_numbers = random.Random(0)
    contenders = [
        _contender(name, seed, random_numbers, fails=name == "mamba2" and seed == seeds - 1)
        for seed in range(seeds)
        for name in MODELS
    ]
    reached = {name: 300_000 * (1 + 0.004 * index) for index, name in enumerate(MODELS)}
    results: Results = {
        "format": FORMAT,
        "status": "finished",
        "command": "seqmix compare --data python-stdlib "
        "--models transformer,convsamba,gated_conv,convtransformer,mamba2 "
        "--match params --params 300k --budget tokens=600k --seeds 2 --out demo",
        "settings": {
            "data": "python-stdlib",
            "models": list(MODELS),
            "match": "params",
            "params": "300k",
            "budget": "tokens=600k",
            "seeds": seeds,
            "tune": 3,
            "context": 256,
            "batch_size": 16,
        },
        "environment": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "versions": {"python": "3.12.3", "seqmix": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"device": "cpu", "processor": "Some CPU @ 2.50GHz", "cores": 2, "memory_bytes": 8 << 30},
            "threads": 2,
            "date": "2026-11-20T12:00:00+00:00",
        },
        "prices": prices("cpu", price=PER_HOUR).to_dict(),
        "corpus": {
            "name": "python-stdlib",
            "fingerprint": "7c4a8d09ca3762af",
            "tokenizer": "bytes",
            "vocab_size": 258,
            "train_bytes": 9_876_543,
            "train_tokens": 9_878_000,
            "valid_bytes": 1_098_765,
            "valid_tokens": 1_099_000,
            "evaluated_tokens": 65_536,
            "notes": ["511 files of Python's library, 9.8 MB"],
        },
        "matched": {
            "quantity": "parameters",
            "unit": "",
            "target": 300_000,
            "spread": 0.016,
            "tolerance": 0.02,
            "reached": reached,
        },
        "not_matched": [],
        "models": [],
        "contenders": contenders,
        "tuning": _tuning(random_numbers),
        "comparisons": [],
        "crossovers": [],
        "verdict": [],
        "plans": [],
        "notes": [],
    }
    growing = [name for name in MODELS if MODELS[name][3](1) != MODELS[name][3](2)]
    formula = [
        crossover("state_bytes", "context", "formula", a, b, crossing)
        for a in growing
        for b in MODELS
        if b not in growing
        for crossing in formula_crossings(MODELS[a][3], MODELS[b][3])
    ]
    summarize(results, formula)
    results["verdict"] = verdict(results)
    return results


def _contender(name: str, seed: int, random_numbers: random.Random, fails: bool) -> Contender:
    score, speed, depth, state, decode, field = MODELS[name]
    contender = new_contender(name, seed, f"runs/{name}-{seed}")
    contender["learning_rate"] = 3e-3
    if fails:
        contender["status"] = "failed"
        contender["error"] = (
            "it was killed by signal 9 (SIGKILL), probably because memory ran out: try a smaller --batch-size"
        )
        return contender
    per_token = 6.5e5 + 1e4 * depth
    tokens, seconds = 600_000, 600_000 / speed
    final = score + random_numbers.gauss(0, 0.006) + 0.01 * seed
    steps = [round(tokens * step / 60) for step in range(1, 61)]
    losses = [math.log(2) * (final + 3.2 * math.exp(-step / 9) + random_numbers.gauss(0, 0.01)) for step in range(60)]
    contender.update(
        status="finished",
        parameters=300_000,
        total_parameters=322_000,
        width=72 + 4 * depth,
        depth=depth,
        flops_per_token=per_token,
        tokens=tokens,
        train_flops=3 * per_token * tokens,
        train_seconds=seconds,
        train_money=seconds / 3600 * PER_HOUR,
        accelerator_days=3 * per_token * tokens / (989e12 * 0.4 * 86400),
        tokens_per_second=speed,
        peak_memory_bytes=(620 << 20) + depth * (9 << 20),
        bits_per_byte=final,
        best_bits_per_byte=final - 0.001,
        perplexity=2**final,
        word_perplexity=2 ** (final * 6.2),
        state_bytes={str(context): state(context) for context in CONTEXTS},
        decode_tokens_per_second={str(context): decode(context) for context in CONTEXTS},
        prefill_tokens_per_second={str(c): 30 * decode(c) / (1 + (c / 9000 if field is None else 0)) for c in CONTEXTS},
        decode_money_per_million_tokens={str(c): 1e6 / decode(c) / 3600 * PER_HOUR for c in CONTEXTS},
        receptive_field=field,
        positions_seen=None if field is None else field // 2,
        path_length=1 if field is None else (None if field < 256 else 2),
        curve={
            "tokens": steps,
            "flops": [3 * per_token * step for step in steps],
            "seconds": [step / speed for step in steps],
            "money": [step / speed / 3600 * PER_HOUR for step in steps],
            "loss": losses,
        },
        evaluations={
            "tokens": steps[5::6],
            "seconds": [step / speed for step in steps[5::6]],
            "bits_per_byte": [*(loss / math.log(2) + 0.02 for loss in losses[5:-1:6]), final],
        },
        loss_by_position={
            "position": [0, 1, 2, 3, 5.5, 11.5, 23.5, 47.5, 95.5, 191.5],
            "bits": [final + 2.5 / (1 + place) for place in range(10)],
        },
        bits_by_block=[final + 0.3 * math.sin(block) + random_numbers.gauss(0, 0.01) for block in range(32)],
        gradient_norm_by_depth=[0.02 * 0.9**layer for layer in range(depth + 1)],
        matrix_images=[
            {"layer": layer, "head": head, "mixer": name, "png": _picture(field, head)}
            for layer in (0, depth - 1)
            for head in range(4)
        ],
    )
    return contender


def _tuning(random_numbers: random.Random) -> list[Trial]:
    trials: list[Trial] = []
    for name, (score, speed, *_) in MODELS.items():
        for rate in (1e-3, 3e-3, 9e-3):
            bits = score + 0.4 + 0.1 * math.log(rate / 3e-3) ** 2 + random_numbers.gauss(0, 0.01)
            trials.append(
                {
                    "model": name,
                    "learning_rate": rate,
                    "status": "finished",
                    "error": None,
                    "tokens": 60_000,
                    "train_seconds": 60_000 / speed,
                    "train_money": 60_000 / speed / 3600 * PER_HOUR,
                    "bits_per_byte": bits,
                    "chosen": rate == 3e-3,
                }
            )
    return trials


def _picture(field: int | None, head: int, side: int = 64) -> str:
    """A grey PNG: a band for a convolution, a fading triangle for the rest."""
    rows = []
    for target in range(side):
        row = bytearray([0])
        for source in range(side):
            back = target - source
            strength = 0.0 if back < 0 else math.exp(-back / 20)
            if field is not None:
                strength = 1.0 if 0 <= back < 32 and back % 2 ** (head % 3) == 0 else 0.0
            row.append(round(255 * (1 - strength)))
        rows.append(bytes(row))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), sample_results())
