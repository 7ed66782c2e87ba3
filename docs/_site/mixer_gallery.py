"""The parts of a gallery page that the library computes: picture, promises, costs, options, and the overview.

picture NAME          what docs/make_pictures.py drew of a mixer or for a story; the content is its caption
mixer-facts NAME      what the mixer promises, and what follows from that
mixer-costs NAME      parameters, FLOPs and state at the gallery's width, by length
mixer-options NAME    the fields of its config
mixer-overview        one row for each mixer
mixer-classes         the classes and their configs, for the reference
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from option_texts import options_of
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

import seqmix
from seqmix.mixer import Mixer
from seqmix.mixers import mixer_class
from seqmix.properties import MixerProperties, mixer_of_length, mixer_properties

WIDTH = 256
LENGTHS = (256, 1024, 4096)
FACTS = ("mixers.json", "stories.json")

properties_of = lru_cache(maxsize=None)(mixer_properties)


def human(value: float) -> str:
    """Three digits and a unit of a thousand: 1.05 M."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def byte_size(value: float) -> str:
    """In KiB or MiB, three digits."""
    return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB"


def facts(name: str) -> list[tuple[str, str]]:
    """What the mixer with its default options promises, and what follows: a term and a sentence."""
    row, mixer = properties_of(name), _with_room(name, max(LENGTHS))
    traits = mixer.traits
    return [
        ("direction", "causal" if traits.causal else "not causal: every position sees the whole text"),
        (
            "matrix",
            ("computed from the input" if traits.content_dependent else "fixed: the same for every input")
            + ("" if traits.matrix == "exact" else "; a Jacobian, the mixer is not linear in a value stream"),
        ),
        ("sees", _span(row, _default(name))),
        ("layers between two positions", _path(row)),
        ("steps that wait for one another", {"1": "none", "log n": "log n, a scan", "n": "n, a loop"}[row.depth]),
        ("state", {"constant": "of fixed size", "linear": "grows with the text", None: "none"}[traits.state_growth]),
        ("knows the order", _order(row)),
    ]


def _span(row: MixerProperties, mixer: Mixer) -> str:
    if mixer.receptive_field is None:
        return "every earlier position" if row.causal else "every position"
    seen = mixer.positions_seen
    gaps = "" if seen == mixer.receptive_field else f", {seen} of them"
    return f"the last {mixer.receptive_field} positions{gaps}" if row.causal else f"{mixer.receptive_field} positions"


def _path(row: MixerProperties) -> str:
    hops = ", ".join(f"{'∞' if count is None else count} at distance {at}" for at, count in row.hops.items())
    return "1 at any distance" if set(row.hops.values()) == {1} else hops


def _order(row: MixerProperties) -> str:
    return {
        "none": "not by itself: it needs positions in the embedding",
        "order": "yes, by the order of its steps",
        "relative": "yes, by distances",
        "absolute": "yes, by places counted from the beginning",
    }[row.position]


def _default(name: str) -> Mixer:
    return seqmix.create_mixer(name, WIDTH)


def _with_room(name: str, length: int) -> Mixer:
    return mixer_of_length(name, WIDTH, length)


def costs(name: str) -> tuple[int, list[tuple[str, ...]]]:
    """The parameters at the gallery's width, and a row for each length; where a length is an option, it is bought."""
    rows = []
    for length in LENGTHS:
        mixer = _with_room(name, length)
        cost = mixer.cost(1, length)
        row = (f"{length}", human(cost.flops / length))
        if mixer.traits.causal:
            row = (*row, human(mixer.step_cost(1, length - 1).flops), byte_size(cost.state_bytes))
        rows.append((*row, human(mixer.num_parameters)))
    return _default(name).num_parameters, rows


def table(headings: Sequence[str], rows: Sequence[Sequence[nodes.Node | str]], name: str) -> nodes.table:
    """A table of inline nodes or plain text, of one class for the style sheet."""
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *(_row(cells) for cells in rows))
    return nodes.table("", group, classes=[name])


def class_link(cls: type) -> pending_xref:
    """A link to a class in the reference."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return pending_xref(
        "", nodes.literal("", cls.__name__), refdomain="py", reftype="class", reftarget=name, refwarn=True
    )


def with_code(text: str) -> nodes.inline:
    """A text in which words between backticks are code."""
    pieces = enumerate(text.split("`"))
    return nodes.inline("", "", *(nodes.literal("", piece) if at % 2 else nodes.Text(piece) for at, piece in pieces))


def _row(cells: Sequence[nodes.Node | str]) -> nodes.row:
    return nodes.row(
        "",
        *(nodes.entry("", nodes.paragraph("", "", _inline(cell))) for cell in cells),
    )


def _inline(cell: nodes.Node | str) -> nodes.Node:
    return nodes.Text(cell) if isinstance(cell, str) else cell


class Picture(SphinxDirective):
    """The alternative text is what was written down when the picture was drawn."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        folder = Path(self.env.srcdir) / "pictures"
        for file in (folder / f"{name}.png", *FACTS):
            self.env.note_dependency(str(folder / file))
        drawn = {key: facts for file in FACTS for key, facts in json.loads((folder / file).read_text()).items()}
        if name not in drawn:
            raise self.error(f"{name!r} has no picture in docs/pictures: run docs/make_pictures.py")
        caption = nodes.caption("", "", *self.parse_inline(" ".join(self.content))[0])
        return [nodes.figure("", nodes.image(uri=f"/pictures/{name}.png", alt=drawn[name]["alt"]), caption)]


class MixerFacts(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [table(("with the default options", ""), facts(self.arguments[0]), "mixer-facts")]


class MixerCosts(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        parameters, rows = costs(name)
        headings = ["positions", "FLOPs a position"]
        if len(rows[0]) == 5:
            headings += ["FLOPs of the next token", "state"]
        if len({row[-1] for row in rows}) == 1:
            rows = [row[:-1] for row in rows]
        else:
            headings += ["parameters"]
        text = f"One layer of width {WIDTH} and one row, in float32; {human(parameters)} parameters as created."
        return [nodes.paragraph("", text), table(headings, rows, "mixer-costs")]


class MixerOptions(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        cls = mixer_class(self.arguments[0])
        rows = [
            (nodes.literal("", option.name), nodes.literal("", option.default), with_code(option.text))
            for option in options_of(cls.config_class)
        ]
        where = nodes.paragraph("", "In the reference: ", class_link(cls), nodes.Text(" and "))
        where += [class_link(cls.config_class), nodes.Text(".")]
        return [table(("option", "default", "what it is"), rows, "mixer-options"), where]


class MixerOverview(SphinxDirective):
    """Names link to the pages beside the one that holds the directive."""

    def run(self) -> list[nodes.Node]:
        rows = [self._row(name) for name in seqmix.list_mixers()]
        headings = ("mixer", "matrix", "sees", "FLOPs", "state in bytes", "waits")
        return [table(headings, rows, "mixer-overview")]

    def _row(self, name: str) -> Sequence[nodes.Node | str]:
        row, mixer = properties_of(name), _default(name)
        seen = "all" if mixer.receptive_field is None else f"{mixer.receptive_field}"
        matrix = "Jacobian" if mixer.traits.matrix == "jacobian" else "by content" if row.content_dependent else "fixed"
        state = "none" if row.state_bytes is None else str(row.state_bytes)
        link = nodes.reference("", "", nodes.literal("", name), refuri=f"{name}.html", internal=True)
        return link, matrix, seen, str(row.product_flops), state, {"1": "no"}.get(row.depth, row.depth)


class MixerClasses(SphinxDirective):
    """Every registered mixer's class and config through autodoc."""

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        done: set[type] = set()
        for name in seqmix.list_mixers():
            cls = mixer_class(name)
            for part in (cls, cls.config_class):
                if part not in done:
                    done.add(part)
                    text += [f".. autoclass:: {part.__module__}.{part.__qualname__}", "   :no-members:"]
                    text += ["   :show-inheritance:", ""] if part is cls else [""]
        holder = nodes.container()
        self.state.nested_parse(StringList(text, source="mixer-classes"), 0, holder)
        return holder.children


def setup(app: Any) -> dict[str, Any]:
    for directive in (Picture, MixerFacts, MixerCosts, MixerOptions, MixerOverview, MixerClasses):
        words = [part.lower() for part in _words(directive.__name__)]
        app.add_directive("-".join(words), directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _words(name: str) -> list[str]:
    starts = [place for place, letter in enumerate(name) if letter.isupper()]
    return [name[start:end] for start, end in zip(starts, [*starts[1:], len(name)], strict=True)]
