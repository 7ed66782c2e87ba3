"""`seqmix train`: one model on your data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seqmix.cli.options import Imports


def train(
    data: Annotated[
        str | None,
        typer.Option(help="A file, a folder, .jsonl, .parquet, hf:NAME, python-stdlib; or a task: mqar:pairs=8."),
    ] = None,
    valid: Annotated[str | None, typer.Option(help="The held-out part; by default a share of the documents.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes, bpe:SIZE, or a tokenizer's path. [bytes]")] = None,
    model: Annotated[str | None, typer.Option(help="A model of `seqmix list`, mixer:NAME, hf:CONFIG.")] = None,
    params: Annotated[str | None, typer.Option(help="Size without the embedding, such as 300k or 10M. [1M]")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a row. [256; a task's own]")] = None,
    tokens: Annotated[str | None, typer.Option(help="Budget: training tokens, such as 2M.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget: seconds of training steps.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint in --out.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the weights and the order of the data. [0]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in one optimizer step. [16]")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Pieces that a batch is computed in. [1]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak; by default the rule of the model.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. [float32]")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,  # noqa: A002 - the flag's name
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Under torchrun: ddp, or fsdp for shards. [ddp]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's choice.")] = None,
    init_from: Annotated[str | None, typer.Option(help="A finished run whose weights are the start.")] = None,
    evaluate_every: Annotated[
        float | None, typer.Option(help="Share of the budget between evaluations. [0.25]")
    ] = None,
    stop_at_accuracy: Annotated[
        float | None, typer.Option(help="Of a task: end when an evaluation finds this accuracy, such as 0.999.")
    ] = None,
    checkpoint_every_seconds: Annotated[float | None, typer.Option(help="Between checkpoints. [60]")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files as well.")] = False,
    config: Annotated[str | None, typer.Option(help="A YAML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting; options.NAME for the model's.")
    ] = None,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> int:
    """Trains one model on your data and leaves a run folder: weights, tokenizer, metrics and checkpoints.

    Settings come from the command line, then --set, then --config. Ctrl-C stops with a checkpoint, and
    --resume goes on from it (the folder holds the settings, so --out is enough). Many GPUs and machines:
    torchrun --nproc-per-node gpu -m seqmix train, with the same options.

    A model may also be mixer:NAME, a Llama-like stack of any causal mixer, or hf:CONFIG, one of Hugging Face (a folder,
    a .json file or a type such as hf:gpt2), each with options behind it: transformer:position=alibi:norm=layer.

    Example: seqmix train --data python-stdlib --model convsamba --params 300k --tokens 1M --out runs/first
    """
    given: dict[str, Any] = {
        "data": data,
        "valid": valid,
        "tokenizer": tokenizer,
        "model": model,
        "params": params,
        "context": context,
        "tokens": tokens,
        "seconds": seconds,
        "out": out,
        "seed": seed,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "precision": precision,
        "compile": compile or None,
        "device": device,
        "parallel": parallel,
        "threads": threads,
        "init_from": init_from,
        "evaluate_every": evaluate_every,
        "stop_at_accuracy": stop_at_accuracy,
        "checkpoint_every_seconds": checkpoint_every_seconds,
        "tensorboard": tensorboard or None,
    }

    from seqmix.cli.output import human_number, human_seconds, print_json, progress
    from seqmix.mixers.user_code import import_all
    from seqmix.training import RunFolder, gather_values, lay_over, settings_from
    from seqmix.training import train as run_training
    from seqmix.training.distributed import Place

    given["imports"] = import_all(imports or []) or None
    values = gather_values(
        config, assignments or [], {name: value for name, value in given.items() if value is not None}
    )
    if resume and values.get("out") and (started := RunFolder(values["out"])).is_started:
        values = lay_over(started.read_settings()["settings"], values)
    settings = settings_from(values)

    if Place.from_environment().rank > 0:
        return 0 if run_training(settings, resume=resume).status == "finished" else 130

    share = 0.0
    with progress(f"training {settings.model}") as bar:

        def report(*, step: int, tokens: int, seconds: float, loss: float, time_left: float) -> None:
            nonlocal share
            share = seconds / settings.seconds if settings.seconds else tokens / (settings.tokens or 1)
            bar.update(share, f"step {step}, {human_number(tokens)} tokens, loss {loss:.3f}", time_left)

        def show(activity: str) -> None:
            bar.update(share, activity)

        result = run_training(settings, resume=resume, reporter=report, message=bar.message, show=show)
    if as_json:
        print_json(result.to_dict())
    elif result.status == "finished":
        reached = (
            f"an accuracy of {result.accuracy:.4f}"
            if result.bits_per_byte is None
            else f"{result.bits_per_byte:.4f} bits per byte"
        )
        print(
            f"{result.folder}: {reached} after {human_number(result.tokens)} tokens "
            f"in {human_seconds(result.seconds)} of training"
        )
    return 0 if result.status == "finished" else 130
