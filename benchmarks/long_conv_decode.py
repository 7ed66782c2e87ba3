"""The time of a token in decoding with long convolutions, against a sum over the whole past at each.

    python benchmarks/long_conv_decode.py [--dim 256] [--contexts 1024,4096,16384,65536] [--mixers global_conv,hyena]

A mixer whose filter is as long as the context reads all of it token by token from an empty state: the time of all
steps over their number, which is what a token costs on average, projections, gates and the forming of taps included.
Beside it stands the naive dot product of the filter with the past alone, at the middle of the context (its average
over the context, as it grows with the position), in the faster of two layouts; it leaves out all else a step does.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from shared import Goal, arguments, finish, progress
from torch import Tensor

from seqmix.bench.exponent import fit
from seqmix.bench.timing import busy_warning, environment, quartiles, take_turns, with_threads
from seqmix.cli.output import print_table
from seqmix.mixer import Mixer
from seqmix.mixers import create_mixer

NAIVE_STEPS = 8


def tokens_of(mixer: Mixer, tokens: Tensor) -> float:
    """Seconds of one step on average over tokens (time, batch, dim), from an empty state with room for all."""
    state = mixer.init_state(tokens.shape[1], len(tokens))
    begin = time.perf_counter()
    for token in tokens:
        _, state = mixer.step(token, state)
    return (time.perf_counter() - begin) / len(tokens)


def naive_sides(dim: int, count: int) -> dict[str, partial[None]]:
    """The dot product of `count` past inputs with their taps, with time or channels beside each other in memory."""
    by_time, taps = torch.randn(1, count, dim), torch.randn(dim, count)
    by_channel, lags = by_time[0].T.contiguous()[:, None], taps[:, :, None]
    taps_by_time = taps.T.contiguous()

    def rows() -> None:
        for _ in range(NAIVE_STEPS):
            (by_time * taps_by_time).sum(dim=1)

    def products() -> None:
        for _ in range(NAIVE_STEPS):
            torch.bmm(by_channel, lags)

    return {"rows": partial(rows), "products": partial(products)}


def main() -> None:
    parser = arguments("A token of a long convolution, online and by a sum over the past.")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--contexts", default=None, help="lengths, from the shortest [1024,4096,16384,65536]")
    parser.add_argument("--mixers", default="global_conv,hyena")
    given = parser.parse_args()
    usual = "256,512,1024" if given.quick else "1024,4096,16384,65536"
    contexts = [int(context) for context in (given.contexts or usual).split(",")]
    rounds = given.rounds or (1 if given.quick else 3)
    names = given.mixers.split(",")
    torch.manual_seed(0)
    busy = busy_warning()
    rows = []
    with with_threads(given.threads) as threads, progress("steps") as bar, torch.inference_mode():
        for index, context in enumerate(contexts):
            bar.update(index / len(contexts), note=f"{context:,} positions")
            sides = naive_sides(given.dim, context // 2)
            times = take_turns(sides, rounds=rounds)
            naive = min(quartiles(found).median for found in times.values()) / NAIVE_STEPS
            tokens = torch.randn(context, 1, given.dim)
            for name in names:
                mixer = create_mixer(name, given.dim, length=context).eval()
                # A short run first, so that no table of a transform is made while the time is taken.
                tokens_of(mixer, tokens[: min(context, 256)])
                found = quartiles(tokens_of(mixer, tokens) for _ in range(rounds))
                rows.append(
                    {
                        "mixer": name,
                        "context": context,
                        "microseconds": {key: 1e6 * value for key, value in found.to_dict().items()},
                        "naive_microseconds": 1e6 * naive,
                    }
                )
    goals, exponents = [], {}
    for name in names:
        own = {row["context"]: row for row in rows if row["mixer"] == name}
        online = {context: row["microseconds"]["median"] for context, row in own.items()}
        naive_times = {context: row["naive_microseconds"] for context, row in own.items()}
        first, last = min(own), max(own)
        if len(own) > 1:
            exponents[name] = {"online": fit(online)[0], "naive": fit(naive_times)[0]}
            goals.append(
                Goal(
                    what=f"{name}: a token within {last:,} over one within {first:,}",
                    value=online[last] / online[first],
                    at_least=(last / first) ** 0.5,
                    aim=(last / first) ** 0.25,
                    smaller=True,
                )
            )
        goals.append(
            Goal(
                what=f"{name}: the naive sum over a whole step, within {last:,}",
                value=naive_times[last] / online[last],
                at_least=2,
                aim=8,
            )
        )
    if not given.json:
        print_table(
            ["mixer", "context", "µs a token", "naive sum, µs"],
            [
                (
                    row["mixer"],
                    f"{row['context']:,}",
                    f"{row['microseconds']['median']:.0f}",
                    f"{row['naive_microseconds']:.0f}",
                )
                for row in rows
            ],
            left=["mixer"],
        )
    lines = [f"{name}: time grows as n^{e['online']:.2f}, naive as n^{e['naive']:.2f}" for name, e in exponents.items()]
    document = {
        "environment": environment(),
        "busy": busy,
        "settings": {"dim": given.dim, "rounds": rounds, "threads": threads},
        "exponents": exponents,
        "rows": rows,
    }
    finish(given, goals, document, [*lines, *([busy] if busy else [])])


if __name__ == "__main__":
    sys.exit(main())
