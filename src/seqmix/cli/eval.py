"""`seqmix eval`: how well a trained model predicts held-out text."""

from __future__ import annotations

from typing import Annotated

import typer

from seqmix.cli.options import Imports


def eval_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of a finished run.")],
    data: Annotated[
        str | None,
        typer.Option(help="The corpus, whose held-out part is scored, or task. [that of the training]"),
    ] = None,
    valid: Annotated[
        str | None, typer.Option(help="The text to score, instead of the corpus's own held-out part.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a row. [that of the training]")] = None,
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Give every token all (or nearly all) of its document before it.")
    ] = False,
    stride: Annotated[
        int | None, typer.Option(help="With --sliding: targets a window adds, for overlapping windows.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at once; the result does not depend on it.")] = 16,
    max_tokens: Annotated[str | None, typer.Option(help="Score only about as many tokens, such as 64k.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default as saved.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's choice.")] = None,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Scores held-out text: bits per byte, perplexity per token and per word, and the loss by position.

    Of a synthetic task, such as mqar:length=128,pairs=8, the answers: their accuracy, and that of whole rows.

    Documents are isolated. The <|end|> after a document counts as a token to predict; bytes and words are those of
    the text alone.

    Example: seqmix eval runs/first --data python-stdlib --json
    """
    from seqmix.cli.output import print_json, progress
    from seqmix.data import ExampleStore, is_task, load_corpus
    from seqmix.data.tokenizers import BYTES, is_byte_tokenizer, load_tokenizer
    from seqmix.errors import InputError, unknown_name

    if stride is not None and not sliding:
        raise InputError(f"stride {stride} has no effect without --sliding: add --sliding or leave it out")
    if precision not in (None, "float32", "bfloat16"):
        raise unknown_name("precision", precision, ("float32", "bfloat16"))
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")

    from pathlib import Path

    import torch

    from seqmix.evaluation import evaluate, evaluate_sliding
    from seqmix.mixers.user_code import import_all
    from seqmix.models.huggingface import context_of
    from seqmix.models.loading import open_model
    from seqmix.models.sizing import parse_size
    from seqmix.training import RunFolder
    from seqmix.training.run import choose_device

    import_all(imports or [])
    place = choose_device(device)
    limit = None if max_tokens is None else parse_size(max_tokens)
    if threads is not None:
        torch.set_num_threads(threads)
    run = RunFolder(folder)
    trained = run.read_settings().get("settings", {}) if run.is_started else {}
    model = open_model(folder, device=place, dtype=None if precision is None else getattr(torch, precision))
    data = trained.get("data") if data is None else data
    if data is None:
        raise InputError(f"{folder!r} does not say what it was trained on: name the text with --data")
    if valid is None and data == trained.get("data"):
        valid = trained.get("valid")
    own = load_tokenizer(Path(folder))
    tokenizer = BYTES if is_byte_tokenizer(own) and not is_task(data) else folder

    with progress("evaluating") as bar:
        corpus = load_corpus(data, valid=valid, tokenizer=tokenizer, progress=bar.message)
        if corpus.vocab_size > model.config.vocab_size:
            raise InputError(
                f"the tokenizer in {folder!r} has {corpus.vocab_size} tokens and its model {model.config.vocab_size}: "
                "give a folder that seqmix train wrote"
            )
        if context is None:
            context = context_of(model.config) if corpus.task is None else corpus.task.length
        if sliding:
            if isinstance(corpus.valid, ExampleStore):
                raise InputError(f"--sliding does not go with {data!r}, whose rows are read as a whole: leave it out")
            result = evaluate_sliding(
                model,
                corpus.valid,
                context=context,
                stride=stride,
                batch_size=batch_size,
                max_tokens=limit,
                show=bar.update,
            )
        else:
            result = evaluate(
                model,
                corpus.valid,
                context=context,
                batch_size=batch_size,
                device=place,
                max_tokens=limit,
                show=bar.update,
            )
    document = {
        **result.to_dict(),
        "context": context,
        "sliding": sliding,
        "data": corpus.name,
        "valid": valid,
        "fingerprint": corpus.fingerprint,
        "held_out_bytes": corpus.valid_bytes,
        "held_out_tokens": corpus.valid_tokens,
        "held_out_targets": corpus.valid_targets,
    }
    if as_json:
        print_json(document)
        return
    _print_result(folder, document)


def _print_result(folder: str, document: dict) -> None:
    """The numbers, and the loss by position at about every octave."""
    from seqmix.cli.output import human_number, print_table

    share = document["tokens"] / document["held_out_targets"]
    part = "all" if share >= 1 else f"{share:.2g} of"
    source = document["data"] if document["valid"] is None else document["valid"]
    print(f"{folder} on {part} the held-out part of {source}\n")
    if "accuracy" in document:
        rows = [
            ("accuracy", f"{document['accuracy']:.4f}"),
            ("whole rows right", f"{document['example_accuracy']:.4f}"),
            ("perplexity per answer", f"{document['perplexity']:.4f}"),
            ("answers scored", f"{document['tokens']:,}"),
        ]
    else:
        rows = [
            ("bits per byte", f"{document['bits_per_byte']:.4f}"),
            ("perplexity per token", f"{document['perplexity']:.4f}"),
            ("perplexity per word", f"{document['word_perplexity']:.5g}"),
            ("tokens scored", f"{document['tokens']:,}"),
            ("bytes of text", human_number(document["bytes"])),
        ]
    print_table(["measure", "value"], rows)
    print()
    if "accuracy_by_distance" in document:
        by_distance = document["accuracy_by_distance"]
        print_table(["distance", "accuracy"], [(distance, f"{value:.4f}") for distance, value in by_distance.items()])
        print()
    positions, bits = document["loss_by_position"]["position"], document["loss_by_position"]["bits"]
    shown, last = [], -1.0
    for position, value in zip(positions, bits, strict=True):
        if position + 1 >= 2 * (last + 1) or last < 0:
            shown.append((f"{round(position):,}", f"{value:.3f}"))
            last = position
    print_table(["tokens read before", "bits per token"], shown)
