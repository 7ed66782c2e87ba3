"""What the page shows, as numbers: a document of JSON, and the matrices as packed blocks.

Shapes: H heads, T time (targets), S source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqmix.inspection.context import worth_to
from seqmix.inspection.costs import cost_curves, crossovers
from seqmix.inspection.matrices import LayerMatrix, mixing_matrices, normalise_rows
from seqmix.inspection.page.blocks import PRECISIONS, Block, make_block
from seqmix.inspection.positions import position_encoding
from seqmix.inspection.receptive_field import receptive_fields
from seqmix.inspection.rollout import agreement, gradient_map, rollout
from seqmix.inspection.structure import describe, structures
from seqmix.inspection.subject import Subject
from seqmix.inspection.texts import Text

Show = Callable[[float, str], None]
"""Is told the share that is done, and what is being done."""

BYTES_A_MODEL = 2_100_000
"""Of packed matrices; the rest of a page (numbers, scripts) takes a few hundred kilobytes."""

HEADS = 32
"""Of a mixer that are shown, unless asked otherwise: each channel of a convolution is a head."""

GRADIENT_TARGETS = 16
"""Rows of the gradient that stand beside the rollout."""


@dataclass
class Payload:
    """data: what the scripts read. blocks: the packed matrices by id."""

    data: dict[str, Any]
    blocks: dict[str, str]


def make_payload(
    subjects: Sequence[Subject], *, heads: int = HEADS, is_live: bool = False, show: Show | None = None
) -> Payload:
    """Everything that the page shows of one or two subjects, which read the same texts.

    Args:
        heads: of a mixer that are shown at most, evenly spread.
        is_live: another text can be sent to whoever serves the page.
        show: is told how far the work is.
    """
    tell = show or _nothing
    steps = [f"{subject.name}: {part}" for subject in subjects for part in ("matrices", *_PARTS, "rollout")]
    shelf = _Shelf(BYTES_A_MODEL * len(subjects))
    models = []
    for number, subject in enumerate(subjects):

        def begin(part: str, subject: Subject = subject) -> None:
            words = f"{subject.name}: {part}"
            tell(steps.index(words) / len(steps), words)

        begin("matrices")
        mixers, mixed = _mixers(subject, subject.texts, shelf, f"m{number}", heads)
        document = {**_summary(subject), "mixers": mixers}
        for part, make in _PARTS.items():
            begin(part)
            document[part] = make(subject)
        begin("rollout")
        document["rollout"] = _rollout(subject, mixed, shelf, f"m{number}")
        models.append(document)
    metas, blocks = shelf.packed()
    for model in models:
        _keep_shown(model, shelf)
        _keep_shown_spans(model)
    data = {
        "texts": [_text(text) for text in subjects[0].texts] if subjects else [],
        "models": models,
        "crossovers": crossovers(*subjects) if len(subjects) == 2 else [],
        "blocks": metas,
        "live": is_live,
    }
    return Payload(_finite(data), blocks)


def text_payload(
    subjects: Sequence[Subject], text: Text, number: int, page_models: Sequence[Mapping[str, Any]]
) -> Payload:
    """What a further text adds to a page: its entry, and for each model its blocks, structures and sentences.

    Args:
        number: one for each text, for the names of its blocks.
        page_models: those of the page's data: of each mixer, the heads that are shown there are given here.
    """
    shelf = _Shelf(BYTES_A_MODEL * len(subjects), leaves_out=False)
    models = []
    for place, (subject, known) in enumerate(zip(subjects, page_models, strict=True)):
        shown = [entry["shown"] for entry in known["mixers"]]
        mixers, _ = _mixers(subject, [text], shelf, f"t{number}m{place}", shown)
        models.append({"mixers": mixers})
    metas, blocks = shelf.packed()
    return Payload(_finite({"text": _text(text), "models": models, "blocks": metas}), blocks)


_PARTS: dict[str, Callable[[Subject], Any]] = {
    "receptive_field": lambda subject: _plain(receptive_fields(subject, subject.texts[0].input_ids)),
    "context": lambda subject: _plain(worth_to(subject)),
    "positions": lambda subject: _plain(position_encoding(subject.model, subject.texts[0].input_ids)),
    "costs": lambda subject: _plain(cost_curves(subject.model)),
}


def _nothing(share: float, words: str) -> None:
    pass


def _plain(value: Any) -> Any:
    return None if value is None else dataclasses.asdict(value)


def _text(text: Text) -> dict[str, Any]:
    return {"name": text.name, "tokens": text.tokens, "cut_from": text.cut_from}


def _summary(subject: Subject) -> dict[str, Any]:
    """The head of a model: what it is called and how large it is."""
    model, config = subject.model, subject.model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = dict.fromkeys(config.mixer_of_layer(layer)["name"] for layer in range(config.num_hidden_layers))
    return {
        "name": subject.name,
        "trained": subject.is_trained,
        "summary": f"{config.num_hidden_layers} layers of width {config.hidden_size}, {' and '.join(names)}",
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "dim": config.hidden_size,
        "vocab": config.vocab_size,
        "notes": list(subject.notes),
    }


def _mixers(
    subject: Subject,
    texts: Sequence[Text],
    shelf: _Shelf,
    prefix: str,
    shown: int | Sequence[list[int] | None],
) -> tuple[list[dict[str, Any]], list[NDArray[np.float32]]]:
    """What is said of each mixer, and the mean over its heads of |M| by row for the first text.

    Args:
        shown: the heads of each mixer that are shown, None for all; or how many at most.
    """
    entries: list[dict[str, Any]] = []
    mixed: list[NDArray[np.float32]] = []
    for number, text in enumerate(texts):
        for place, found in enumerate(mixing_matrices(subject.model, text.input_ids)):
            if number == 0:
                chosen = _some_heads(len(found.matrix), shown) if isinstance(shown, int) else shown[place]
                entries.append(_entry(found, subject) | {"shown": chosen})
                mixed.append(_mean_of_shares(found.matrix))
            entry = entries[place]
            if found.fixed and number and len(text.tokens) == len(texts[0].tokens):
                for key in ("blocks", "structure", "sentences"):
                    entry[key].append(entry[key][0])
                continue
            name = f"{prefix}l{place}t{number}"
            matrix = found.matrix if entry["shown"] is None else found.matrix[entry["shown"]]
            shelf.add(name, make_block(matrix), f"{prefix}l{place}")
            numbers = structures(matrix, causal=entry["causal"])
            entry["blocks"].append(name)
            entry["structure"].append([dataclasses.asdict(one) for one in numbers])
            entry["sentences"].append(
                [describe(one, fixed=found.fixed, jacobian=found.jacobian) for one in numbers],
            )
    return entries, mixed


def _some_heads(count: int, most: int) -> list[int] | None:
    """At most so many heads of a mixer, None for all of them."""
    return None if count <= most else _spread(count, most)


def _mean_of_shares(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over heads of |M| with rows that sum to 1; a few heads at once, which stay in the cache."""
    parts = (normalise_rows(matrix[first : first + 8]).sum(axis=0) for first in range(0, len(matrix), 8))
    total = np.zeros(matrix.shape[1:], np.float32)
    for part in parts:
        total += part
    return total / np.float32(len(matrix))


def _entry(found: LayerMatrix, subject: Subject) -> dict[str, Any]:
    block = subject.model.model.layers[found.layer]
    mixer = block.mixers[0 if found.slot == "mixer" else 1]
    return {
        "layer": found.layer,
        "slot": found.slot,
        "name": found.name,
        "fixed": found.fixed,
        "jacobian": found.jacobian,
        "directions": found.directions,
        "causal": mixer.traits.causal,
        "reach": mixer.traits.reach,
        "heads": len(found.matrix),
        "blocks": [],
        "structure": [],
        "sentences": [],
    }


def _rollout(subject: Subject, mixed: list[NDArray[np.float32]], shelf: _Shelf, prefix: str) -> dict[str, Any]:
    """The product of the layers' matrices beside the gradient, at some targets."""
    rolled = rollout(mixed)
    time = len(rolled)
    targets = _spread(time, min(GRADIENT_TARGETS, time))
    gradient = gradient_map(subject.model, subject.texts[0].input_ids, targets, directions=1)
    agreed = agreement(rolled[targets], gradient)
    for name, matrix in ((f"{prefix}rollout", rolled), (f"{prefix}gradient", gradient)):
        shelf.add(name, make_block(matrix[None].astype(np.float32)), name)
    return {
        "block": f"{prefix}rollout",
        "gradient_block": f"{prefix}gradient",
        "targets": targets,
        "spearman": agreed.spearman,
        "mean": agreed.mean,
    }


@dataclass
class _Shelf:
    """Blocks until all are known; then they are packed as finely as fits.

    room: characters for all. groups: blocks whose heads are left out together, the texts of one mixer. leaves_out:
    heads are left out where the coarsest blocks do not fit either; else these are taken as they are.
    """

    room: int
    leaves_out: bool = True
    blocks: dict[str, Block] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    shown: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, block: Block, group: str) -> None:
        self.blocks[name], self.groups[name] = block, group

    def packed(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What is said of each block and its text; heads are left out, evenly, where all do not fit."""
        for bits in PRECISIONS:
            packed = {name: block.packed(bits) for name, block in self.blocks.items()}
            size = sum(len(text) for _, text in packed.values())
            if size <= self.room:
                break
        if size > self.room and self.leaves_out:
            self._leave_out_heads(self.room / size)
            packed = {name: block.packed(PRECISIONS[-1]) for name, block in self.blocks.items()}
        return {name: meta for name, (meta, _) in packed.items()}, {name: text for name, (_, text) in packed.items()}

    def _leave_out_heads(self, share: float) -> None:
        for name, block in self.blocks.items():
            count = max(1, math.floor(block.heads * share))
            if count < block.heads:
                kept = _spread(block.heads, count)
                self.blocks[name] = block.of_heads(kept)
                self.shown[self.groups[name]] = kept


def _spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, from the first to the last at equal steps."""
    return sorted({round(place) for place in np.linspace(0, total - 1, count)})


def _keep_shown(model: dict[str, Any], shelf: _Shelf) -> None:
    """Leaves the numbers of heads out that are not shown."""
    for entry in model["mixers"]:
        kept = shelf.shown.get(shelf.groups[entry["blocks"][0]])
        if kept is None:
            continue
        entry["shown"] = kept if entry["shown"] is None else [entry["shown"][head] for head in kept]
        for key in ("structure", "sentences"):
            entry[key] = [[numbers[head] for head in kept] for numbers in entry[key]]


def _keep_shown_spans(model: dict[str, Any]) -> None:
    """Leaves the spans of heads out that are not shown, and numbers those that are."""
    for entry, layer in zip(model["mixers"], model["receptive_field"]["layers"], strict=True):
        if entry["shown"] is not None:
            layer["heads"] = [{"head": head, **layer["heads"][head]} for head in entry["shown"]]


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for, and reals in seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    return [_finite(item) for item in value] if isinstance(value, Iterable) else value
