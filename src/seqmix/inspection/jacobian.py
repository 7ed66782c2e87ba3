"""The matrix of a Jacobian mixer, ‖dy[t] / dx[s]‖, within a budget: exact where that is cheap, else estimated.

    ‖J‖² (Frobenius) = D/n · E Σ ‖Jᵀ q_i‖²,   q_1 … q_n orthonormal, uniform in D dimensions     (Hutchinson 1990)

Each target has n directions of its own; n = D is the exact norm. The relative variance of the square, with
r = (tr JJᵀ)² / tr (JJᵀ)² the number of directions that J spreads over, is

    2 D (D - n) / (n (D - 1) (D + 2)) · (1/r - 1/D)   ≤   2 (D - n) / (n (D + 2))

Shapes: T time, S source, D model width, N directions, P targets of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.mixer import Mixer

BUDGET = 100 * 10**9
"""FLOPs of one mixer, about a second on a core: five directions of an LSTM of width 64 at 256 positions."""
ELEMENTWISE = 250
"""FLOPs of a product that take as long as one of element-wise work, which waits for the memory."""
NUMBERS_AT_ONCE = 2**24
"""How many gradients a backward pass may form: more would fill the memory, fewer would read the weights too often."""
AGREEMENT = 1e-2
"""How far the gradient through steps may be from the one through forward, as a share: rounding of long recurrences in
float32 stays far below it, a gradient that a step cuts off does not."""


def jacobian_matrix(mixer: Mixer, x: Tensor, *, budget: float = BUDGET, seed: int = 0) -> tuple[Tensor, int | None]:
    """The norm of dy[t] / dx[s] at x (1, time, dim), as (1, time, source), and the number of random directions.

    Exact, with None for the directions, where `dim` backward passes cost no more than `budget`; else as many random
    directions as the budget pays for, and at least one.

    Args:
        budget: FLOPs of the backward passes, see `position_flops`.
        seed: of the directions.

    Raises:
        InputError: more than one row, or a budget that is not positive.
    """
    if x.dim() != 3 or len(x) != 1 or x.shape[1] == 0:
        raise InputError(f"x has shape {tuple(x.shape)}: the Jacobian of a text needs (1, time, dim)")
    if not budget > 0:
        raise InputError(f"budget is {budget}: the number of FLOPs for a Jacobian must be above 0")
    _, time, dim = x.shape
    positions = time * (time + 1) // 2 if mixer.traits.causal else time * time
    directions = max(1, int(min(budget / (positions * position_flops(mixer)), dim)))
    is_exact = directions == dim
    q_TND = _basis(time, dim, x) if is_exact else _frames(time, dim, directions, x, seed)
    with torch.enable_grad():
        through_steps = mixer.traits.causal and _steps_agree(mixer, x)
        squares_TS = _by_steps(mixer, x, q_TND) if through_steps else _by_rows(mixer, x, q_TND)
    return squares_TS.mul_(dim / directions).sqrt_()[None], None if is_exact else directions


def position_flops(mixer: Mixer) -> int:
    """What a backward pass over one position of one row counts as: its forward, element-wise work by its time."""
    cost = mixer.cost(1, 1)
    return max(1, cost.product_flops + ELEMENTWISE * cost.other_flops)


def relative_error(directions: int | None, dim: int) -> float:
    """A bound on the standard error of an estimated square, as a share of it; 0 for an exact one."""
    if directions is None or directions >= dim:
        return 0.0
    return float((2 * (dim - directions) / (directions * (dim + 2))) ** 0.5)


def _basis(time: int, dim: int, like: Tensor) -> Tensor:
    return torch.eye(dim, dtype=like.dtype, device=like.device).expand(time, dim, dim)


def _frames(time: int, dim: int, directions: int, like: Tensor, seed: int) -> Tensor:
    """(time, directions, dim): for each target orthonormal directions, the span uniform over all of that dimension."""
    draw = torch.randn(time, dim, directions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw).Q.mT.to(like)


def _steps(mixer: Mixer, inputs: list[Tensor]) -> list[Tensor]:
    """y (1, dim) at every position, with a graph of its own for each step."""
    state = mixer.init_state(1, len(inputs), device=inputs[0].device, dtype=inputs[0].dtype)
    outputs = []
    for x_1D in inputs:
        # A step may write into its state, which the step before still needs for its backward.
        y_1D, state = mixer.step(x_1D, state.clone())
        outputs.append(y_1D)
    return outputs


def _leaves(x: Tensor) -> list[Tensor]:
    return [part.detach().clone().requires_grad_() for part in x.unbind(1)]


def _steps_agree(mixer: Mixer, x: Tensor) -> bool:
    """Whether the steps carry forward's gradient: the contract asks for their values alone."""
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    whole = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(mixer(whole).y, whole, cotangent)
    leaves = _leaves(x)
    outputs = _steps(mixer, leaves)
    if not all(y.requires_grad for y in outputs):
        return False
    found = torch.autograd.grad(outputs, leaves, cotangent.unbind(1), allow_unused=True, materialize_grads=True)
    return bool((torch.stack(found, dim=1) - expected).norm() <= AGREEMENT * expected.norm())


def _blocks(time: int, directions: int, dim: int) -> list[tuple[int, int]]:
    """(first, end) of the targets that share a backward pass."""
    size = max(1, NUMBERS_AT_ONCE // (directions * time * dim))
    return [(first, min(first + size, time)) for first in range(0, time, size)]


def _by_steps(mixer: Mixer, x: Tensor, q_TND: Tensor) -> Tensor:
    """(time, source): Σ ‖Jᵀ q‖², through one forward, whose graph each block's backward walks from its end back."""
    time, directions, dim = q_TND.shape
    leaves = _leaves(x)
    outputs = _steps(mixer, leaves)
    squares = x.new_zeros(time, time)
    for first, end in _blocks(time, directions, dim):
        targets = end - first
        cotangents = x.new_zeros(targets, targets, directions, 1, dim)
        block = torch.arange(targets)
        cotangents[block, block] = q_TND[first:end, :, None]
        gradients = torch.autograd.grad(
            outputs[first:end],
            leaves[:end],
            list(cotangents.flatten(1, 2)),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )
        sizes_SP = torch.stack([g.square().sum((1, 2)).view(targets, directions).sum(1) for g in gradients])
        squares[first:end, :end] = sizes_SP.t()
    return squares


def _by_rows(mixer: Mixer, x: Tensor, q_TND: Tensor) -> Tensor:
    """As `_by_steps`, through forwards whose every row is the same text with one target and one direction."""
    time, directions, dim = q_TND.shape
    squares = x.new_zeros(time, time)
    for first, end in _blocks(time, directions, dim):
        seen = end if mixer.traits.causal else time
        rows = (end - first) * directions
        leaf = x[:, :seen].detach().repeat(rows, 1, 1).requires_grad_()
        targets = torch.arange(first, end, device=x.device).repeat_interleave(directions)
        y = mixer(leaf).y[torch.arange(rows, device=x.device), targets]
        (gradient,) = torch.autograd.grad(y, leaf, q_TND[first:end].reshape(rows, dim))
        squares[first:end, :seen] = gradient.square().sum(2).view(end - first, directions, seen).sum(1)
    return squares
