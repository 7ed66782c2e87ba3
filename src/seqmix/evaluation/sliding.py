"""Evaluation of long texts, in which every token has (nearly) all of its document before it.

Carried: a constant state reads the text as one piece after another, so every target sees everything before it in its
document, whatever the context of the training was.

Windows: a growing state would grow with the document. Windows of `context` tokens overlap instead: each goes `stride`
tokens further than the one before and scores only its last `stride` targets, so every target sees at least
context - stride tokens before it (fewer at the beginning of a document, where there are no more).

Shapes: B lanes or windows, T time of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from seqmix.data import IGNORED, TokenStore
from seqmix.errors import InputError
from seqmix.evaluation.language import MAX_LOGITS, Evaluation, LossSums, Show, evaluating, model_losses, token_losses
from seqmix.models import SeqmixForCausalLM
from seqmix.models.contenders import LanguageModel
from seqmix.models.huggingface import context_of

PIECE = 1024
"""Tokens that a lane reads at once."""


def has_growing_state(model: LanguageModel) -> bool:
    """Whether the state of any layer grows with the positions read."""
    if not isinstance(model, SeqmixForCausalLM):
        return model.has_growing_state
    return any(block.mixer.traits.state_growth == "linear" for block in model.model.layers)


def evaluate_sliding(
    model: LanguageModel,
    store: TokenStore,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    show: Show | None = None,
) -> Evaluation:
    """Scores the held-out part with all, or nearly all, of each document before every token.

    Args:
        context: tokens in a window; None is the model's own. A carried state does not need it.
        stride: targets that each window adds. None carries the state where it is constant in size, and takes half
            the context where it grows.
        batch_size: lanes of documents, or windows, that are read at once; the result does not depend on it.
        max_tokens: read only the first so many targets.
        show: is told the share that is done.

    Raises:
        InputError: no text, a size below 1, or a stride beyond the context.
    """
    context = context_of(model.config) if context is None else context
    for name, value in (("context", context), ("stride", stride), ("batch_size", batch_size), ("tokens", max_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if stride is not None and stride > context:
        raise InputError(f"stride is {stride}: it must not exceed the context, {context}")
    if len(store) < 2:
        raise InputError(f"the held-out part holds {len(store)} tokens: give at least a byte of text")
    targets = len(store) - 1 if max_tokens is None else min(max_tokens, len(store) - 1)
    if stride is None and has_growing_state(model):
        stride = max(1, context // 2)
    sums = LossSums(expected=targets, show=show)
    with evaluating(model):
        if stride is None and isinstance(model, SeqmixForCausalLM):
            _carried(model, store, targets, batch_size, sums)
        else:
            # A cache of Hugging Face knows no documents, so such a model is read in windows as well.
            _windows(model, store, targets, context, stride or max(1, context // 2), batch_size, sums)
    return sums.result(store)


def _carried(model: SeqmixForCausalLM, store: TokenStore, targets: int, batch_size: int, sums: LossSums) -> None:
    """Each lane reads whole documents, one after another, with the state handed on from piece to piece."""
    lanes = lane_borders(store, targets, batch_size)
    firsts, lasts = torch.tensor(lanes[:-1])[:, None], torch.tensor(lanes[1:])[:, None]
    piece = max(1, min(PIECE, MAX_LOGITS // (len(firsts) * model.config.vocab_size)))
    longest = int((lasts - firsts).max())
    state = model.init_state(len(firsts))
    for begin in range(0, longest, piece):
        steps = torch.arange(begin, min(begin + piece, longest))
        # A lane that has come to its end reads its last token again, as a document that nobody scores.
        is_over = firsts + steps >= lasts
        places = torch.minimum(firsts + steps, lasts - 1)
        tokens, wanted, documents, offsets = _read(store, places)
        logits, state = model.prefill(
            tokens.to(model.device),
            state,
            document_ids=documents.masked_fill(is_over, store.num_documents).to(model.device),
            all_logits=True,
        )
        wanted = wanted.masked_fill(is_over, IGNORED)
        sums.add(token_losses(logits, wanted.to(model.device)), wanted, offsets, order=places)


def lane_borders(store: TokenStore, targets: int, lanes: int) -> list[int]:
    """Where up to `lanes` lanes of the first `targets` inputs begin, and the end: at documents, of similar lengths."""
    inside = store.documents[(store.documents > 0) & (store.documents < targets)]
    borders = {0, targets}
    for lane in range(1, lanes):
        if len(inside):
            borders.add(int(inside[np.abs(inside - lane * targets / lanes).argmin()]))
    return sorted(borders)


def _windows(
    model: LanguageModel,
    store: TokenStore,
    targets: int,
    context: int,
    stride: int,
    batch_size: int,
    sums: LossSums,
) -> None:
    """Overlapping windows, each of which scores the targets that the one before it did not reach."""
    rows = min(batch_size, max(1, MAX_LOGITS // (context * model.config.vocab_size)))
    for first, scored in _window_batches(targets, context, stride, rows):
        steps = torch.arange(context)
        is_over = first[:, None] + steps >= targets
        places = (first[:, None] + steps).clamp_max(targets - 1)
        tokens, wanted, documents, _ = _read(store, places)
        documents = documents.masked_fill(is_over, store.num_documents)
        wanted = wanted.masked_fill(is_over | (places < scored[:, None]), IGNORED)
        losses = model_losses(model, tokens, wanted, documents, model.device)
        begins = torch.from_numpy(store.documents[_document_of(store, places)])
        offsets = places - torch.maximum(begins, first[:, None])
        sums.add(losses, wanted, offsets, order=places)


def _window_batches(targets: int, context: int, stride: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(first input, first input whose target is scored) of windows, (rows,) each."""
    windows = [(0, 0)]
    while windows[-1][0] + context < targets:
        reached = windows[-1][0] + context
        windows.append((reached + stride - context, reached))
        if len(windows) > rows:
            yield _columns(windows[:rows])
            windows = windows[rows:]
    yield _columns(windows)


def _columns(windows: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(windows)
    return table[:, 0], table[:, 1]


def _document_of(store: TokenStore, places: Tensor) -> np.ndarray:
    return np.searchsorted(store.documents, places.numpy(), side="right") - 1


def _read(store: TokenStore, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens at places (B, T), the tokens after them, their documents, and their offsets in these; all int64."""
    index = places.numpy()
    document = _document_of(store, places)
    tokens = torch.from_numpy(store.tokens[index].astype(np.int64))
    after = torch.from_numpy(store.tokens[index + 1].astype(np.int64))
    return tokens, after, torch.from_numpy(document), torch.from_numpy(index - store.documents[document])
