"""The directive `measured NAME`: the tables in stories/tables/NAME.md, which a benchmark writes.

A number in a story is a measured one, so nothing stands in for a table that is not there: the page says which
command makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Measured(SphinxDirective):
    """The argument is a file's stem; the option `command` is what writes it."""

    required_arguments = 1
    option_spec = {"command": directives.unchanged_required}  # noqa: RUF012 - docutils reads it from the class

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "stories" / "tables" / f"{self.arguments[0]}.md"
        self.env.note_dependency(str(path))
        if not path.exists():
            text = "These tables have not been measured in this checkout. They are written by "
            command = self.options.get("command", "make stories")
            return [nodes.note("", nodes.paragraph("", text, nodes.literal(command, command), nodes.Text(".")))]
        lines = StringList(path.read_text(encoding="utf-8").splitlines(), source=str(path))
        holder = nodes.container()
        self.state.nested_parse(lines, 0, holder)
        return holder.children


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
