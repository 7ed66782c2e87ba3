"""Writes the playground of `seqmix inspect`, without a model, beside the pages of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_playground(app: Any, error: Exception | None) -> None:
    """After a build of HTML that went well."""
    if error is not None or app.builder.format != "html":
        return
    from seqmix.inspection.page import playground_page

    (Path(app.outdir) / "playground.html").write_text(playground_page(), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.connect("build-finished", write_playground)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
