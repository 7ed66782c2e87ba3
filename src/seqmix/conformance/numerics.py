"""Checks of numbers: gradients, low precision, and the same result when compiled."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.autograd.gradcheck import gradcheck as finite_differences
from torch.func import functional_call

from seqmix.conformance.subject import STAGES, Subject, expect, rounding
from seqmix.mixer import Mixer


def gradcheck(subject: Subject) -> None:
    """Float64 gradients equal finite differences, for the input and every parameter; float32's equal float64's."""
    x = subject.x(2, 5)
    names = [name for name, parameter in subject.oracle.named_parameters() if parameter.requires_grad]
    values = dict(subject.oracle.named_parameters())
    extra = subject.extra(x)

    def function(x: Tensor, *given: Tensor) -> Tensor:
        inputs = dict(zip([*names, *extra], given, strict=True))
        memory = {name: inputs.pop(name) for name in extra}
        return functional_call(subject.oracle, inputs, (x,), memory).y

    leaves = [
        leaf.detach().clone().requires_grad_() for leaf in (x, *(values[name] for name in names), *extra.values())
    ]
    unused = [
        name
        for name, gradient in zip(["x", *names], _gradients(subject.oracle, subject, 33), strict=True)
        if gradient is None
    ]
    expect(not unused, f"no gradient reaches {', '.join(unused)}")
    try:
        finite_differences(function, leaves, fast_mode=True, atol=1e-7, rtol=1e-5)
    except GradcheckError as error:
        expect(False, "the gradient differs from finite differences: " + " ".join(str(error).split())[:300])
    for time in (7, 33):
        expected, actual = _gradients(subject.oracle, subject, time), _gradients(subject.mixer, subject, time)
        largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
        for name, one, other in zip(["x", *names], actual, expected, strict=True):
            expect((one is None) == (other is None), f"float32 and float64 disagree whether {name} has a gradient")
            if one is not None and other is not None:
                if float(other.abs().max()) <= rounding(torch.float64, subject.reduction(2 * time)) * largest:
                    # Zero by cancellation, as for a bias on all keys: what cancels is as large as other gradients.
                    remainder = float(one.abs().max())
                    allowed = 4 * rounding(one.dtype, subject.reduction(2 * time)) * largest
                    expect(remainder <= allowed, f"the float32 gradient of {name} is {remainder:.2g}, not zero")
                    continue
                # A parameter's gradient also sums over the batch's positions, and passes all stages once more.
                subject.close(one, other, f"the float32 gradient of {name} over {time} positions", 2 * time, slack=4)


def _gradients(module: Mixer, subject: Subject, time: int) -> list[Tensor | None]:
    dtype = next(module.parameters(), torch.empty(0)).dtype
    leaf = subject.x(2, time).to(dtype).requires_grad_()
    y = subject.forward(module, leaf).y
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((y * cotangent).sum(), [leaf, *parameters], allow_unused=True))


def _norms(error: Tensor) -> tuple[float, float]:
    return float(error.square().mean().sqrt()), float(error.abs().max())


@torch.no_grad()
def low_precision(subject: Subject) -> None:
    """bfloat16 is off by at most twice what rounding the inputs and weights alone costs, plus a rounding band.

    The oracle is run with its weights and its input rounded to bfloat16, all else in float64: what that changes is
    the least that bfloat16 costs, e. The mixer itself also rounds between its stages. Each rounding is relative,
    at most eps / 2, as the ones of the inputs are, and independent of them, so that STAGES of them add up to
    sqrt(STAGES) * eps / 2 of the output's size: the band. The error must stay within 2 e + band, both in the
    root mean square and at the largest, for forward and for steps from an empty state. Large inputs must not
    overflow where the oracle does not.
    """
    time, batch = 32, 3
    x = subject.x(batch, time)
    low = copy.deepcopy(subject.mixer).bfloat16()
    rounded = copy.deepcopy(low).double()
    exact = subject.forward(subject.oracle, x).y
    reference = subject.forward(rounded, x.bfloat16().double()).y
    outputs = {"forward": subject.forward(low, x.bfloat16()).y}
    if subject.is_plain and subject.traits.causal:
        outputs["a run of steps"] = _run_of_steps(low, x.bfloat16())
    own, size = _norms(reference - exact), _norms(exact)
    for what, y in outputs.items():
        expect(y.dtype == torch.bfloat16, f"{what} of a bfloat16 mixer gives an output in {y.dtype}")
        expect(bool(torch.isfinite(y).all()), f"{what} in bfloat16 gives NaN or infinite values")
        for index, (how, error) in enumerate(zip(("on average", "at most"), _norms(y.double() - exact), strict=True)):
            allowed = 2 * own[index] + STAGES**0.5 * torch.finfo(torch.bfloat16).eps / 2 * size[index]
            expect(
                error <= allowed,
                f"{what} in bfloat16 is off {how} by {error:.2g}; rounding explains {allowed:.2g}",
            )
    big = 100 * x
    for module, dtype in ((subject.mixer, torch.float32), (low, torch.bfloat16)):
        if bool(torch.isfinite(subject.forward(subject.oracle, big).y).all()):
            y = subject.forward(module, big.to(dtype)).y
            expect(bool(torch.isfinite(y).all()), f"inputs of size 100 give NaN or infinite values in {dtype}")


def _run_of_steps(module: Mixer, x: Tensor) -> Tensor:
    state, outputs = module.init_state(len(x), dtype=x.dtype), []
    for token in x.unbind(1):
        y, state = module.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def compiles(subject: Subject, backend: str = "aot_eager") -> None:
    """torch.compile takes forward with its backward, packed documents and a step, each as one graph."""
    module, batch, time = subject.mixer, 2, 8
    x = subject.x(batch, time).float()
    plain = subject.is_plain
    ids = torch.tensor([[0] * 3 + [1] * 5, [2] * 8])
    extra = subject.extra(x)

    def whole(x: Tensor) -> Tensor:
        return module(x, **extra).y

    def packed(x: Tensor) -> Tensor:
        return module(x, document_ids=ids).y

    def step(x: Tensor) -> Tensor:
        return module.step(x[:, -1], state.clone()).y

    with torch.no_grad():
        state = module(x[:, :-1]).state
    functions = [("sequence", whole, True)]
    if plain:
        functions.append(("packed sequence", packed, False))
    if plain and subject.traits.causal:
        functions.append(("step", step, False))
    for what, function, backward in functions:
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=False)
        with torch.set_grad_enabled(backward), warnings.catch_warnings():
            # Said by torch's own tracing of an autograd function.
            warnings.filterwarnings("ignore", message=".*should not be instantiated", category=DeprecationWarning)
            leaf = x.clone().requires_grad_(backward)
            y = compiled(leaf)
            expected = function(x)
            subject.close(y, expected.double(), f"the output of the compiled {what}", time)
            if backward:
                (slope,) = torch.autograd.grad(y.sum(), leaf)
                leaf = x.clone().requires_grad_()
                (wanted,) = torch.autograd.grad(function(leaf).sum(), leaf)
                subject.close(slope, wanted.double(), "the compiled gradient", time, slack=4)
    torch._dynamo.reset()
