"""`seqmix bench`: speed and memory, beside what else is installed."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def bench(
    what: Annotated[str | None, typer.Argument(help="kernels, train, decode or scaling.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="kernels: BATCHxTIMExDIM:KERNEL:DILATION, several with commas.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="train, decode: models, hf-llama, hf-mamba2; scaling: mixers, attention:PATTERN; with commas."
        ),
    ] = None,
    contexts: Annotated[str | None, typer.Option(help="train, decode, scaling: tokens, such as 512,4k.")] = None,
    engines: Annotated[
        str | None, typer.Option(help="decode: of seqmix generate, and generate itself; with commas. [all]")
    ] = None,
    params: Annotated[str, typer.Option(help="train, decode: size without the embedding.")] = "10M",
    vocab_size: Annotated[str, typer.Option(help="train, decode: tokens of the vocabulary.")] = "258",
    threads: Annotated[int | None, typer.Option(help="CPU threads, the same for all. [as many as torch takes]")] = None,
    rounds: Annotated[int | None, typer.Option(help="Times that each is measured.")] = None,
    budget_seconds: Annotated[
        float | None, typer.Option(help="About how long it may take; rounds are dropped to keep it.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    env: Annotated[bool, typer.Option("--env", help="Show hardware, versions, kernels and peers, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> int:
    """Measures speed and memory beside what else is installed, taking turns so that drift cancels.

    kernels: the depthwise convolution. train: tokens per second and peak memory of a training step. decode: tokens per
    second by context, also of llama.cpp where it is installed. scaling: how time and memory of each mixer grow with
    the context.

    Example: seqmix bench kernels --sizes 8x1024x512:32:1,8x1024x512:32:8 --threads 2
    """
    from seqmix.cli.output import print_json, print_table, progress

    if env:
        from seqmix.bench.report import environment_table
        from seqmix.bench.timing import environment, with_threads

        with with_threads(threads):
            here = environment(device)
        if as_json:
            print_json(here)
        else:
            table = environment_table(here)
            print_table(table.columns, table.rows, left=table.left)
        return 0

    from seqmix.bench.run import BenchSettings, run
    from seqmix.models.sizing import parse_size

    settings = BenchSettings(
        bench=what,
        sizes=_words(sizes),
        models=_words(models),
        contexts=None if contexts is None else tuple(map(_length, _words(contexts) or ())),
        engines=_words(engines),
        params=params,
        vocab_size=parse_size(vocab_size),
        threads=threads,
        rounds=rounds,
        budget_seconds=budget_seconds,
        device=device,
        precision=precision,
    )
    with progress(f"bench {what}") as bar:
        document = run(settings, bar)
    if as_json:
        print_json(document)
    else:
        _print(document)
    return 0 if document["complete"] else 130


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _length(text: str) -> int:
    from seqmix.cli.plan import parse_length

    return parse_length(text)


def _print(document: dict[str, Any]) -> None:
    from seqmix.bench.report import footer, tables
    from seqmix.cli.output import console, print_table

    screen = console()
    for table in tables(document):
        # As a part of the table it would be wrapped to the table's width.
        screen.print(table.title, style="bold", markup=False)
        print_table(table.columns, table.rows, left=table.left)
        print()
        for note in table.notes:
            screen.print(note, markup=False)
        if table.notes:
            print()
    for line in footer(document):
        screen.print(line, markup=False)
