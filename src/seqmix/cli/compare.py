"""`seqmix compare`: several models on the same text at a matched budget, and what follows from it."""

from __future__ import annotations

from typing import Annotated

import typer

from seqmix.cli.options import Imports


def compare(
    data: Annotated[
        str,
        typer.Option(help="A file, a folder, .jsonl, .parquet, hf:NAME, python-stdlib; or a task: mqar:pairs=8."),
    ],
    models: Annotated[
        str, typer.Option(help="Models, separated by commas: names of seqmix list, mixer:NAME, hf:CONFIG.")
    ],
    out: Annotated[str, typer.Option(help="Folder of the comparison; an unfinished one is continued.")],
    match: Annotated[
        str,
        typer.Option(
            help="What is equal: params, flops, train-flops, train-seconds, train-money, decode-money or total-money."
        ),
    ] = "params",
    budget: Annotated[
        str, typer.Option(help="When each training stops: tokens=N, minutes=N, money=N or flops=N.")
    ] = "tokens=1M",
    params: Annotated[
        str, typer.Option(help="Parameters without the embedding, of the first model or of all, such as 300k.")
    ] = "300k",
    seeds: Annotated[int, typer.Option(help="Runs of each model; two or more give intervals.")] = 1,
    tune: Annotated[int, typer.Option(help="Learning rates tried for each model; 0 takes each preset's rule.")] = 0,
    valid: Annotated[str | None, typer.Option(help="Held-out text, where --data does not bring its own.")] = None,
    tokenizer: Annotated[str, typer.Option(help="bytes, bpe:N, or the path of a tokenizer.json.")] = "bytes",
    context: Annotated[int | None, typer.Option(help="Tokens in a row. [256; a task's own]")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a step.")] = 16,
    price: Annotated[float | None, typer.Option(help="What an hour of this machine costs.")] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(help="Whose price and peak are assumed, such as cpu or h100; by default the device's."),
    ] = None,
    serve_tokens: Annotated[
        str | None, typer.Option(help="Generated tokens that the money must cover, with --match total-money.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="MODEL.KEY=VALUE, a field of one model's config; may be repeated.")
    ] = None,
    evaluate_tokens: Annotated[str, typer.Option(help="Held-out tokens read at each evaluation, or all.")] = "64k",
    stop_at_accuracy: Annotated[
        float | None, typer.Option(help="Of a task: a training ends when an evaluation finds this accuracy.")
    ] = None,
    speed_seconds: Annotated[float, typer.Option(help="Seconds to measure the speeds, for each model.")] = 8.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU is taken where there is one.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json to stdout, and nothing else.")] = False,
) -> None:
    """Trains several models on the same text with one quantity held equal, and says what it measured.

    A model is a name of seqmix list; mixer:NAME, a Llama-like stack of any causal mixer, such as one of yours that
    --import registers; or hf:CONFIG, a model of Hugging Face from its config: a folder, a .json file, or a type such as
    hf:gpt2, scaled to the size, or with :as_is kept at its own. What stands behind colons replaces fields of its
    config, so that one model may take part twice: transformer,transformer:position=alibi.

    Example: seqmix compare --data python-stdlib --models transformer,gated_conv --budget tokens=1M --out runs/first
    """
    from seqmix.cli.output import console, print_json, progress
    from seqmix.compare.process import prepare
    from seqmix.compare.settings import CompareSettings, parse_options, parse_quantity
    from seqmix.mixers.user_code import import_all

    prepare()
    imported = import_all(imports or [])
    from seqmix.models.contenders import split_names

    names = split_names(models)
    settings = CompareSettings(
        data=data,
        models=names,
        match=match,
        budget=budget,
        params=params,
        seeds=seeds,
        tune=tune,
        valid=valid,
        tokenizer=tokenizer,
        context=context,  # type: ignore[arg-type]  # None is filled in from the data
        batch_size=batch_size,
        price=price,
        accelerator=accelerator,
        serve_tokens=None if serve_tokens is None else parse_quantity("serve_tokens", serve_tokens),
        options=parse_options(option or [], names),
        evaluate_tokens=None if evaluate_tokens == "all" else round(parse_quantity("evaluate_tokens", evaluate_tokens)),
        stop_at_accuracy=stop_at_accuracy,
        speed_seconds=speed_seconds,
        threads=threads,
        device=device,
        precision=precision,
        imports=tuple(imported),
    )
    from seqmix.compare.run import REPORT_NAME, run_comparison

    with progress("compare") as display:
        try:
            results = run_comparison(settings, out, display)
        except KeyboardInterrupt:
            display.message("stopped: the same command goes on from here")
            raise
    if as_json:
        print_json(results)
        return
    from pathlib import Path

    from seqmix.compare.terminal import print_results

    screen = console()
    print_results(results, screen)
    report = Path(out) / REPORT_NAME
    screen.print(f"\nreport: {report if report.exists() else 'none'}", soft_wrap=True, markup=False)
