"""`seqmix plan`: what models of a size cost and how far they see, before anything is trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seqmix.cli.options import Imports


def plan(
    models: Annotated[
        str,
        typer.Option(help="Names of `seqmix list`, mixer:NAME or hf:CONFIG, with commas."),
    ] = "transformer,convsamba,gated_conv,convtransformer,mamba2",
    params: Annotated[str, typer.Option(help="Size without the embedding, such as 300k, 10M or 3B.")] = "300k",
    context: Annotated[str, typer.Option(help="Tokens in a row, such as 256 or 8k.")] = "256",
    match: Annotated[str, typer.Option(help="What is held equal: params or flops (of the first model).")] = "params",
    tokens: Annotated[str | None, typer.Option(help="Training tokens, such as 2M. [20 a parameter]")] = None,
    vocab_size: Annotated[str, typer.Option("--vocab-size", help="Tokens of the vocabulary.")] = "258",
    accelerator: Annotated[str, typer.Option(help="What is paid for: cpu, l4, a100, h100 or h200.")] = "cpu",
    price: Annotated[float | None, typer.Option(help="Money per hour; by default an assumption.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="The share of the peak that is reached. [0.4]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="bfloat16 or float32. [float32 on a CPU, bfloat16 elsewhere]")
    ] = None,
    peak_flops: Annotated[float | None, typer.Option(help="FLOP/s at most, such as 989e12.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Bytes per second to its memory, such as 4.8e12.")] = None,
    memory: Annotated[float | None, typer.Option(help="Bytes of its memory, such as 141e9.")] = None,
    serve_batch: Annotated[
        int | None, typer.Option(help="Rows generated at once, where they fit into memory. [64]")
    ] = None,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Shows sizes, FLOPs, states, reach, and the money of training and serving, with the contexts where lines cross.

    Everything follows from formulas: nothing is trained or allocated, so 3B takes seconds. What an accelerator does
    and costs is an assumption that --price and the options beside it replace.

    Example: seqmix plan --models transformer,convsamba --params 3B --context 8k --accelerator h200
    """
    from seqmix.cli.output import print_json
    from seqmix.compare.plan import PlanSettings, make_plan
    from seqmix.compare.prices import prices
    from seqmix.mixers.user_code import import_all
    from seqmix.models.contenders import split_names
    from seqmix.models.sizing import parse_size

    import_all(imports or [])
    settings = PlanSettings(
        models=split_names(models),
        params=params,
        context=parse_length(context),
        match=match,  # type: ignore[arg-type]  # checked there
        tokens=None if tokens is None else parse_size(tokens),
        vocab_size=parse_size(vocab_size),
    )
    document = make_plan(
        settings,
        prices(
            accelerator,
            price=price,
            utilisation=utilisation,
            precision=precision,
            peak_flops=peak_flops,
            bandwidth=bandwidth,
            memory=memory,
            serve_batch=serve_batch,
        ),
    )
    if as_json:
        print_json(document)
    else:
        _print_plan(document)


def parse_length(text: str) -> int:
    """Tokens: a whole number, or one with k for 1024."""
    from seqmix.models.sizing import parse_size

    number = text.strip().lower()
    if number.endswith("k") and number[:-1].isdigit() and int(number[:-1]) > 0:
        return int(number[:-1]) * 1024
    return parse_size(text)


def _print_plan(plan: dict[str, Any]) -> None:
    """The plan as tables of at most 100 columns."""
    from seqmix.cli.output import human_number, human_seconds, print_table
    from seqmix.compare import units

    prices, context = plan["prices"], plan["context"]
    has_unknown = not all(one["is_reach_known"] for one in plan["models"])
    print(f"At context {context:,}, vocabulary {plan['vocab_size']:,}; equal {_MATCHES[plan['match']]}.\n")
    print_table(
        ["model", "depth × width", "parameters", "FLOPs", "state", "path", "receptive field", "seen"],
        [
            (
                one["model"],
                f"{one['depth']} × {one['width']}",
                human_number(one["parameters"]),
                human_number(one["flops_per_token"]),
                units.size(one["state_bytes"]),
                *(
                    (_or_never(one["path_length"]), _or_all(one["receptive_field"]), _or_all(one["positions_seen"]))
                    if one["is_reach_known"]
                    else 3 * ("?",)
                ),
            )
            for one in plan["models"]
        ],
    )
    print(
        "\nFLOPs: forward, a token. State: of one sequence. Path: layers until the first token of the context\n"
        "reaches the last; a dash where it cannot. Seen: tokens of the receptive field that are used."
        + ("\nA question mark: not known of a model of Hugging Face.\n" if has_unknown else "\n")
    )
    print_table(
        ["model", "training tokens", "training FLOPs", "time", "accelerator-days", f"money ({prices['unit']})"],
        [
            (
                one["model"],
                human_number(one["train_tokens"]),
                human_number(one["train_flops"]),
                human_seconds(one["train_seconds"]),
                f"{one['accelerator_days']:.3g}",
                _money(one["train_money"]),
            )
            for one in plan["models"]
        ],
    )
    shown = _columns([entry["context"] for entry in plan["models"][0]["by_context"]], context)
    headings = ["model", *(f"{place:,}" for place in shown)]
    print(f"\nMoney ({prices['unit']}) per million generated tokens, by tokens already read:\n")
    print_table(headings, _by_context(plan, shown, "decode_money_per_million_tokens", _money))
    print("\nBytes of the state of one sequence, by tokens already read:\n")
    print_table(headings, _by_context(plan, shown, "state_bytes", units.size))
    _print_crossovers(plan["crossovers"])
    print(
        f"\nOn {prices['accelerator']} ({prices['source']}): {units.number(prices['flops'])}FLOP/s in "
        f"{prices['precision']}, {prices['utilisation']:.0%} of it reached,\n"
        f"{units.number(prices['bandwidth'])}B/s, {units.number(prices['memory'])}B, "
        f"{prices['per_hour']:g} {prices['unit']} per hour; up to {prices['serve_batch']} sequences served at once. "
        "Serving is a\nlower bound: the FLOPs of a step or the bytes it moves, whichever takes longer."
    )


_MATCHES = {"params": "parameters (without the embedding)", "flops": "FLOPs per token"}
_MOST_COLUMNS = 7
_QUANTITIES = {
    "state_bytes": "bytes of state",
    "flops_per_generated_token": "FLOPs of a generated token",
    "flops_per_token": "FLOPs a token, training or prompt",
    "decode_money_per_million_tokens": "money to serve",
}


def _columns(contexts: list[int], context: int) -> list[int]:
    """The contexts that fit into a table, the longest and the planned one among them."""
    step = -(-len(contexts) // (_MOST_COLUMNS - 1))
    return sorted({*contexts[::-1][::step], context})


def _by_context(plan: dict[str, Any], shown: list[int], field: str, write: Any) -> list[list[str]]:
    return [
        [one["model"], *(write(entry[field]) for entry in one["by_context"] if entry["context"] in shown)]
        for one in plan["models"]
    ]


def _money(value: float | None) -> str:
    if value is None:
        return "no room"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _or_never(layers: int | None) -> str:
    return "-" if layers is None else str(layers)


def _or_all(count: int | None) -> str:
    return "all" if count is None else f"{count:,}"


def _print_crossovers(crossovers: list[dict[str, Any]]) -> None:
    """Where lines cross: sentences for a few, a table for many."""
    from seqmix.cli.output import print_table

    if not crossovers:
        print("\nNo lines cross up to a context of a million.")
        return
    if len(crossovers) <= 8:
        print()
        for one in crossovers:
            print(f"- {one['text']}")
        return
    print("\nWhere lines cross:\n")
    print_table(
        ["lower is", "lower from there on", "before it", "from context"],
        [(_QUANTITIES[one["quantity"]], one["b"], one["a"], f"{one['at']:,}") for one in crossovers],
        left=["lower from there on", "before it"],
    )
