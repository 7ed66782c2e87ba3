"""The directive `package-parts PACKAGE`: the modules of a package, each under its name, through autodoc.

What the package exports stands in the section of its module. The names in the option `without` are left out. A module
that is added later needs no line here.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def parts(package: str, without: list[str]) -> list[str]:
    """The full names of the modules that get a section, in alphabetical order."""
    module = importlib.import_module(package)
    names = [part.name for part in pkgutil.iter_modules(module.__path__) if part.name[0] != "_"]
    return [f"{package}.{name}" for name in names if name not in without]


class PackageParts(SphinxDirective):
    required_arguments = 1
    option_spec = {"without": directives.unchanged}  # noqa: RUF012 - docutils reads it from the class

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for name in parts(self.arguments[0], self.options.get("without", "").split()):
            text += [f".. rubric:: {name}", "   :heading-level: 2", "", f".. automodule:: {name}", ""]
        holder = nodes.container()
        self.state.nested_parse(StringList(text, source="package-parts"), 0, holder)
        return holder.children


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("package-parts", PackageParts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
