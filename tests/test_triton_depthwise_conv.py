"""The Triton convolution against the reference in float64, run by Triton's interpreter; and compiled for real GPUs.

The interpreter must be asked for before triton is imported, by whomever, so that a process of its own runs the cases.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.kernels.depthwise_conv import (
    depthwise_conv,
    depthwise_conv_step,
    empty_state,
    group_channels,
    reference,
    unroll,
)
from seqmix.kernels.depthwise_conv import triton as ours
from seqmix.kernels.depthwise_conv.channels import Dilations
from seqmix.kernels.depthwise_conv.triton_step import available as step_available
from seqmix.kernels.depthwise_conv.triton_step import depthwise_conv_step as step_operator
from seqmix.kernels.depthwise_conv.triton_step import step
from seqmix.kernels.documents import Placement, place_piece

pytest.importorskip("triton", reason="triton is not installed")

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not IS_INTERPRETED, reason="run by test_the_cases_pass_in_the_interpreter")
outside = pytest.mark.skipif(IS_INTERPRETED, reason="this process is the interpreter's")

EXAMPLES = int(os.environ.get("INTERPRETED_EXAMPLES", "4"))

DILATIONS: list[int | list[int]] = [1, 2, 11, [1, 1, 3, 3], [2, 1, 2, 1]]


@outside
@pytest.mark.parametrize("examples", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_the_cases_pass_in_the_interpreter(examples: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "INTERPRETED_EXAMPLES": str(examples)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


@outside
def test_without_a_gpu_it_says_what_to_do() -> None:
    x, dilations = torch.randn(1, 3, 2), group_channels(1, 2, 2)
    placement = place_piece(1, 3, x.device, None, None, None)
    assert not ours.available(torch.device("cpu"))
    assert ours.available(torch.device("cuda"))
    with pytest.raises(ValueError, match="need a CUDA device, and the tensors are on cpu: move them"):
        ours.convolve(x, torch.randn(2, 2), None, dilations, None, None, placement, True)


def test_a_sequence_that_cannot_be_counted_is_refused() -> None:
    x, dilations = torch.zeros(1, 1, 1).expand(1, 2**30, 1), group_channels(1, 1, 2)
    placement = Placement(x, x, x, x, False)
    message = f"{2**30} positions and a reach of 1 are more" if IS_INTERPRETED else "need a CUDA device"
    with pytest.raises(ValueError, match=message):
        ours.convolve(x, torch.randn(1, 2), None, dilations, None, None, placement, True)


def expected(
    x: Tensor, weight: Tensor, bias: Tensor, dilations: Dilations, past: Any, position: Any, at: Placement, causal: bool
) -> Tensor:
    outputs = []
    for group in dilations.groups:
        recent = None if past is None else unroll(past, position, group)
        part = slice(group.first, group.last)
        outputs.append(reference.convolve(x[:, :, part], weight[part], group, recent, at, causal))
    return torch.cat(outputs, 2) + bias


def compare(
    *,
    batch: int = 2,
    time: int,
    kernel: int,
    dilation: int | list[int] = 1,
    causal: bool = True,
    packed: bool = False,
    continued: bool = False,
    kind: torch.dtype = torch.float32,
    dim: int = 4,
    strided: bool = False,
) -> None:
    """Values and gradients against the reference in float64, to the rounding of sums of that many products."""
    dilations = group_channels(dilation, dim, kernel)
    order = list(range(dim)) if dilations.order is None else list(dilations.order)
    # Steps between rows, times and channels that are not those of a contiguous tensor.
    x = torch.randn(time, dim, batch + 1).permute(2, 0, 1)[1:] if strided else torch.randn(batch, time, dim)
    grad = torch.randn(batch, dim, time).transpose(1, 2) if strided else torch.randn(batch, time, dim)
    x, grad = x.to(kind)[:, :, order], grad.to(kind)
    if strided and dim > 1:
        x = torch.cat([x, x], 2)[:, :, dim // 2 : dim // 2 + dim]
    weight, bias = torch.randn(dim, kernel).to(kind), torch.randn(dim).to(kind)
    ids = (torch.rand(batch, time) < 0.3).cumsum(1) if packed else None
    position = document = past = None
    if continued:
        # Long enough ago that the rings are full.
        position = dilations.span + torch.randint(0, 9, (batch,))
        document = torch.zeros(batch, dtype=torch.int64)
        past = torch.randn(batch, dilations.past_size).to(kind)
    placement = place_piece(batch, time, x.device, position, document, ids)
    inputs = [x, weight, bias, *([] if past is None else [past])]
    for tensor in inputs:
        tensor.requires_grad_()
    found = ours.convolve(x, weight, bias, dilations, past, position, placement, causal)
    assert found.dtype == kind
    assert found.shape == x.shape
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = expected(*wide[:3], dilations, wide[3] if continued else None, position, placement, causal)
    sizes = [tensor.detach().abs().requires_grad_() for tensor in wide]
    size = expected(*sizes[:3], dilations, sizes[3] if continued else None, position, placement, causal)
    all_found = (found, *torch.autograd.grad(found, inputs, grad))
    all_wanted = (wanted, *torch.autograd.grad(wanted, wide, grad.double()))
    all_sizes = (size, *torch.autograd.grad(size, sizes, grad.double().abs()))
    short, long = kernel + 1, batch * time
    sums = torch.finfo(torch.promote_types(kind, torch.float32)).eps
    for one, two, magnitude, terms in zip(
        all_found, all_wanted, all_sizes, (short, short, long, long, short)[: len(all_found)], strict=True
    ):
        band = (2 * torch.finfo(kind).eps + sums * (terms + 1)) * magnitude
        assert one.shape == two.shape
        assert bool(((one.double() - two).abs() <= band).all())


@inside
@given(
    time=st.integers(1, 9),
    kernel=st.integers(1, 4),
    dilation=st.sampled_from(DILATIONS),
    causal=st.booleans(),
    packed=st.booleans(),
    strided=st.booleans(),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@settings(max_examples=EXAMPLES)
def test_values_and_gradients(**case: Any) -> None:
    compare(**case)


@inside
@given(time=st.integers(1, 7), kernel=st.integers(1, 4), dilation=st.sampled_from(DILATIONS), packed=st.booleans())
@settings(max_examples=EXAMPLES // 2)
def test_a_piece_that_continues_a_state(**case: Any) -> None:
    compare(continued=True, **case)


@inside
def test_channels_beyond_a_block_and_rows_beyond_a_bundle() -> None:
    compare(batch=3, time=5, kernel=2, dim=19, dilation=[1] * 9 + [2] * 10)


@inside
@pytest.mark.parametrize("batch, time", [(2, 0), (0, 3)])
def test_nothing_in_gives_nothing_out(batch: int, time: int) -> None:
    x, dilations = torch.randn(batch, time, 2, requires_grad=True), group_channels(3, 2, 3)
    weight, past = torch.randn(2, 3, requires_grad=True), torch.randn(batch, 12, requires_grad=True)
    placement = Placement(*(torch.zeros(batch, time, dtype=torch.int64) for _ in range(4)), False)
    position = torch.zeros(batch, dtype=torch.int64)
    y = ours.convolve(x, weight, None, dilations, past, position, placement, True)
    assert y.shape == (batch, time, 2)
    for tensor, grad in zip((x, weight, past), torch.autograd.grad(y.sum(), (x, weight, past)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@inside
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dilation, kernel", [([1] * 9 + [2] * 2, 3), (2, 1)])
def test_steps_are_those_of_the_plain_form(kind: torch.dtype, dilation: int | list[int], kernel: int) -> None:
    dim = 11
    dilations = group_channels(dilation, dim, kernel)
    weight, bias = torch.randn(dim, kernel).to(kind), torch.randn(dim)
    plain, own = empty_state(dilations, 2), empty_state(dilations, 2, dtype=kind)
    with torch.no_grad():
        # Channels of a wider tensor, as a split of a projection gives them.
        for x in torch.randn(6, 2, dim + 3).to(kind)[:, :, 3:]:
            wanted, plain = depthwise_conv_step(x.float(), weight.float(), bias, dilation=dilations, state=plain)
            found = step(x, weight, bias, dilations, own.past, plain.position - 1)
            torch.testing.assert_close(found.float(), wanted, rtol=2 * torch.finfo(kind).eps, atol=1e-5)
            assert torch.equal(own.past.float(), plain.past)
    if kernel > 1:
        arguments = (x, weight, bias, own.past, plain.position, [0, 9, 11], [1, 2])
        torch.library.opcheck(step_operator, arguments, test_utils=("test_schema", "test_faketensor"))


@outside
def test_a_step_goes_this_way_on_a_gpu_without_gradients() -> None:
    def like(device: str, *, needs: bool = False, taps: int = 3) -> Any:
        return SimpleNamespace(device=torch.device(device), requires_grad=needs, shape=(2, taps))

    gpu = like("cuda")
    assert step_available(gpu, gpu, gpu)
    assert not step_available(like("cpu"), gpu, gpu)
    assert not step_available(gpu, like("cuda", taps=65), gpu)
    assert not step_available(gpu, like("cuda", needs=True), gpu)
    with torch.no_grad():
        assert step_available(gpu, like("cuda", needs=True), gpu)


@inside
def test_the_result_is_the_same_every_time() -> None:
    x, weight = torch.randn(2, 14, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    placement = place_piece(2, 14, x.device, None, None, None)

    def run() -> tuple[Tensor, ...]:
        y = ours.convolve(x, weight, None, group_channels(2, 3, 3), None, None, placement, True)
        return (y, *torch.autograd.grad(y.square().sum(), (x, weight)))

    assert all(torch.equal(one, two) for one, two in zip(run(), run(), strict=True))


@inside
def test_the_operator_keeps_the_rules_of_torch() -> None:
    x, weight = torch.randn(1, 4, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    bias, past = torch.randn(2, requires_grad=True), torch.randn(1, 2, requires_grad=True)
    runs = torch.tensor([[0, 0, 1, 1]])
    for rest in ((None, None, None, None), (bias, past, torch.tensor([5]), runs)):
        torch.library.opcheck(ours.depthwise_conv, (x, weight, *rest, [0, 2], [1], True))


@inside
def test_compiled_as_one_graph() -> None:
    dilations = group_channels([1, 2], 2, 3)
    x, weight = torch.randn(1, 5, 2), torch.randn(2, 3)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        placement = place_piece(1, 5, x.device, None, None, None)
        return ours.convolve(x, weight, None, dilations, None, None, placement, True) * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results)


@inside
def test_by_its_name_with_any_order_of_dilations_pieces_and_documents() -> None:
    x, weight, bias = torch.randn(2, 9, 4), torch.randn(4, 3), torch.randn(4)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5] * 9])
    whole, _ = depthwise_conv(x, weight, bias, dilation=[2, 1, 2, 1], document_ids=ids, implementation="reference")
    state, pieces = None, []
    for part in (slice(0, 5), slice(5, 9)):
        options = {"dilation": [2, 1, 2, 1], "document_ids": ids[:, part], "implementation": "triton"}
        y, state = depthwise_conv(x[:, part], weight, bias, state=state, **options)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


POINTERS = {
    "position": "*i64",
    "runs": "*i64",
    "table": "*i64",
    "weight": "*fp32",
    "bias": "*fp32",
    "parts": "*fp32",
    "x": "*bf16",
    "y": "*bf16",
    "source": "*bf16",
    "past": "*bf16",
    "grad": "*bf16",
    "out": "*bf16",
}


def compile_for(
    architecture: int, program: str, warps: int, constants: dict[str, Any], module: str = "triton_programs"
) -> Any:
    """The program as machine code for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile  # noqa: A004

    function = getattr(importlib.import_module(f"seqmix.kernels.depthwise_conv.{module}"), program)
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names}
    aligned = {"dim", "time", *POINTERS, *(name for name in names if name.startswith("stride"))}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    return compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})


@outside
@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("is_full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_programs_compile_for_gpus(
    architecture: int, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton.language as tl

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = {"K": 4, "KC": 4, "ALIGNMENT": 64, "CAUSAL": True, "SUM": tl.float32}
    shape |= {"HAS_PAST": is_full, "PACKED": is_full}
    forward = compile_for(
        architecture, "convolve", 4, shape | {"R": 16, "PART": 16, "BD": 256, "TASK": 0, "HAS_BIAS": is_full}
    )
    # Two numbers of 16 bits at once, nothing kept in local memory, and no product left apart from its sum.
    assert "ld.global.b32" in forward.asm["ptx"]
    assert "st.global.b32" in forward.asm["ptx"]
    assert "mul.f32" not in forward.asm["ptx"]
    step_shape = {"K": 4, "BD": 64, "ALIGNMENT": 64, "HAS_BIAS": True, "SUM": tl.float32}
    one_step = compile_for(architecture, "step", 1, step_shape, "triton_step_program")
    assert ".local" not in one_step.asm["ptx"]
    gradient = compile_for(architecture, "weight_gradient", 4, shape | {"R": 16, "PART": 16, "S": 4, "BD": 64})
    for one in (forward, gradient):
        assert ".local" not in one.asm["ptx"]
        assert "red.global" not in one.asm["ptx"]
        assert "atom.global" not in one.asm["ptx"]
