"""The loops as operators that torch.compile and autograd see whole: one node instead of a copy of the cell a position.

The forward is the reference; it keeps h (and c) alone. The backward forms the activations once more, of all positions
in one product, and with them what each gate's gradient is as a multiple of that of h[t] or c[t]. Its loop then holds
one product and a few multiplications; the gradient of W_hh is one product over all positions.

Shapes: B batch, T time, H hidden, G H gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.recurrent_loops import reference


@torch.library.custom_op("seqmix::elman_loop", mutates_args=())
def elman(gates: Tensor, weight: Tensor, hidden: Tensor, starts: Tensor | None) -> Tensor:
    """h at every position, (batch, time, hidden)."""
    return reference.elman(gates, weight, hidden, starts)


@elman.register_fake
def _(gates: Tensor, weight: Tensor, hidden: Tensor, starts: Tensor | None) -> Tensor:
    return gates.new_empty(gates.shape)


@torch.library.custom_op("seqmix::elman_loop_backward", mutates_args=())
def _elman_backward(
    grad: Tensor, weight: Tensor, outputs: Tensor, hidden: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gates, weight and hidden."""
    slopes = 1 - outputs.square()
    grad_gates = torch.empty_like(slopes)
    grad_hidden = torch.zeros_like(hidden)
    for t in reversed(range(grad.shape[1])):
        grad_gates[:, t] = (grad[:, t] + grad_hidden) * slopes[:, t]
        grad_hidden = _cut(grad_gates[:, t] @ weight, starts, t)
    before = _before(outputs, hidden, starts)
    return grad_gates, grad_gates.flatten(0, 1).t() @ before.flatten(0, 1), grad_hidden


@_elman_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, outputs: Tensor, hidden: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return outputs.new_empty(outputs.shape), weight.new_empty(weight.shape), hidden.new_empty(hidden.shape)


def _elman_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, hidden, starts = inputs
    ctx.save_for_backward(weight, output, hidden, starts)


def _elman_differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_elman_backward(grad, *ctx.saved_tensors), None)


elman.register_autograd(_elman_differentiate, setup_context=_elman_save)


@torch.library.custom_op("seqmix::gru_loop", mutates_args=())
def gru(gates: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor, starts: Tensor | None) -> Tensor:
    """h at every position, (batch, time, hidden)."""
    return reference.gru(gates, weight, bias, hidden, starts)


@gru.register_fake
def _(gates: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor, starts: Tensor | None) -> Tensor:
    return gates.new_empty(*gates.shape[:2], hidden.shape[1])


@torch.library.custom_op("seqmix::gru_loop_backward", mutates_args=())
def _gru_backward(
    grad: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None,
    outputs: Tensor,
    hidden: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of gates, weight, bias (empty without one) and hidden."""
    before = _before(outputs, hidden, starts)
    recurrent = before @ weight.t() if bias is None else before @ weight.t() + bias
    more_reset, more_update, more_new = recurrent.chunk(3, dim=-1)
    reset, update, new = gates.chunk(3, dim=-1)
    reset, update = torch.sigmoid(reset + more_reset), torch.sigmoid(update + more_update)
    new = torch.tanh(new + reset * more_new)
    of_new = (1 - update) * (1 - new.square())
    of_update = (before - new) * update * (1 - update)
    of_reset = of_new * more_new * reset * (1 - reset)
    multiples = torch.stack([of_reset, of_update, of_new * reset], dim=2)
    grads = torch.empty_like(outputs)
    grad_recurrent = torch.empty_like(multiples)
    grad_hidden = torch.zeros_like(hidden)
    for t in reversed(range(grad.shape[1])):
        torch.add(grad[:, t], grad_hidden, out=grads[:, t])
        torch.mul(grads[:, t, None], multiples[:, t], out=grad_recurrent[:, t])
        grad_hidden = torch.addmm(grads[:, t] * update[:, t], grad_recurrent[:, t].flatten(1), weight)
        grad_hidden = _cut(grad_hidden, starts, t)
    grad_recurrent = grad_recurrent.flatten(2)
    hidden_size = hidden.shape[1]
    grad_gates = torch.cat([grad_recurrent[..., : 2 * hidden_size], grads * of_new], dim=-1)
    grad_weight = grad_recurrent.flatten(0, 1).t() @ before.flatten(0, 1)
    grad_bias = weight.new_empty(0) if bias is None else grad_recurrent.sum((0, 1))
    return grad_gates, grad_weight, grad_bias, grad_hidden


@_gru_backward.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None,
    outputs: Tensor,
    hidden: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = weight.new_empty(0 if bias is None else len(bias))
    return gates.new_empty(gates.shape), weight.new_empty(weight.shape), grad_bias, hidden.new_empty(hidden.shape)


def _gru_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gates, weight, bias, hidden, starts = inputs
    ctx.save_for_backward(weight, gates, bias, output, hidden, starts)


def _gru_differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    has_bias = ctx.saved_tensors[2] is not None
    grad_gates, grad_weight, grad_bias, grad_hidden = _gru_backward(grad, *ctx.saved_tensors)
    return grad_gates, grad_weight, grad_bias if has_bias else None, grad_hidden, None


gru.register_autograd(_gru_differentiate, setup_context=_gru_save)


@torch.library.custom_op("seqmix::lstm_loop", mutates_args=())
def lstm(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """h and c at every position, (batch, time, hidden) each."""
    return reference.lstm(gates, weight, hidden, cell, starts)


@lstm.register_fake
def _(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    sizes = (*gates.shape[:2], hidden.shape[1])
    return gates.new_empty(sizes), gates.new_empty(sizes)


@torch.library.custom_op("seqmix::lstm_loop_backward", mutates_args=())
def _lstm_backward(
    grad: Tensor,
    weight: Tensor,
    grad_cells: Tensor,
    gates: Tensor,
    outputs: Tensor,
    cells: Tensor,
    hidden: Tensor,
    cell: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of gates, weight, hidden and cell."""
    before, cells_before = _before(outputs, hidden, starts), _before(cells, cell, starts)
    enter, forget, new, leave = (gates + before @ weight.t()).chunk(4, dim=-1)
    enter, forget, leave = torch.sigmoid(enter), torch.sigmoid(forget), torch.sigmoid(leave)
    new, bounded = torch.tanh(new), torch.tanh(cells)
    of_cell = leave * (1 - bounded.square())
    parts = [new * enter * (1 - enter), cells_before * forget * (1 - forget), enter * (1 - new.square())]
    multiples = torch.stack(parts, dim=2)
    of_leave = bounded * leave * (1 - leave)
    grad_gates = gates.new_empty(*outputs.shape[:2], 4, outputs.shape[2])
    grad_hidden, grad_cell = torch.zeros_like(hidden), torch.zeros_like(cell)
    for t in reversed(range(grad.shape[1])):
        grad_hidden = grad_hidden + grad[:, t]
        grad_cell = torch.addcmul(grad_cell + grad_cells[:, t], grad_hidden, of_cell[:, t])
        torch.mul(grad_cell[:, None], multiples[:, t], out=grad_gates[:, t, :3])
        torch.mul(grad_hidden, of_leave[:, t], out=grad_gates[:, t, 3])
        grad_hidden = _cut(grad_gates[:, t].flatten(1) @ weight, starts, t)
        grad_cell = _cut(grad_cell * forget[:, t], starts, t)
    grad_gates = grad_gates.flatten(2)
    return grad_gates, grad_gates.flatten(0, 1).t() @ before.flatten(0, 1), grad_hidden, grad_cell


@_lstm_backward.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    grad_cells: Tensor,
    gates: Tensor,
    outputs: Tensor,
    cells: Tensor,
    hidden: Tensor,
    cell: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gates_, weight_, hidden_, cell_ = (each.new_empty(each.shape) for each in (gates, weight, hidden, cell))
    return gates_, weight_, hidden_, cell_


def _lstm_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gates, weight, hidden, cell, starts = inputs
    ctx.save_for_backward(weight, gates, *output, hidden, cell, starts)


def _lstm_differentiate(ctx: Any, grad: Tensor, grad_cells: Tensor) -> tuple[Tensor | None, ...]:
    weight, *others = ctx.saved_tensors
    return (*_lstm_backward(grad, weight, grad_cells, *others), None)


lstm.register_autograd(_lstm_differentiate, setup_context=_lstm_save)


def _before(memories_BTH: Tensor, first_BH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """The memory that each position starts from."""
    before = torch.cat([first_BH[:, None], memories_BTH[:, :-1]], dim=1)
    return before if starts_BT is None else before.masked_fill_(starts_BT[..., None], 0.0)


def _cut(grad_BH: Tensor, starts_BT: Tensor | None, t: int) -> Tensor:
    """No gradient leaves a document at its beginning."""
    return grad_BH if starts_BT is None else grad_BH.masked_fill_(starts_BT[:, t, None], 0.0)
