"""Gradients through a stack: what every mixer adds to the residual, and which inputs a position of it depends on.

Shapes: R rows of a batch, T time, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from seqmix.inspection.layers import Place
from seqmix.mixer import Mixer, SharingMixer
from seqmix.models.language_model import SeqmixForCausalLM

TINY = 1e-6
"""In place of a weight that is exactly zero: far above what float64 loses, far below what shows in any number."""


def probe_of(model: SeqmixForCausalLM, *, as_it_is: bool = False) -> SeqmixForCausalLM:
    """A copy in float64 whose weights take no gradient.

    Weights that are exactly zero become about `TINY`: a fresh output projection of zeros hides the whole mixer behind
    it, although training moves it at once. `as_it_is` leaves them.
    """
    probe = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.requires_grad_(False)
            zeros = parameter == 0
            if not as_it_is and bool(zeros.any()):
                parameter[zeros] = TINY * normal(int(zeros.sum()), generator=generator).to(parameter)
    return probe


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def streams(model: SeqmixForCausalLM, embeddings: Tensor) -> list[Tensor]:
    """The residual stream (R, T, D) after each mixer, in the order of `mixer_places`, with its graph.

    What follows a mixer position by position is included: its feed-forward, or the norm before a feed-forward that
    mixes too. Neither changes which positions are seen.
    """
    found: list[Tensor] = []
    hooks = []
    for block in model.model.layers:
        if isinstance(block.feed_forward, Mixer):
            hooks.append(block.feed_forward.register_forward_pre_hook(lambda _, given: found.append(given[0])))
        hooks.append(
            block.register_forward_hook(
                lambda _, given, out: found.append(out.x if out.branch is None else out.x + out.branch)
            )
        )
    try:
        with torch.enable_grad():
            model.model.mix(embeddings)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def embed(model: SeqmixForCausalLM, input_ids: Tensor) -> Tensor:
    """The embeddings (R, T, D) of tokens (R, T), as a leaf that gradients go to."""
    return model.model.embed_tokens(input_ids).detach().requires_grad_()


def output_of(place: Place, x: Tensor) -> Tensor:
    """What the mixer of a place gives for other inputs x (R, T, D) with its own weights."""
    if isinstance(place.mixer, SharingMixer):
        shared = None if place.shared is None else place.shared.expand(len(x), -1, -1)
        return place.mixer.forward_sharing(x, None, shared)[0].y
    return place.mixer(x).y


def seen_from(output: Tensor, leaf: Tensor, target: int, generator: torch.Generator) -> Tensor:
    """bool (T,): the positions of the leaf that the output (R, T, D) at `target` depends on, in any row.

    The gradient of a random combination of its channels is zero where no path leads, exactly: what is masked or lies
    outside of a kernel is multiplied by zero or not read. In float64 it is not lost on the way: the smallest number is
    5e-324, and a path of a hundred layers with weights of 1e-3 carries 1e-300.
    """
    cotangent = normal(*output[:, target].shape, generator=generator).to(output)
    (gradient,) = torch.autograd.grad(
        (output[:, target] * cotangent).sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return (gradient != 0).any(dim=2).any(dim=0)


def sizes_at(
    output: Tensor, leaf: Tensor, targets: Sequence[int], directions: int, generator: torch.Generator
) -> Tensor:
    """(targets, T): the norm of d output[t] / d leaf[s], up to one factor, from random directions.

    For q standard normal, E |J^T q|^2 is the squared Frobenius norm of J; the mean over `directions` estimates it.

    Args:
        output: (1, T, D), whose graph is walked once for each target, or (targets, T, D), rows of one and the same
            text, for all targets at once: that is faster where positions wait for one another.
    """
    rows = [(row, target) if len(output) > 1 else (0, target) for row, target in enumerate(targets)]
    together = [rows] if len(output) > 1 else [[one] for one in rows]
    squares = torch.zeros(len(targets), leaf.shape[1], dtype=torch.float64)
    for number, group in enumerate(together):
        for _ in range(directions):
            cotangent = torch.zeros_like(output)
            for row, target in group:
                cotangent[row, target] = normal(output.shape[2], generator=generator).to(output)
            (gradient,) = torch.autograd.grad(output, leaf, cotangent, retain_graph=True)
            squares[number : number + len(group)] += gradient.double().square().sum(dim=2)
    return (squares / directions).sqrt()


def span_seen(seen: Tensor, target: int) -> int:
    """The positions from the first one seen to the target, bool (T,)."""
    return target - int(seen.int().argmax()) + 1 if bool(seen.any()) else 0
