"""Padding: as a document of its own where it stands at the left, and taken out where it stands elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.models.state import PAD_DOCUMENT, ModelState

Mix = Callable[[Tensor, ModelState | None], tuple[Tensor, ModelState]]
"""From embeddings (batch, time, dim) and a state to hidden states and the state after them."""


def padding_is_documents(mask: Tensor, keeps_state: bool, continues: bool) -> bool:
    """Whether padding (mask False) can be read as documents of its own.

    It can where each row's tokens are in one piece; where a state is kept, they must also end the piece. In a piece
    that continues a state it would come between the tokens and their past.
    """
    if continues:
        return bool(mask.all())
    starts = mask[:, 0] + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    return bool((starts <= 1).all()) and (not keeps_state or bool(mask[:, -1].all()))


def documents_of_mask(mask: Tensor, document_ids: Tensor | None) -> Tensor | None:
    """document_ids in which padding (mask False) is a document of its own; None where nothing is padded."""
    if bool(mask.all()):
        return document_ids
    own = torch.zeros_like(mask, dtype=torch.int64) if document_ids is None else document_ids
    return own.masked_fill(~mask, PAD_DOCUMENT)


def forward_padded(
    mix: Mix, embeddings: Tensor, mask: Tensor, state: ModelState | None, document_ids: Tensor | None
) -> tuple[Tensor, ModelState]:
    """Reads each row's tokens as if its padding were not there, whatever side it is on.

    Rows with equally many tokens are read together. The hidden states of padding are zero.
    """
    if document_ids is not None:
        raise InputError("document_ids with padding between tokens cannot be read: leave the padding out")
    counts = mask.sum(dim=1)
    hidden = torch.zeros_like(embeddings)
    parts, rows_of_parts = [], []
    for count in counts.unique().tolist():
        rows = torch.nonzero(counts == count).flatten()
        own = None if state is None else state.select(rows)
        if count:
            where = mask[rows]
            tokens = embeddings[rows][where].unflatten(0, (len(rows), count))
            y, own = mix(tokens, own)
            filled = torch.zeros_like(hidden[rows])
            filled[where] = y.flatten(0, 1)
            hidden = hidden.index_copy(0, rows, filled)
        if own is None:
            raise InputError(f"row {int(rows[0])} of the attention mask is all padding: leave the row out")
        parts.append(own)
        rows_of_parts.append(rows)
    joined = parts[0].cat(*parts[1:]) if len(parts) > 1 else parts[0]
    return hidden, joined.select(torch.cat(rows_of_parts).argsort())
