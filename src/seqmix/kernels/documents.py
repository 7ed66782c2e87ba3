"""Where the borders of packed documents are.

Shapes: B batch, T time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Where each position of a piece stands in its document.

    positions: (batch, time) int64, the offset within the document, continued from the state.
    runs: (batch, time) int64, equal exactly within one document of the piece; 0 is the document that the
        state was reading.
    position: (batch,) int64, and document: (batch,) int64: the bookkeeping of the state after the piece.
    packed: whether a border inside the piece is possible.
    """

    positions: Tensor
    runs: Tensor
    position: Tensor
    document: Tensor
    packed: bool


def place_piece(
    batch: int,
    time: int,
    device: torch.device,
    position: Tensor | None,
    document: Tensor | None,
    document_ids: Tensor | None,
) -> Placement:
    """Finds the borders of documents in a piece that continues a state's position and document (both or neither).

    A new document begins wherever the id changes; an id that comes back later is another document.
    Without `document_ids` the whole piece continues the state's document.
    """
    steps = torch.arange(time, device=device)
    start = torch.zeros(batch, dtype=torch.int64, device=device) if position is None else position
    if document_ids is None or time == 0:
        kept = torch.zeros_like(start) if document is None else document
        positions = start[:, None] + steps
        return Placement(positions, torch.zeros_like(positions), start + time, kept, False)
    if document_ids.shape != (batch, time):
        raise ValueError(
            f"document_ids has shape {tuple(document_ids.shape)}: it must be (batch, time) = {(batch, time)}"
        )
    before = document_ids[:, :1] if document is None else document[:, None]
    is_new = document_ids != torch.cat([before, document_ids[:, :-1]], dim=1)
    last_border = torch.where(is_new, steps, -1).cummax(dim=1).values
    positions = torch.where(last_border >= 0, steps - last_border, start[:, None] + steps)
    return Placement(positions, is_new.cumsum(dim=1), positions[:, -1] + 1, document_ids[:, -1].clone(), True)


def begins(runs: Tensor) -> Tensor:
    """(batch, time) bool: whether a document begins at a position, for the runs of a `Placement`."""
    return runs != torch.cat([torch.zeros_like(runs[:, :1]), runs[:, :-1]], dim=1)
