"""A page with the modules of the inspection page and nothing else, to call their functions in a browser."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import seqmix

JAVASCRIPT = Path(seqmix.__file__).parent / "inspection" / "page" / "js"


def import_map(folder: Path = JAVASCRIPT) -> str:
    """The modules of a folder under the names they import each other by: page/NAME."""
    modules = {
        f"page/{path.stem}": f"data:text/javascript;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in sorted(folder.glob("*.js"))
    }
    return json.dumps({"imports": modules})


def style() -> str:
    """The style sheets of the page."""
    folder = JAVASCRIPT.parent
    return "\n".join(path.read_text() for path in (folder / "page.css", *sorted((folder / "css").glob("*.css"))))


def write_page(path: Path, *, body: str = "<p>Modules</p>") -> Path:
    """Writes a page in which `import("page/NAME")` finds the modules."""
    path.write_text(
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Modules</title>"
        "<meta name='viewport' content='width=device-width'>"
        f"<link rel='icon' href='data:,'><style>{style()}</style>"
        f"<script type='importmap'>{import_map()}</script></head>"
        f"<body>{body}</body></html>",
        encoding="utf-8",
    )
    return path
