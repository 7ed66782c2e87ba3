"""`seqmix list`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer


def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Lists the mixers with their traits, and the models that are built from them.

    Example: seqmix list --json
    """
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
