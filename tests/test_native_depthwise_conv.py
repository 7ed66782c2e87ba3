"""The depthwise convolution in C++ against the reference in float64: values, gradients, states, documents and gates.

A float32 sum of n products rounds by at most n * eps times the sum of their magnitudes; the bands below are that,
with the magnitudes taken from the reference run on absolute values.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import depthwise_conv, library
from seqmix.kernels.depthwise_conv import (
    DepthwiseConvState,
    gated_depthwise_conv,
    group_channels,
    swiglu_depthwise_conv,
)

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(library.why_missing()))

EPS = torch.finfo(torch.float32).eps
CASES = {
    "batch": st.integers(1, 3),
    "time": st.integers(1, 150),
    "dim": st.integers(1, 40),
    "kernel": st.integers(1, 37),
    "dilation": st.sampled_from([1, 2, 3, 7, 64, 1000, "by channel"]),
    "causal": st.booleans(),
    "share": st.sampled_from([None, 0.02, 0.4]),
    "seed": st.integers(0, 10_000),
}


def dilations_of(dilation: int | str, dim: int) -> list[int]:
    """One dilation for all channels, or 1, 2, 4, 8 for neighbouring quarters of them."""
    return [dilation] * dim if isinstance(dilation, int) else [2 ** (4 * channel // dim) for channel in range(dim)]


def documents_of(batch: int, time: int, share: float | None, seed: int) -> Tensor | None:
    if share is None:
        return None
    return (torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < share).cumsum(dim=1)


def reference(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return depthwise_conv(x, weight, bias, implementation="reference", **options)[0]


def magnitude(terms: int, *factors: Tensor) -> Tensor:
    """The rounding band of a sum of `terms` products of numbers as large as the largest of each factor."""
    band = 4 * EPS * terms
    for factor in factors:
        band = band * factor.detach().abs().max().clamp(min=1e-6)
    return torch.as_tensor(band)


def assert_within(found: Tensor, expected: Tensor, band: Tensor) -> None:
    difference = (found.double() - expected.double()).abs().max()
    assert difference <= band, f"differs by {difference:.3e}, the rounding band is {band:.3e}"


@given(**CASES)
@settings(max_examples=50)
def test_values_and_gradients_are_those_of_the_reference(
    batch: int, time: int, dim: int, kernel: int, dilation: Any, causal: bool, share: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    options = {
        "dilation": dilations_of(dilation, dim),
        "causal": causal,
        "document_ids": documents_of(batch, time, share, seed),
    }
    inputs = [torch.randn(batch, time, dim), torch.randn(dim, kernel), torch.randn(dim)]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    found = depthwise_conv(*leaves, implementation="native", **options)[0]
    expected = reference(*wide, **options)
    assert_within(found, expected, magnitude(kernel + 1, inputs[0], inputs[1]))
    grad = torch.randn(batch, time, dim)
    grads = torch.autograd.grad(found, leaves, grad)
    wide_grads = torch.autograd.grad(expected, wide, grad.double())
    bands = (
        magnitude(kernel, grad, inputs[1]),
        magnitude(batch * time, grad, inputs[0]),
        magnitude(batch * time, grad),
    )
    for own, theirs, band in zip(grads, wide_grads, bands, strict=True):
        assert_within(own, theirs, band)


@given(**{name: case for name, case in CASES.items() if name != "causal"}, first=st.integers(0, 80))
@settings(max_examples=30)
def test_pieces_and_their_states_equal_those_of_the_torch_form(
    batch: int, time: int, dim: int, kernel: int, dilation: Any, share: float | None, seed: int, first: int
) -> None:
    torch.manual_seed(seed)
    cut = min(first, time - 1)
    x, weight = torch.randn(batch, time, dim), torch.randn(dim, kernel)
    documents = documents_of(batch, time, share, seed)
    per_channel = dilations_of(dilation, dim)
    states: dict[str, DepthwiseConvState | None] = {"native": None, "torch": None}
    for begin, end in ((0, cut), (cut, time)):
        own = None if documents is None or begin == end else documents[:, begin:end]
        results = {}
        for name in states:
            results[name], states[name] = depthwise_conv(
                x[:, begin:end],
                weight,
                dilation=per_channel,
                state=states[name],
                document_ids=own,
                implementation=name,
            )
        assert_within(results["native"], results["torch"], magnitude(kernel, x, weight)) if end > begin else None
        for own_part, their_part in zip(states["native"], states["torch"], strict=True):
            assert torch.equal(own_part, their_part)


def test_gradients_flow_through_pieces() -> None:
    x, weight = torch.randn(2, 9, 5, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    grad = torch.randn(2, 9, 5)
    whole, _ = depthwise_conv(x, weight, dilation=2)
    expected = torch.autograd.grad(whole, (x, weight), grad)
    first, state = depthwise_conv(x[:, :4], weight, dilation=2, implementation="native")
    assert state is not None
    with pytest.raises(ValueError, match="detach the state"):
        depthwise_conv(x[:, 4:], weight, dilation=2, state=state, implementation="native")
    second, _ = depthwise_conv(x[:, 4:], weight, dilation=2, state=state)
    found = torch.autograd.grad(torch.cat([first, second], dim=1), (x, weight), grad)
    torch.testing.assert_close(found, expected)


def test_gradients_flow_through_the_state_of_a_product() -> None:
    projected = torch.randn(2, 9, 15, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    halves = []
    state = None
    for begin, end in ((0, 4), (4, 9)):
        y, state = gated_depthwise_conv(projected[:, begin:end], weight, dilation=[1, 1, 2, 2, 2], state=state)
        halves.append(y)
    whole = gated_depthwise_conv(projected, weight, dilation=[1, 1, 2, 2, 2])[0]
    grad = torch.randn(2, 9, 5)
    found = torch.autograd.grad(torch.cat(halves, dim=1), (projected, weight), grad)
    torch.testing.assert_close(found, torch.autograd.grad(whole, (projected, weight), grad))


@given(**CASES, with_past=st.booleans())
@settings(max_examples=30)
def test_gates_are_those_of_the_plain_products(
    batch: int,
    time: int,
    dim: int,
    kernel: int,
    dilation: Any,
    causal: bool,
    share: float | None,
    seed: int,
    with_past: bool,
) -> None:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"dilation": dilations_of(dilation, dim), "causal": causal}
    documents = documents_of(batch, time, share, seed)
    gates = (
        (gated_depthwise_conv, 1, lambda x, w, b, **o: x[0].chunk(3, -1)[1] * reference(_product(x[0]), w, b, **o)),
        (swiglu_depthwise_conv, 2, lambda x, w, b, **o: reference(x[0], w, b, **o) * _swiglu(x[1])),
    )
    for gate, count, plain in gates:
        widths = (3 * dim,) if count == 1 else (dim, 2 * dim)
        inputs = [torch.randn(batch, time, width) for width in widths]
        inputs += [torch.randn(dim, kernel), torch.randn(dim)]
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        wide = [tensor.double().requires_grad_() for tensor in inputs]
        states: tuple[Any, Any] = (None, None)
        if with_past and causal:
            position = torch.randint(0, 2000, (batch,))
            past = torch.randn(batch, group_channels(options["dilation"], dim, kernel).past_size)
            kept = (position, torch.zeros(batch, dtype=torch.int64))
            states = DepthwiseConvState(past, *kept), DepthwiseConvState(past.double(), *kept)
        found, after = gate(*leaves, state=states[0], document_ids=documents, **options)
        expected = plain(wide[:count], *wide[count:], state=states[1], document_ids=documents, **options)
        size = [tensor.abs().max().item() + 1 for tensor in inputs]
        largest = torch.tensor(max(size[:count]) ** 3 * size[-2])
        assert_within(found, expected, magnitude(kernel + 8, largest))
        grad = torch.randn(batch, time, dim)
        grads = torch.autograd.grad(found, leaves, grad)
        wide_grads = torch.autograd.grad(expected, wide, grad.double())
        terms = (*[kernel + 8] * count, batch * time + 8, batch * time + 8)
        for own, theirs, many in zip(grads, wide_grads, terms, strict=True):
            assert_within(own, theirs, magnitude(many + 1, largest, grad))
        assert (after is not None) == causal


def _product(projected: Tensor) -> Tensor:
    gate_in, _, value = projected.chunk(3, dim=-1)
    return gate_in * value


def _swiglu(gates: Tensor) -> Tensor:
    first, second = gates.chunk(2, dim=-1)
    return F.silu(first) * second


@pytest.mark.parametrize("dim", [3, 16, 37])
def test_bfloat16_sums_in_float32(dim: int) -> None:
    x, weight, bias = torch.randn(2, 70, dim), torch.randn(dim, 9), torch.randn(dim)
    low = [tensor.bfloat16().requires_grad_() for tensor in (x, weight, bias)]
    wide = [tensor.detach().double().requires_grad_() for tensor in low]
    found = depthwise_conv(*low, dilation=3, implementation="native")[0]
    assert found.dtype == torch.bfloat16
    expected = reference(*wide, dilation=3)
    # Of the rounding to bfloat16 at the end alone: half a unit in the last place of 8 bits.
    assert_within(found, expected, expected.abs().max() * 2**-8)
    assert torch.equal(found, found.detach().double().to(torch.bfloat16))
    grad = torch.randn(2, 70, dim).bfloat16()
    grads = torch.autograd.grad(found, low, grad)
    wide_grads = torch.autograd.grad(expected, wide, grad.double())
    for own, theirs in zip(grads, wide_grads, strict=True):
        assert own.dtype == torch.bfloat16
        assert_within(own, theirs, theirs.abs().max() * 2**-8)


def test_what_is_not_a_number_stays_in_its_channel_and_reach() -> None:
    x = torch.randn(1, 50, 20)
    x[0, 10, 3] = torch.nan
    y = depthwise_conv(x, torch.randn(20, 4), dilation=2, implementation="native")[0]
    bad = y.isnan().nonzero().tolist()
    assert bad == [[0, 10 + 2 * tap, 3] for tap in range(4)]


def test_strides_of_the_inputs_do_not_matter() -> None:
    weight = torch.randn(6, 5)
    for x in (
        torch.randn(2, 6, 33).transpose(1, 2),
        torch.randn(33, 2, 6).transpose(0, 1),
        torch.randn(2, 33, 18)[:, :, 6:12],
        torch.randn(2, 66, 6)[:, ::2],
        torch.randn(1, 33, 6).expand(4, 33, 6),
    ):
        found = depthwise_conv(x, weight, dilation=2, implementation="native")[0]
        assert torch.equal(found, depthwise_conv(x.contiguous(), weight, dilation=2, implementation="native")[0])


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    x, weight = torch.randn(3, 300, 40), torch.randn(40, 8)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(depthwise_conv(x, weight, dilation=3, implementation="native")[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("time", [0, 1])
def test_no_time_and_little_time(time: int) -> None:
    x, weight = torch.randn(2, time, 5), torch.randn(5, 3)
    y, state = depthwise_conv(x, weight)
    assert y.shape == x.shape
    assert state is not None
    assert state.position.tolist() == [time, time]
    again, kept = depthwise_conv(x[:, :0], weight, state=state)
    assert again.shape == (2, 0, 5)
    assert kept is not None
    assert all(torch.equal(a, b) for a, b in zip(kept, state, strict=True))
    gated, _ = gated_depthwise_conv(torch.randn(2, time, 15), weight)
    assert gated.shape == (2, time, 5)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one channel and one tap"):
        depthwise_conv(torch.randn(2, 4, 0), torch.randn(0, 3))
    with pytest.raises(ValueError, match="at least one channel and one tap"):
        depthwise_conv(torch.randn(2, 4, 3), torch.randn(3, 0))


def test_a_type_that_it_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="takes float32 or bfloat16 on the CPU"):
        depthwise_conv(torch.randn(1, 4, 3).half(), torch.randn(3, 2).half(), implementation="native")


def test_torch_compile_keeps_it_as_one_operator() -> None:
    torch._dynamo.reset()
    weight = torch.randn(6, 4, requires_grad=True)

    def model(x: Tensor) -> Tensor:
        return depthwise_conv(torch.sin(x), weight, dilation=2, implementation="native")[0].cos()

    x = torch.randn(2, 11, 6, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    grads = torch.autograd.grad(compiled(x).sum(), (x, weight))
    torch.testing.assert_close(grads, torch.autograd.grad(model(x).sum(), (x, weight)))
    exported = torch.export.export(_Module(weight), (x,))
    assert "seqmix.depthwise_conv" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), _Module(weight)(x))


class _Module(torch.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, implementation="native")[0]


def test_operators_are_well_formed() -> None:
    from seqmix.kernels.depthwise_conv import native, native_gates

    table = native.table_of(group_channels([1, 1, 2], 3, 4), True)
    x = torch.randn(2, 9, 3, requires_grad=True)
    weight, bias = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    nothing = (None, None, None)
    torch.library.opcheck(native.depthwise_conv, (x, weight, bias, *nothing, table))
    torch.library.opcheck(native_gates.gated, (torch.randn(2, 9, 9, requires_grad=True), weight, bias, *nothing, table))
    torch.library.opcheck(
        native_gates.swiglu, (x, torch.randn(2, 9, 6, requires_grad=True), weight, None, *nothing, table)
    )


PROBE = """
import sys, torch
from seqmix.kernels import depthwise_conv, library
torch.manual_seed(0)
x, weight = torch.randn(2, 100, 21), torch.randn(21, 9)
y = depthwise_conv(x, weight, dilation=3, implementation="native")[0]
wide = depthwise_conv(x.double(), weight.double(), dilation=3)[0]
print(library.instruction_set(), float((y - wide).abs().max()))
"""


@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_every_instruction_set_of_the_processor_gives_the_reference(name: str) -> None:
    widest = library.library().seqmix_instruction_set().decode()
    if library.INSTRUCTION_SETS.index(name) > library.INSTRUCTION_SETS.index(widest):
        pytest.skip(f"this processor does not run {name}")
    found = _run_probe(SEQMIX_ISA=name)
    assert found.returncode == 0, found.stderr
    used, difference = found.stdout.split()
    assert used == name
    assert float(difference) <= 9 * EPS * 20


def test_an_unknown_instruction_set_is_refused() -> None:
    found = _run_probe(SEQMIX_ISA="avx9")
    assert "SEQMIX_ISA is 'avx9': this processor can run baseline" in found.stderr


def test_without_the_library_the_torch_form_runs_and_says_so_once() -> None:
    script = PROBE.replace(', implementation="native"', "")
    script = script.replace("library.instruction_set()", "library.why_missing()")
    found = _run_probe(script, SEQMIX_LIBRARY="nowhere.so")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("the CPU kernels were not compiled: install a C++ compiler")
    assert found.stderr.count("run several times slower") == 1
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_library_of_other_sources_is_not_called(tmp_path: Path) -> None:
    source = Path(library.__file__).with_name("native") / "processor.cpp"
    flags = ["-shared", "-fPIC", "-std=c++17", '-DSEQMIX_SOURCES="others"']
    old = tmp_path / "old.so"
    subprocess.run(["c++", *flags, str(source), "-o", str(old)], check=True, timeout=120)
    found = _run_probe("from seqmix.kernels import library; print(library.why_missing())", SEQMIX_LIBRARY=str(old))
    assert found.stdout.strip() == (
        f"the CPU kernels at {old} are not made of the sources beside them: run `make native`"
    )


def _run_probe(script: str = PROBE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
