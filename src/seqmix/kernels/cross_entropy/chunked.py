"""The loss of a language model's head in chunks of tokens: logits exist for one chunk at a time.

The gradient of a mean is known as soon as a chunk's logits are, up to one factor, so the forward pass takes it along:

    p = softmax(logits);   g = (p - onehot(target)) / divisor;   grad_hidden = g weight;   grad_weight += g^T hidden

and the backward pass only multiplies by the gradient of the loss. Losses of single tokens have a factor each, so
their backward pass forms the logits of each chunk once more.

Shapes: N tokens, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.cross_entropy import native
from seqmix.kernels.library import can_run

CHUNK_LOGITS = 1 << 23
"""Logits held at once, 32 MiB in float32: few enough for a large cache, enough for the products' full rate."""


def chunk_rows(vocabulary: int) -> int:
    """Tokens of a chunk: a multiple of 64, and 64 at least."""
    return max(64, CHUNK_LOGITS // max(1, vocabulary) // 64 * 64)


class _Head:
    """The operands in the precision of the products, chunk by chunk."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int, dtype: torch.dtype):
        self.hidden_ND, self.targets_N, self.ignore_index, self.dtype = hidden_ND, targets_N, ignore_index, dtype
        self.weight_VD = weight_VD.to(dtype)
        rows = min(chunk_rows(weight_VD.shape[0]), hidden_ND.shape[0])
        self._buffer_CV = hidden_ND.new_empty(rows, weight_VD.shape[0], dtype=dtype)

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """(rows, hidden (C, D), logits (C, V), targets (C,)); the logits may be written to."""
        size = max(1, self._buffer_CV.shape[0])
        for first in range(0, self.hidden_ND.shape[0], size):
            rows = slice(first, min(first + size, self.hidden_ND.shape[0]))
            hidden_CD = self.hidden_ND[rows].to(self.dtype)
            logits_CV = self._buffer_CV[: len(hidden_CD)]
            torch.mm(hidden_CD, self.weight_VD.t(), out=logits_CV)
            yield rows, hidden_CD, logits_CV, self.targets_N[rows]

    def losses(self, logits_CV: Tensor, targets_C: Tensor, factor_C: Tensor | None) -> Tensor:
        """(C,) in float32, 0 where the target is left out.

        With a factor (C,) the logits become the factor times the gradient of their loss.
        """
        if can_run(logits_CV):
            return native.losses_in_place(logits_CV, targets_C, self.ignore_index, factor_C)
        wide_CV = logits_CV.float()
        kept_C = targets_C != self.ignore_index
        targets_C1 = targets_C.where(kept_C, 0)[:, None]
        total_C = torch.logsumexp(wide_CV, dim=1)
        losses_C = (total_C - wide_CV.gather(1, targets_C1)[:, 0]).where(kept_C, 0.0)
        if factor_C is not None:
            factor_C1 = factor_C.where(kept_C, 0.0)[:, None]
            gradient_CV = wide_CV.sub_(total_C[:, None]).exp_().mul_(factor_C1)
            logits_CV.copy_(gradient_CV.scatter_add_(1, targets_C1, -factor_C1))
        return losses_C


class _Gradients:
    """Sums up the gradients of hidden and weight that are asked for; the weight's in float32."""

    def __init__(self, head: _Head, weight_VD: Tensor, hidden: bool, weight: bool) -> None:
        self.head, self._weight_dtype = head, weight_VD.dtype
        self._hidden_ND = torch.empty_like(head.hidden_ND if hidden else head.hidden_ND[:0])
        shape = weight_VD.shape if weight else (0, weight_VD.shape[1])
        self._weight_VD = weight_VD.new_zeros(shape, dtype=torch.float32)
        self.hidden, self.weight = hidden, weight

    def add(self, rows: slice, hidden_CD: Tensor, gradient_CV: Tensor) -> None:
        if self.hidden:
            self._hidden_ND[rows] = gradient_CV @ self.head.weight_VD
        if self.weight and self.head.dtype == torch.float32:
            self._weight_VD.addmm_(gradient_CV.t(), hidden_CD)
        elif self.weight:
            self._weight_VD += gradient_CV.t() @ hidden_CD

    def result(self) -> tuple[Tensor, Tensor]:
        return self._hidden_ND, self._weight_VD.to(self._weight_dtype)


@torch.library.custom_op("seqmix::linear_cross_entropy", mutates_args=())
def _summed_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, its gradients of hidden and weight; those that are not wanted have no rows)."""
    kept = _few_kept(targets, ignore_index)
    if kept is not None:
        hidden_KD, targets_K = hidden[kept], targets[kept]
        operands = (weight, targets_K, divisor, ignore_index, dtype, wants_hidden, wants_weight)
        loss, of_hidden, of_weight = _sum_chunks(hidden_KD, *operands)
        spread = torch.zeros_like(hidden).index_copy_(0, kept, of_hidden) if wants_hidden else of_hidden
        return loss, spread, of_weight
    return _sum_chunks(hidden, weight, targets, divisor, ignore_index, dtype, wants_hidden, wants_weight)


def _few_kept(targets_N: Tensor, ignore_index: int) -> Tensor | None:
    """Which targets are kept, where they are less than half of all: the others' logits are then never formed.

    On a GPU their number is not known without waiting for it, so all are formed there.
    """
    if targets_N.device.type != "cpu":
        return None
    kept = (targets_N != ignore_index).nonzero()[:, 0]
    return kept if 2 * len(kept) < len(targets_N) else None


def _sum_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(hidden, weight, targets, ignore_index, dtype)
        gradients = _Gradients(head, weight, wants_hidden, wants_weight)
        loss = hidden.new_zeros((), dtype=torch.float32)
        factor = (1 / divisor).float() if wants_hidden or wants_weight else None
        for rows, hidden_CD, logits_CV, targets_C in head.chunks():
            factor_C = None if factor is None else factor.expand(len(hidden_CD))
            loss += head.losses(logits_CV, targets_C, factor_C).sum()
            if factor is not None:
                gradients.add(rows, hidden_CD, logits_CV)
    return loss / divisor, *gradients.result()


@_summed_loss.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty((), dtype=torch.float32),
        torch.empty_like(hidden if wants_hidden else hidden[:0]),
        weight.new_empty(weight.shape if wants_weight else (0, weight.shape[1])),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.wants = inputs[-2:]
    # As outputs they lead a second derivative back to this function, which then refuses it.
    ctx.save_for_backward(*output[1:])


def _scale_gradients(
    ctx: Any, grad: Tensor | None, *of_gradients: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None, None]:
    if any(one is not None for one in of_gradients):
        raise RuntimeError(
            "the chunked cross-entropy has no second derivative: use implementation='reference' for that"
        )
    scaled = [
        (one * grad.to(one.dtype)) if wanted and grad is not None else None
        for one, wanted in zip(ctx.saved_tensors, ctx.wants, strict=True)
    ]
    return scaled[0], scaled[1], None, None, None, None, None, None


_summed_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@torch.library.custom_op("seqmix::linear_token_losses", mutates_args=())
def _token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """(N,) in float32."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(hidden, weight, targets, ignore_index, dtype)
        for rows, _, logits_CV, targets_C in head.chunks():
            losses[rows] = head.losses(logits_CV, targets_C, None)
    return losses


@_token_losses.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


@torch.library.custom_op("seqmix::linear_token_losses_backward", mutates_args=())
def _token_losses_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(hidden, weight, targets, ignore_index, dtype)
        gradients = _Gradients(head, weight, wants_hidden, wants_weight)
        for rows, hidden_CD, logits_CV, targets_C in head.chunks():
            head.losses(logits_CV, targets_C, grad[rows])
            gradients.add(rows, hidden_CD, logits_CV)
    return gradients.result()


@_token_losses_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(hidden if wants_hidden else hidden[:0]),
        weight.new_empty(weight.shape if wants_weight else (0, weight.shape[1])),
    )


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, targets, ctx.ignore_index, ctx.dtype = inputs
    ctx.save_for_backward(hidden, weight, targets)


def _token_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    wants = ctx.needs_input_grad[:2]
    found = _token_losses_backward(grad, *ctx.saved_tensors, ctx.ignore_index, ctx.dtype, *wants)
    hidden, weight = (one if wanted else None for one, wanted in zip(found, wants, strict=True))
    return hidden, weight, None, None, None


_token_losses.register_autograd(_token_gradients, setup_context=_keep_operands)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The precision that a linear layer would compute in: autocast's where that is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: give both in one precision")
    return hidden.dtype


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int) -> Tensor:
    """As the reference's, in float32."""
    return _token_losses(hidden_ND, weight_VD, targets_N, ignore_index, _product_dtype(hidden_ND, weight_VD))


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, divisor: Tensor, ignore_index: int) -> Tensor:
    """As the reference's, in float32; a second derivative is refused."""
    wants = torch.is_grad_enabled()
    return _summed_loss(
        hidden_ND,
        weight_VD,
        targets_N,
        divisor,
        ignore_index,
        _product_dtype(hidden_ND, weight_VD),
        wants and hidden_ND.requires_grad,
        wants and weight_VD.requires_grad,
    )[0]
