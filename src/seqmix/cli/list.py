"""`seqmix list`: what there is to choose from, and with `--properties` what follows from each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqmix.cli.options import Imports

if TYPE_CHECKING:
    from seqmix.bench.mixer_times import TimeExponent
    from seqmix.properties import MixerProperties, StackProperties

MODEL_WIDTH, MODEL_DEPTH, MODEL_CONTEXT = 64, 8, 1024
"""The size at which the layers of a model are looked at."""
SHORT_LENGTHS = (512, 1024, 2048, 4096, 8192)
LONG_LENGTHS = (2048, 4096, 8192, 16384, 32768)
"""Long enough that the fixed cost of a call does not show, for mixers that are quick at them."""
SECONDS_A_MIXER = 6.0
QUICK_EXPONENT = 1.5
WIDEST = 100


def list_command(
    properties: Annotated[
        bool,
        typer.Option("--properties", help="Compute what follows from each mixer's contract, and each model's layers."),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Hold the exponents in time to measured ones; implies --properties.")
    ] = False,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Lists the mixers with their traits, and the models that are built from them.

    Example: seqmix list --properties --measure
    """
    from seqmix.mixers.user_code import import_all

    import_all(imports or [])
    if properties or measure:
        _list_properties(measure=measure, as_json=as_json)
        return
    from seqmix.cli.output import print_json, print_table
    from seqmix.mixers import create_mixer, list_mixers, mixer_class
    from seqmix.models import list_models, preset

    mixers = []
    for name in list_mixers():
        dim, options = mixer_class(name).examples()[0]
        mixers.append((name, create_mixer(name, dim, **options).traits))

    if as_json:
        print_json(
            {
                "mixers": [
                    {
                        "name": name,
                        "causal": traits.causal,
                        "content_dependent": traits.content_dependent,
                        "state_growth": traits.state_growth,
                        "matrix": traits.matrix,
                    }
                    for name, traits in mixers
                ],
                "models": [{"name": name} for name in list_models()],
            }
        )
        return
    print_table(
        ["mixer", "causal", "matrix depends on input", "state", "matrix"],
        [
            (
                name,
                "yes" if traits.causal else "no",
                "yes" if traits.content_dependent else "no",
                {"constant": "constant", "linear": "grows", None: "none"}[traits.state_growth],
                traits.matrix,
            )
            for name, traits in mixers
        ],
        left=["causal", "matrix depends on input", "state", "matrix"],
    )
    print()
    print_table(["model", "what it is"], [(name, preset(name).summary) for name in list_models()], left=["what it is"])


def _list_properties(*, measure: bool, as_json: bool) -> None:
    from seqmix.cli.output import print_json, progress
    from seqmix.errors import InputError
    from seqmix.mixers import list_mixers
    from seqmix.models import list_models
    from seqmix.properties import mixer_properties

    names, models = list_mixers(), list_models()
    rows: list[MixerProperties] = []
    stacks: dict[str, StackProperties] = {}
    times: dict[str, TimeExponent] = {}
    with progress("properties") as bar:
        for done, name in enumerate(names):
            bar.update(done / (len(names) + len(models)), note=name)
            try:
                rows.append(mixer_properties(name))
            except InputError as error:
                bar.message(f"left out: {name}, {error}")
        for done, name in enumerate(models, start=len(names)):
            bar.update(done / (len(names) + len(models)), note=name)
            stacks[name] = _stack(name)
        for done, row in enumerate(rows if measure else []):
            bar.update(done / len(names), note=row.name, label="measuring")
            times[row.name] = _measure(row)
    if as_json:
        print_json(
            {
                "mixers": [
                    row.to_dict() | ({"time": times[row.name].to_dict()} if row.name in times else {}) for row in rows
                ],
                "models": [{"name": name} | stack.to_dict() for name, stack in stacks.items()],
                "models_at": {"width": MODEL_WIDTH, "layers": MODEL_DEPTH, "context": MODEL_CONTEXT},
            }
        )
        return
    _print_mixers(rows)
    _print_models(stacks)
    if times:
        _print_times(times)


def _stack(name: str) -> StackProperties:
    from seqmix.models import SeqmixForCausalLM, preset
    from seqmix.properties import stack_properties

    config: Any = preset(name).config(vocab_size=258, context=MODEL_CONTEXT, width=MODEL_WIDTH, depth=MODEL_DEPTH)
    return stack_properties(SeqmixForCausalLM(config).mixers, positions=(MODEL_CONTEXT // 8, MODEL_CONTEXT))


def _measure(row: MixerProperties) -> TimeExponent:
    from seqmix.bench.mixer_times import time_exponent
    from seqmix.properties import mixer_of_length

    is_quick = row.is_parallel and row.product_flops.in_time < QUICK_EXPONENT
    return time_exponent(
        lambda length: mixer_of_length(row.name, MODEL_WIDTH, length),
        LONG_LENGTHS if is_quick else SHORT_LENGTHS,
        budget_seconds=SECONDS_A_MIXER,
    )


def _explain(text: str) -> None:
    """A paragraph under a table, as wide as the terminal and no wider than a table."""
    import textwrap

    from seqmix.cli.output import console

    typer.echo("\n" + textwrap.fill(text, min(console().width, WIDEST)) + "\n")


def _print_mixers(rows: Sequence[MixerProperties]) -> None:
    from seqmix.cli.output import print_table

    sees = ["mixer", "sees", "steps", "path", "receptive field", "M from x", "position"]
    print_table(
        sees,
        [
            (
                row.name,
                "past" if row.causal else "both sides",
                row.depth,
                row.path,
                row.span,
                "yes" if row.content_dependent else "no",
                row.position,
            )
            for row in rows
        ],
        left=sees[1:],
    )
    _explain(
        "One layer over n positions. steps: how many must wait for one another (1: all at once; log n: a scan; n: one "
        "after another). path: layers of it between positions n apart. receptive field: of L layers; K its kernel, N "
        "its longest length. M from x: whether who listens to whom depends on the input. position: what it knows of "
        "where things stand."
    )
    costs = ["mixer", "parameters", "product FLOPs", "bytes moved", "state bytes"]
    print_table(
        costs,
        [
            (
                row.name,
                str(row.parameters),
                str(row.product_flops),
                str(row.bytes_moved),
                "none" if row.state_bytes is None else str(row.state_bytes),
            )
            for row in rows
        ],
        left=costs[1:],
    )
    _explain(
        "The leading terms for a row of n positions at width d, in float32; --json has all of them. Fourier transforms "
        "are no products: n log n. State: after n positions."
    )


def _print_models(stacks: Mapping[str, StackProperties]) -> None:
    from seqmix.cli.output import human_bytes, print_table

    distances = list(next(iter(stacks.values())).hops) if stacks else []
    early, late = MODEL_CONTEXT // 8, MODEL_CONTEXT
    print_table(
        [
            "model",
            "steps",
            *(f"path {distance}" for distance in distances),
            "receptive field",
            f"state at {early}",
            f"at {late}",
        ],
        [
            (
                name,
                stack.depth,
                *("–" if count is None else str(count) for count in stack.hops.values()),
                "all" if stack.receptive_field is None else str(stack.receptive_field),
                *(human_bytes(size) for size in stack.state_bytes.values()),
            )
            for name, stack in stacks.items()
        ],
        left=["steps"],
    )
    _explain(
        f"The layers of each model at width {MODEL_WIDTH}, {MODEL_DEPTH} layers and context {MODEL_CONTEXT}. path: the "
        "fewest layers between positions that far apart, – where they cannot reach each other."
    )


def _print_times(times: Mapping[str, TimeExponent]) -> None:
    from seqmix.bench.timing import busy_warning
    from seqmix.cli.output import print_table

    print_table(
        ["mixer", "time, claimed", "measured", "lengths", ""],
        [
            (
                name,
                f"n^{time.claimed:.2f}",
                f"n^{time.measured.value:.2f} ± {time.measured.error:.2f}",
                f"{time.measured.first}–{time.measured.last}",
                "" if time.measured.is_clear else "a call's fixed cost shows",
            )
            for name, time in times.items()
        ],
        left=[""],
    )
    warning = busy_warning()
    if warning is not None:
        _explain(warning)
