"""The page of `seqmix inspect`: one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqmix.inspection.page.bundle import render_page
from seqmix.inspection.page.payload import HEADS, Payload, Show, make_payload, text_payload
from seqmix.inspection.subject import Subject


@dataclass(frozen=True)
class Page:
    """html: the whole page. data: the numbers in it, without the matrices."""

    html: str
    data: dict[str, Any]


def make_page(
    subjects: Sequence[Subject], *, heads: int = HEADS, token: str | None = None, show: Show | None = None
) -> Page:
    """The page of one or two subjects.

    Args:
        heads: of a mixer that are shown at most, evenly spread.
        token: what a server that takes further texts knows this page by; None for a page that nobody serves.
        show: is told how far the work is.
    """
    payload = make_payload(subjects, heads=heads, is_live=token is not None, show=show)
    payload.data["token"] = token
    title = " and ".join(subject.name for subject in subjects)
    lead = [_lead(subject) for subject in subjects]
    html = render_page(payload.data, payload.blocks, title=title, mark="seqmix inspect", lead=lead)
    return Page(html, payload.data)


def playground_page() -> str:
    """The playground alone, without a model."""
    data = {"texts": [], "models": [], "crossovers": [], "blocks": {}, "live": False}
    return render_page(data, {}, title="A playground of kernels, windows and layers", mark="seqmix")


def _lead(subject: Subject) -> str:
    weights = "trained" if subject.is_trained else "untrained"
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    config = subject.model.config
    return (
        f"{subject.name}: {weights}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{parameters:,} parameters."
    )


__all__ = ["HEADS", "Page", "Payload", "Show", "make_page", "playground_page", "text_payload"]
