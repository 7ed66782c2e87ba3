"""The step program and the ONNX files made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lowerable import LOWERABLE, OTHERS

import seqmix
from seqmix.errors import InputError, SeqmixError
from seqmix.export import lower
from seqmix.export import onnx as export_module
from seqmix.export.graph import NBITS_BLOCK, build_graph
from seqmix.export.int8 import packed_blocks, to_int8
from seqmix.export.lowering import CannotLowerError
from seqmix.export.onnx import empty_states, export_onnx, run_step, standalone_graph
from seqmix.export.program import Embed, Linear, Program, Span, inputs_of
from seqmix.models import SeqmixForCausalLM

FLOAT32_ROUNDING = 2.0**-24


def tiny(name: str, **options: object) -> SeqmixForCausalLM:
    size = {"hidden_size": 20, "num_hidden_layers": 3}
    return seqmix.create_model(name, vocab_size=31, context=48, **size, **options).eval()


def open_file(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("preset", LOWERABLE)
def test_the_file_steps_as_the_model(preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    session = open_file(path)
    states, state = empty_states(session), model.init_state(1)
    wide = SeqmixForCausalLM(model.config).double().eval()
    wide.load_state_dict(model.state_dict())
    exact_state = wide.init_state(1)
    # Each operation of the step rounds once.
    roundings = len(lower(model).operations)
    for position, token in enumerate(np.random.default_rng(0).integers(31, size=60).tolist()):
        found, states = run_step(session, token, position, states)
        with torch.inference_mode():
            logits, state = model.step(torch.tensor([token]), state)
            exact, exact_state = wide.step(torch.tensor([token]), exact_state)
        right = exact[0].numpy()
        # As near to float64 as torch's float32 within a factor of two, and the roundings of the largest logit.
        band = 2 * np.abs(logits[0].numpy() - right).max() + roundings * FLOAT32_ROUNDING * np.abs(right).max()
        assert np.abs(found - right).max() <= band, f"position {position}"


@pytest.mark.parametrize("preset", LOWERABLE)
def test_states_are_named_and_as_small_as_the_models_own(preset: str) -> None:
    model = tiny(preset)
    graph = standalone_graph(model)
    onnx.checker.check_model(graph, full_check=True)
    inputs = {entry.name for entry in graph.graph.input} - {"token", "position"}
    outputs = {entry.name for entry in graph.graph.output} - {"logits"}
    assert outputs == {f"{name}.new" for name in inputs}
    states = empty_states(onnxruntime.InferenceSession(graph.SerializeToString()))
    assert states.keys() == inputs
    own = model.init_state(1)
    bookkeeping = 16 * (1 + len(own.layers))
    if not any(layer.get("name") == "attention" for layer in model.config.mixers or ()):
        assert sum(state.nbytes for state in states.values()) == own.nbytes - bookkeeping


def test_the_graph_of_the_engine_leaves_rings_outside() -> None:
    program = lower(tiny("convsamba"))
    graph = build_graph(program)
    sizes = {entry.name: entry.type.tensor_type.shape.dim for entry in graph.graph.input}
    assert all(len(shape) == 1 or shape[1].dim_value <= 20 for shape in sizes.values())
    assert {ring.name + ".sums" for ring in program.rings} <= sizes.keys()


@pytest.mark.parametrize("preset", LOWERABLE)
def test_programs_write_before_they_read_and_nothing_twice(preset: str) -> None:
    program = lower(tiny(preset))
    written = {memory.name for memory in program.memories}
    for operation in program.operations:
        assert all(span.vector in written for span in inputs_of(operation))
        assert operation.out.vector not in written
        assert operation.out.first == 0
        written.add(operation.out.vector)
    assert program.logits.width == program.vocab_size


@pytest.mark.parametrize("preset", OTHERS)
def test_what_has_no_operations_says_which_engine_runs_it(preset: str) -> None:
    with pytest.raises(CannotLowerError, match=r"engine torch|torch engine"):
        lower(tiny(preset))


def product(weight: torch.Tensor, x: np.ndarray, *, int8: bool) -> np.ndarray:
    """weight times x by ONNX Runtime, through a program of two operations: x is a row of the embedding."""
    row = Embed(out=Span("x", 0, len(x)), table=torch.from_numpy(x)[None])
    linear = Linear(out=Span("y", 0, len(weight)), x=row.out, weight=weight, bias=None, add=None)
    program = Program(
        vocab_size=len(weight),
        operations=(row, linear),
        logits=linear.out,
        rings=(),
        caches=(),
        memories=(),
        angles=(),
    )
    session = onnxruntime.InferenceSession(build_graph(program, int8=int8).SerializeToString())
    return session.run(["logits"], {"token": np.zeros(1, np.int64)})[0][0]


@pytest.mark.parametrize("width", [1, 16, 63, 64, 130])
def test_int8_products_err_as_their_roundings_allow(width: int) -> None:
    weight = torch.randn(17, width) * torch.logspace(-2, 2, 17)[:, None]
    x = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    values, scales = to_int8(weight)
    rounded = values.double().numpy() * scales.double().numpy()[:, None]
    # The runtime rounds x to int8 in blocks: by half a step of 1/127 of the block's largest number.
    padded = np.pad(x, (0, -width % NBITS_BLOCK)).reshape(-1, NBITS_BLOCK)
    step = np.repeat(np.abs(padded).max(axis=1) / 127, NBITS_BLOCK)[:width]
    bound = np.abs(rounded) @ (step / 2) + (width + 8) * FLOAT32_ROUNDING * (np.abs(rounded) @ np.abs(x))
    assert (np.abs(product(weight, x, int8=True) - rounded @ x) <= 1.001 * bound).all()
    exact = weight.double().numpy() @ x
    size = np.abs(weight.double().numpy()) @ np.abs(x)
    assert (np.abs(product(weight, x, int8=False) - exact) <= (width + 2) * FLOAT32_ROUNDING * size).all()


def test_blocks_hold_the_int8_values() -> None:
    weight = torch.randn(3, 70)
    values, scales = packed_blocks(weight, 32)
    assert values.shape == (3, 3, 32)
    right, per_row = to_int8(weight)
    stored = values.reshape(3, 96)[:, :70].astype(np.int64) - 128
    assert np.array_equal(stored, right.numpy())
    assert np.array_equal(scales, np.repeat(per_row.numpy(), 3))
    assert (values.reshape(3, 96)[:, 70:] == 128).all()


def test_int8_files(tmp_path: Path) -> None:
    model = tiny("gated_conv")
    export_onnx(model, tmp_path / "int8.onnx", weights="int8")
    session = open_file(tmp_path / "int8.onnx")
    found, _ = run_step(session, 3, 0, empty_states(session))
    with torch.inference_mode():
        right = model.step(torch.tensor([3]), model.init_state(1))[0][0].numpy()
    assert 0 < np.abs(found - right).max() <= 0.05 * np.abs(right).max()


def test_a_file_that_differs_from_torch_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny("gated_conv"), tiny("gated_conv")
    graph = standalone_graph(other)
    monkeypatch.setattr(export_module, "standalone_graph", lambda *_: graph)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"as before")
    with pytest.raises(SeqmixError, match="differs from torch"):
        export_onnx(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"as before"


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown weight type of an ONNX file 'bf16'"):
        export_onnx(tiny("gated_conv"), tmp_path / "x.onnx", weights="bf16")
    with pytest.raises(InputError, match="Pool cannot be exported"):
        export_onnx(tiny("gated_conv", mixers=[{"name": "pool"}]), tmp_path / "x.onnx")
    with pytest.raises(SeqmixError, match="cannot be written"):
        export_onnx(tiny("gated_conv"), tmp_path / "missing" / "x.onnx")
