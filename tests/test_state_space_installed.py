"""The scan through other packages' kernels: what they are asked for, checked by stand-ins that do the mathematics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from seqmix.kernels.state_space import installed, reference, state_space_scan

BATCH, HEADS, WIDTH, GROUPS, SIZE = 2, 4, 3, 2, 5


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """The signature and the rules of mamba_ssm 2.x, as its documentation gives them."""
    assert chunk_size & (chunk_size - 1) == 0
    assert return_final_states
    assert seq_idx is None or seq_idx.dtype == torch.int32
    assert D is not None
    if initial_states is None:
        initial_states = x.new_zeros(len(x), *x.shape[2:], B.shape[3])
    return reference.scan(x, dt, A, B, C, D, initial_states, seq_idx, chunk_size)


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The signature and the rules of fla.ops.simple_gla, sequence by sequence and position by position."""
    assert q.shape == k.shape
    assert g is not None
    if cu_seqlens is None:
        sequences = [(row, slice(None)) for row in range(len(q))]
    else:
        assert len(q) == 1, "packed sequences stand in one row"
        ends = cu_seqlens.tolist()
        sequences = [(0, slice(a, b)) for a, b in itertools.pairwise(ends)]
    shape = (len(sequences), q.shape[2], q.shape[3], v.shape[3])
    assert initial_state is None or initial_state.shape == shape
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, states = torch.zeros_like(v), []
    for number, (row, part) in enumerate(sequences):
        h = torch.zeros(shape[1:], dtype=v.dtype) if initial_state is None else initial_state[number]
        outputs = []
        for q_t, k_t, v_t, g_t in zip(q[row, part], k[row, part], v[row, part], g[row, part], strict=True):
            h = g_t.exp()[:, None, None] * h + k_t[:, :, None] * v_t[:, None, :]
            outputs.append(scale * (q_t[:, :, None] * h).sum(1))
        o = o.index_put((torch.tensor(row), torch.arange(v.shape[1])[part]), torch.stack(outputs).to(v.dtype))
        states.append(h)
    return o, torch.stack(states)


STAND_INS: dict[str, Callable[..., Any]] = {"mamba_ssm": mamba_chunk_scan_combined, "fla": chunk_simple_gla}


def inputs(time: int, kind: torch.dtype = torch.float64) -> list[Tensor]:
    x, B, C = (torch.randn(BATCH, time, *rest).to(kind) for rest in ((HEADS, WIDTH), (GROUPS, SIZE), (GROUPS, SIZE)))
    dt = torch.rand(BATCH, time, HEADS, dtype=torch.float64)
    return [x, dt, -torch.rand(HEADS, dtype=torch.float64), B, C, torch.randn(HEADS, dtype=torch.float64)]


@pytest.mark.parametrize("name", installed.KERNELS)
@pytest.mark.parametrize("is_continued", [False, True])
@pytest.mark.parametrize("packing", ["one document", "documents", "a new document at once"])
def test_values_states_and_gradients_are_those_of_the_loop(
    name: str, is_continued: bool, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "kernel", STAND_INS.get)
    tensors = inputs(7)
    state = torch.randn(BATCH, HEADS, WIDTH, SIZE, dtype=torch.float64)
    runs = None
    if packing != "one document":
        first = [0, 0, 1, 1, 1, 2, 2] if packing == "documents" else [1, 1, 2, 2, 2, 2, 3]
        runs = torch.tensor([first, [0, 0, 0, 0, 1, 1, 1]])
    results = []
    for implementation in ("reference", name):
        leaves = [tensor.clone().requires_grad_() for tensor in (*tensors, state)]
        before = leaves[6] if is_continued else None
        y, after = state_space_scan(*leaves[:6], state=before, runs=runs, implementation=implementation)
        grads = torch.autograd.grad((y * y.detach().cos()).sum() + after.square().sum(), leaves, allow_unused=True)
        results.append([y, after, *grads[: 7 if is_continued else 6]])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", installed.KERNELS)
def test_sixteen_bits_stay_so_and_the_state_is_wide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def spy(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        asked.extend(arguments[:5])
        return STAND_INS[name](*arguments, **options)

    monkeypatch.setattr(installed, "kernel", {name: spy}.get)
    x, dt, A, B, C, D = inputs(4, torch.bfloat16)
    # The steps come in float32 from the model, B and C may under autocast.
    y, after = state_space_scan(x, dt.float(), A.float(), B.float(), C, D.float(), implementation=name)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    products = (asked[0], asked[3], asked[4]) if name == "mamba_ssm" else asked[:3]
    assert {tensor.dtype for tensor in products} == {torch.bfloat16}


def like(device: str, kind: torch.dtype) -> Any:
    return SimpleNamespace(device=torch.device(device), element_size=lambda: torch.empty(0, dtype=kind).element_size())


def test_they_are_taken_on_a_gpu_for_16_bits_and_where_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = dict(STAND_INS)
    monkeypatch.setattr(installed, "kernel", there.get)
    assert installed.choose(like("cuda", torch.bfloat16)) == "mamba_ssm"
    assert installed.choose(like("cuda", torch.float32)) is None
    assert installed.choose(like("cpu", torch.bfloat16)) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert installed.choose(like("cuda", torch.bfloat16)) is None
    monkeypatch.undo()
    del there["mamba_ssm"]
    monkeypatch.setattr(installed, "kernel", there.get)
    assert installed.choose(like("cuda", torch.float16)) == "fla"
    there.clear()
    assert installed.choose(like("cuda", torch.bfloat16)) is None


def test_a_package_that_is_missing_or_broken_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed.KERNELS, "broken", ("seqmix.errors", "no_such_kernel"))
    monkeypatch.setitem(installed.KERNELS, "missing", ("no_such_package.ops", "kernel"))
    for name in ("broken", "missing"):
        assert installed.kernel(name) is None
        with pytest.raises(ValueError, match=f"implementation '{name}' needs a package that cannot be imported here"):
            state_space_scan(*inputs(3), implementation=name)
    installed.kernel.cache_clear()
