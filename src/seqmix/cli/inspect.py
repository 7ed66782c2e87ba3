"""`seqmix inspect`: the page that shows how a model mixes."""

from __future__ import annotations

from typing import Annotated

import typer

from seqmix.cli.options import Imports


def inspect_command(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_PRESET", help="The folder of a finished run, or a model.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to read; a second one shows what moves.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A corpus or task: its held-out part is read. [that of the run's training]")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A second run or model, shown beside the first.")] = None,
    out: Annotated[str, typer.Option(help="The page to write.")] = "inspect.html",
    tokens: Annotated[int, typer.Option(help="Tokens of a text that are shown; a longer one is cut.")] = 256,
    heads: Annotated[int, typer.Option(help="Heads of a mixer that are shown at most, evenly spread.")] = 32,
    params: Annotated[str | None, typer.Option(help="Size of a model that is no run, such as 10M. [1M]")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights of a model that is no run.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's choice.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on this machine, where further texts can be typed.")
    ] = False,
    port: Annotated[int, typer.Option(help="With --live: the port; 0 takes a free one.")] = 0,
    imports: Imports = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers of the page as one JSON document.")
    ] = False,
) -> None:
    """Shows who listens to whom in a model, on a text: one page that opens in any browser, without a network.

    Its mixing matrices, the paths through its layers, its receptive field by formula and by gradient, what its context
    is worth, its positions, the rollout beside the gradient, its costs, and a playground of kernels and windows.

    Example: seqmix inspect runs/first --against transformer --text "to be or not to be" --out page.html
    """
    import sys
    from pathlib import Path

    from seqmix.cli.output import human_bytes, print_json, progress
    from seqmix.errors import InputError

    for name, value in (("threads", threads), ("heads", heads)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if text and data is not None:
        raise InputError(f"both a text and the data {data!r} were given: leave one of the two out")
    if live and as_json:
        raise InputError("--json prints one document and ends, --live serves until it is stopped: leave one out")
    path = Path(out).expanduser()
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r} for {out!r}: make it, or choose another --out")
    if path.is_dir():
        raise InputError(f"{out!r} is a folder: give the name of the page, such as {str(path / 'inspect.html')!r}")

    import torch

    from seqmix.files import write_text
    from seqmix.inspection import open_subject
    from seqmix.inspection.page import make_page
    from seqmix.mixers.user_code import import_all

    if threads is not None:
        torch.set_num_threads(threads)
    import_all(imports or [])
    # A run has its own size; the size is that of the other model, where there is one.
    first, second = (
        None if name is not None and (Path(name).expanduser() / "config.json").is_file() else params
        for name in (model, against)
    )
    if params is not None and first is None and (against is None or second is None):
        raise InputError(f"params is {params}, but what is inspected has its size: leave --params out")
    subjects = [open_subject(model, texts=text, data=data, tokens=tokens, params=first, seed=seed)]
    if against is not None:
        subjects.append(open_subject(against, tokens=tokens, params=second, seed=seed, like=subjects[0]))
    if live:
        from seqmix.inspection.live import live_server

        with progress("inspecting") as bar:
            server = live_server(
                subjects,
                port=port,
                tokens=tokens,
                heads=heads,
                show=lambda share, words: bar.update(share, label=words),
            )
            bar.message(f"the page is at {server.url} until Ctrl-C")
        server.run()
        print("stopped: the page takes no more texts", file=sys.stderr)
        return
    with progress("inspecting") as bar:
        page = make_page(subjects, heads=heads, show=lambda share, words: bar.update(share, label=words))
    if as_json:
        print_json(page.data)
    write_text(path, page.html)
    for subject in subjects:
        for note in subject.notes:
            bar.message(note)
    bar.message(f"{path} ({human_bytes(len(page.html.encode()))})")
