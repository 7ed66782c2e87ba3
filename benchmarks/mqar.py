"""Multi-query associative recall for several mixers, in a reduced form of the paper's protocol (arXiv 2312.04927).

    python benchmarks/mqar.py [--contenders attention,mamba2,...] [--widths 64,128] [--sizes 64:4,128:8]
        [--rates 1e-2,4.6e-3] [--epochs 8] [--weight-decay 0.5] [--examples 10000] [--threads 1]
        [--out FILE] [--quick] [--json]

A contender is two layers of one mixer without feed-forward, one head where it has heads, over a vocabulary of 8192
(64 with --quick) with tied embeddings; attention has rotary positions, which are learned from fewer rows than the
paper's table of positions is, the others have none. The paper has 100,000 training rows, 64 epochs and the best of
four learning rates; here it is 10,000 rows, a cap on the epochs, and the rates of --rates in turn: a later one is
tried where no earlier one reached --stop. Weight decay is stronger than the paper's 0.1 and is on the embeddings too,
since so few rows are soon learned by heart. Held-out rows are looked at twice an epoch (some of them) and at the end
(all 3000).

--out is written after every run, and the same command goes on from there. Runs come rate by rate, then cell by cell,
so that whatever is there can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from shared import progress

from seqmix.bench.timing import environment, with_threads
from seqmix.cli.output import Progress, print_table
from seqmix.data import load_corpus, open_stream
from seqmix.errors import SeqmixError
from seqmix.evaluation import evaluate
from seqmix.files import write_json
from seqmix.mixers import list_mixers
from seqmix.models import SeqmixConfig, SeqmixForCausalLM
from seqmix.training.memory import freed_memory_kept
from seqmix.training.optimizer import decay_groups
from seqmix.training.schedule import Schedule

CONTENDERS = ("attention", "mamba2", "rwkv7", "hyena", "gated_global_conv", "gated_conv")
RATES = (1e-2, 4.64e-3, 2.15e-3, 1e-3, 4.64e-4, 2.15e-4, 1e-4)
"""The paper's logspace(1e-4, 1e-2, 4) is every second of these."""

PAPER = {
    "attention": (1.00, "attention"),
    "rwkv7": (0.76, "RWKV-4"),
    "hyena": (0.52, "Hyena"),
    "gated_global_conv": (0.70, "BaseConv"),
}
"""Accuracy at length 64, width 64, read off the paper's figure 2: of the same mixer, or of the nearest it has."""

BATCH = 128
SOME_ANSWERS = 2000
"""Held-out answers that are looked at on the way."""

CPU = torch.device("cpu")


def options_of(mixer: str, length: int) -> dict[str, Any]:
    """The options of a mixer's config that are not its own defaults."""
    return {
        "attention": {"heads": 1},
        "mamba2": {"state_size": 64},
        "hyena": {"length": length},
        "gated_global_conv": {"length": length},
        "gated_conv": {"kernel": 4},
    }.get(mixer, {})


def build(mixer: str, width: int, length: int, vocabulary: int) -> SeqmixForCausalLM:
    torch.manual_seed(0)
    return SeqmixForCausalLM(
        SeqmixConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=2,
            mixers=[{"name": mixer, **options_of(mixer, length)}],
            feed_forward=0,
            max_position_embeddings=length,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def make_optimizer(model: SeqmixForCausalLM, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that shrinks the embeddings too, as the paper's does: 10,000 rows are few enough to be learned by heart."""
    decayed, alone = decay_groups(model)
    embedding = alone.pop("model.embed_tokens.weight")
    groups = [
        {"params": [*decayed.values(), embedding], "weight_decay": weight_decay},
        {"params": list(alone.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


def train(run: dict[str, Any], given: argparse.Namespace, bar: Progress) -> dict[str, Any]:
    """One contender at one size and rate: how accurate it becomes, and how long that takes."""
    length, pairs = run["length"], run["pairs"]
    corpus = load_corpus(
        f"mqar:length={length},pairs={pairs},vocab={given.vocab},examples={given.examples},valid={given.valid}"
    )
    model = build(run["mixer"], run["width"], length, given.vocab)
    optimizer = make_optimizer(model, given.weight_decay)
    schedule = Schedule(peak=run["rate"], warmup_share=0.2, min_lr_share=0.0)
    stream = open_stream(corpus.train, length)
    steps = math.ceil(given.epochs * given.examples / BATCH)
    half_epoch = max(1, given.examples // BATCH // 2)
    curve: list[dict[str, float]] = []
    seconds, began = 0.0, time.perf_counter()
    with freed_memory_kept(CPU):
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(step / steps)
            batch = stream.rows((step - 1) * BATCH, BATCH)
            loss = model(
                input_ids=batch.input_ids, shift_labels=batch.targets, use_cache=False, return_logits=False
            ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % half_epoch and step < steps:
                continue
            seconds += time.perf_counter() - began
            last = step == steps
            limit = None if last else SOME_ANSWERS
            found = evaluate(model, corpus.valid, context=length, batch_size=BATCH, max_tokens=limit)
            if not last and found.accuracy is not None and found.accuracy >= given.stop:
                found = evaluate(model, corpus.valid, context=length, batch_size=BATCH)
                last = found.accuracy is not None and found.accuracy >= given.stop
            epoch = step * BATCH / given.examples
            curve.append({"epoch": epoch, "loss": loss.item(), "accuracy": found.accuracy or 0.0})
            bar.update(step / steps, f"{name(run)}: epoch {epoch:.1f}, loss {loss:.3f}, accuracy {found.accuracy:.3f}")
            if last or not math.isfinite(loss.item()):
                break
            began = time.perf_counter()
    return {
        **run,
        "accuracy": curve[-1]["accuracy"],
        "epochs": curve[-1]["epoch"],
        "seconds": seconds,
        "seconds_per_epoch": seconds / curve[-1]["epoch"],
        "parameters": model.non_embedding_parameters,
        "curve": curve,
    }


def name(run: dict[str, Any]) -> str:
    return f"{run['mixer']}, width {run['width']}, ({run['length']}, {run['pairs']}), rate {run['rate']:.3g}"


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["mixer"], run["width"], run["length"], run["pairs"], run["rate"]


def cell(run: dict[str, Any]) -> tuple[Any, ...]:
    return identity(run)[:4]


def wanted(given: argparse.Namespace, mixers: list[str]) -> list[dict[str, Any]]:
    """All runs in their order: rate by rate, from the cheapest cell to the dearest."""
    cells = sorted(
        ((width, length, pairs) for width in given.widths for length, pairs in given.sizes),
        key=lambda one: one[0] * one[1],
    )
    return [
        {"mixer": mixer, "width": width, "length": length, "pairs": pairs, "rate": rate}
        for rate in given.rates
        for width, length, pairs in cells
        for mixer in mixers
    ]


def protocol(given: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for runs to stand in one table."""
    return {key: getattr(given, key) for key in ("vocab", "examples", "valid", "epochs", "stop", "weight_decay")} | {
        "batch": BATCH,
        "layers": 2,
        "feed_forward": 0,
    }


def stored_runs(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs that --out holds already."""
    if given.out is None or not given.out.exists():
        return []
    document = json.loads(given.out.read_text(encoding="utf-8"))
    if document["protocol"] != protocol(given):
        raise SystemExit(f"{given.out} holds runs of {document['protocol']}: give another --out, or the same settings")
    return document["runs"]


def table(runs: list[dict[str, Any]], given: argparse.Namespace, mixers: list[str]) -> None:
    """The best rate of each cell, beside the paper's figure."""
    cells = [(width, length, pairs) for width in given.widths for length, pairs in given.sizes]
    head = [f"({length}, {pairs}) d={width}" for width, length, pairs in cells]
    rows = []
    for mixer in mixers:
        line = [mixer]
        for one in cells:
            found = [run for run in runs if cell(run) == (mixer, *one)]
            best = max(found, key=lambda run: run["accuracy"], default=None)
            line.append(
                "-" if best is None else f"{best['accuracy']:.3f} ({best['rate']:.2g}, {best['epochs']:.1f} ep)"
            )
        value = PAPER.get(mixer)
        rows.append((*line, "-" if value is None else f"{value[0]:.2f} {value[1]}"))
    print_table(["mixer", *head, "paper, (64, 4) d=64"], rows)


def numbers(text: str, kind: type = int) -> list[Any]:
    return [kind(one) for one in text.split(",")]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="mixers, separated by commas")
    parser.add_argument("--widths", type=numbers, default=[64, 128])
    parser.add_argument("--sizes", default="64:4,128:8", help="length:pairs, separated by commas")
    parser.add_argument("--rates", type=lambda text: numbers(text, float), default=list(RATES[:2]))
    parser.add_argument("--epochs", type=float, default=8.0, help="the cap")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--valid", type=int, default=3000)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--stop", type=float, default=0.99, help="the accuracy at which a run ends")
    parser.add_argument("--weight-decay", type=float, default=0.5, help="of the embeddings too")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads [as many as torch takes]")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON document; continued where it exists")
    parser.add_argument("--quick", action="store_true", help="a small case in seconds, whose numbers say nothing")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    given = parser.parse_args()
    given.sizes = [tuple(numbers(one.replace(":", ","))) for one in given.sizes.split(",")]
    if given.quick:
        given.widths, given.sizes, given.rates = [16], [(16, 2)], [1e-2]
        given.vocab, given.examples, given.valid, given.epochs = 64, 4 * BATCH, 64, 1.0
    return given


def main() -> None:
    given = read_arguments()
    asked = given.contenders.split(",")
    mixers = [mixer for mixer in asked if mixer in list_mixers()]
    skipped = {mixer: "no mixer of this name is registered" for mixer in asked if mixer not in mixers}
    runs = stored_runs(given)
    with with_threads(given.threads), progress("mqar") as bar:
        for run in wanted(given, mixers):
            is_done = any(identity(run) == identity(one) for one in runs)
            is_solved = any(cell(run) == cell(one) and one["accuracy"] >= given.stop for one in runs)
            if is_done or is_solved:
                continue
            try:
                runs.append(train(run, given, bar))
            except (SeqmixError, ValueError, RuntimeError) as error:
                skipped[name(run)] = f"{type(error).__name__}: {error}"
                continue
            bar.message(f"{name(run)}: {runs[-1]['accuracy']:.4f} after {runs[-1]['epochs']:.1f} epochs")
            document = {"protocol": protocol(given), "environment": environment(), "runs": runs, "skipped": skipped}
            if given.out is not None:
                write_json(given.out, document)
    if given.json:
        print(json.dumps({"protocol": protocol(given), "environment": environment(), "runs": runs, "skipped": skipped}))
        return
    table(runs, given, mixers)
    for what, why in skipped.items():
        print(f"left out: {what} ({why})")


if __name__ == "__main__":
    main()
