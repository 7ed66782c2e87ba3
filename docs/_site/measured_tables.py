"""The directive `measured NAME`: the tables in stories/tables/NAME.md, which docs/measure_stories.py writes.

A number in a story is a measured one, so nothing stands in for a table that is not there: the page says which
command makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

COMMAND = "python docs/measure_stories.py"


class Measured(SphinxDirective):
    """The argument is a file's stem."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "stories" / "tables" / f"{self.arguments[0]}.md"
        self.env.note_dependency(str(path))
        if not path.exists():
            text = "These tables have not been measured in this checkout; they are written by "
            return [nodes.note("", nodes.paragraph("", text, nodes.literal(COMMAND, COMMAND), nodes.Text(".")))]
        lines = StringList(path.read_text(encoding="utf-8").splitlines(), source=str(path))
        holder = nodes.container()
        self.state.nested_parse(lines, 0, holder, match_titles=True)
        return holder.children


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
