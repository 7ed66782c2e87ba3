"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Imports = Annotated[
    list[str] | None,
    typer.Option("--import", help="A file or module of yours that registers mixers; it is run. May be repeated."),
]
