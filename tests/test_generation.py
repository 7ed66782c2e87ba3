"""Engines against the model's own step, their states, and the text that comes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowerable import LOWERABLE

import seqmix
from seqmix.data.token_store import memory_store
from seqmix.data.tokenizers import byte_tokenizer, train_bpe
from seqmix.errors import InputError
from seqmix.evaluation import evaluate
from seqmix.export.int8 import to_int8
from seqmix.export.lowering import lower
from seqmix.generation import (
    ENGINES,
    Engine,
    Sampler,
    SamplingConfig,
    create_engine,
    fastest_engine,
    generate,
    text_stream,
)
from seqmix.generation import states as states_module
from seqmix.generation.native_engine import NativeEngine
from seqmix.generation.onnx_engine import OnnxEngine
from seqmix.generation.precision import measure_loss
from seqmix.generation.rings import CompiledRings
from seqmix.generation.states import StepStates, from_bfloat16, to_bfloat16
from seqmix.generation.text import AnyStream
from seqmix.generation.weights import round_matrix, rounded_weights
from seqmix.kernels.library import library, why_missing
from seqmix.mixers.attention.slots import SlotState
from seqmix.models import ModelState, SeqmixForCausalLM

FLOAT32_ROUNDING, BFLOAT16_ROUNDING = 2.0**-24, 2.0**-8
needs_native = pytest.mark.skipif(library() is None, reason=why_missing() or "")
engines = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_native if name == "native" else ()) for name in ENGINES]
)
compiled_engines = pytest.mark.parametrize(
    "kind", [OnnxEngine, pytest.param(NativeEngine, marks=needs_native)], ids=("onnx", "native")
)


GROWING = [
    name
    for name in LOWERABLE
    if any(
        mixer["name"] == "attention" and "window" not in mixer
        for mixer in seqmix.models.preset(name).build(16, 8, 64)["mixers"]
    )
]
"""The presets whose state grows with every token."""


def tiny(name: str, **options: object) -> SeqmixForCausalLM:
    """A model of a preset with odd widths, so that no kernel gets whole vectors only."""
    size = {"hidden_size": 22 if name != "mamba2" else 20, "num_hidden_layers": 3}
    model = seqmix.create_model(name, vocab_size=37, context=64, **size, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(37, size=count).tolist()


@torch.inference_mode()
def exact_logits(model: SeqmixForCausalLM, tokens: list[int], state: ModelState | None = None) -> list[np.ndarray]:
    """Logits after each token, by the model's step in float64."""
    wide = seqmix.models.SeqmixForCausalLM(model.config).double().eval()
    wide.load_state_dict(model.state_dict())
    state = wide.init_state(1) if state is None else state.clone().to(torch.float64)
    found = []
    for token in tokens:
        logits, state = wide.step(torch.tensor([token]), state)
        found.append(logits[0].numpy())
    return found


@torch.inference_mode()
def torch_logits(model: SeqmixForCausalLM, tokens: list[int], state: ModelState | None = None) -> list[np.ndarray]:
    state = model.init_state(1) if state is None else state.clone()
    found = []
    for token in tokens:
        logits, state = model.step(torch.tensor([token]), state)
        found.append(logits[0].numpy())
    return found


def assert_equal_up_to_rounding(found: list[np.ndarray], same: list[np.ndarray], exact: list[np.ndarray]) -> None:
    """As near to float64 as torch's own float32 within a factor of two, and a few roundings of the largest logit."""
    for position, (mine, theirs, right) in enumerate(zip(found, same, exact, strict=True)):
        band = 2 * np.abs(theirs - right).max() + 16 * FLOAT32_ROUNDING * np.abs(right).max()
        assert np.abs(mine - right).max() <= band, f"position {position}"


@engines
@pytest.mark.parametrize("preset", LOWERABLE)
def test_steps_equal_the_models_own(preset: str, name: str) -> None:
    model = tiny(preset)
    tokens = tokens_of(70)
    engine = create_engine(name, model, threads=1)
    found = [engine.step(token).copy() for token in tokens]
    assert engine.position == len(tokens)
    assert_equal_up_to_rounding(found, torch_logits(model, tokens), exact_logits(model, tokens))


@engines
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("convsamba", {"norm_position": "post", "feed_forward": 17}),
        ("transformer", {"mixers": [{"name": "attention", "heads": 2, "kv_heads": 1, "bias": True, "head_dim": 9}]}),
        ("transformer", {"mixers": [{"name": "attention", "heads": 2, "rope": False, "window": 1}]}),
        ("mamba2", {"mixers": [{"name": "mamba2", "groups": 2, "state_size": 5, "head_dim": 10, "bias": True}]}),
        ("mamba2", {"mixers": [{"name": "mamba2", "state_size": 19, "conv_kernel": 1, "dt_limit": (0.01, 0.05)}]}),
        ("lstm", {"mixers": [{"name": "lstm", "hidden": 9}, {"name": "lstm", "bias": False}]}),
        ("gated_conv", {"mixers": [{"name": "depthwise_conv", "heads": 3, "dilation": (5, 1)}], "norm": "layer"}),
        ("gated_conv", {"mixers": [{"name": "gated_conv", "bias": True, "kernel": 2}], "tie_word_embeddings": False}),
    ],
)
def test_options_of_mixers_and_blocks(preset: str, options: dict, name: str) -> None:
    model = tiny(preset, **options)
    tokens = tokens_of(24)
    engine = create_engine(name, model, threads=1)
    found = [engine.step(token).copy() for token in tokens]
    assert_equal_up_to_rounding(found, torch_logits(model, tokens), exact_logits(model, tokens))


@engines
@pytest.mark.parametrize("preset", LOWERABLE)
def test_a_prompt_a_branch_and_a_reset(preset: str, name: str) -> None:
    model = tiny(preset)
    prompt, more, other = tokens_of(41), tokens_of(9, seed=1), tokens_of(9, seed=2)
    engine = create_engine(name, model, threads=1)
    engine.prefill(prompt[:13])
    last = engine.prefill(prompt[13:]).copy()
    exact, same = exact_logits(model, prompt + more), torch_logits(model, prompt + more)
    at = len(prompt)
    assert_equal_up_to_rounding([last], [same[at - 1]], [exact[at - 1]])
    branch = engine.branch()
    for token in other:
        branch.step(token)
    assert_equal_up_to_rounding([engine.step(token).copy() for token in more], same[at:], exact[at:])
    assert branch.position == engine.position == at + len(more)
    engine.reset()
    assert engine.position == 0
    assert_equal_up_to_rounding([engine.step(prompt[0])], same[:1], exact[:1])


@engines
@pytest.mark.parametrize("preset", LOWERABLE)
def test_the_state_goes_to_torch_and_back(preset: str, name: str) -> None:
    model = tiny(preset)
    tokens, more = tokens_of(37), tokens_of(6, seed=1)
    engine = create_engine(name, model, threads=1)
    engine.prefill(tokens)
    engine.step(3)
    state = engine.state()
    exact, same = exact_logits(model, more, state), torch_logits(model, more, state)
    assert_equal_up_to_rounding([engine.step(token).copy() for token in more], same, exact)
    engine.load_state(state)
    again = engine.state()
    assert again.position.tolist() == [38]
    for mine, theirs in zip(again.layers, state.layers, strict=True):
        for field in dataclasses.fields(mine):
            mine_value, their_value = getattr(mine, field.name), getattr(theirs, field.name)
            if isinstance(mine_value, torch.Tensor):
                assert torch.equal(mine_value, their_value), field.name
            elif field.name == "stored":
                assert all(
                    torch.equal(a[:, :, :38], b[:, :, :38]) for a, b in zip(mine_value, their_value, strict=True)
                )


@engines
@pytest.mark.parametrize("preset", [name for name in LOWERABLE if name not in GROWING])
def test_a_million_positions_in(preset: str, name: str) -> None:
    model = tiny(preset)
    with torch.inference_mode():
        _, state = model.prefill(torch.tensor([tokens_of(64)]))
    far = torch.tensor([1_000_000])

    def moved(layer: object) -> object:
        bounds = {"shortest": 1_000_000, "longest": 1_000_000} if isinstance(layer, SlotState) else {}
        return dataclasses.replace(layer, position=far.clone(), **bounds)  # type: ignore[type-var]

    state = dataclasses.replace(state, position=far.clone(), layers=tuple(moved(layer) for layer in state.layers))
    tokens = tokens_of(5, seed=3)
    engine = create_engine(name, model, threads=1)
    engine.load_state(state)
    size = engine.state_bytes
    found = [engine.step(token).copy() for token in tokens]
    assert_equal_up_to_rounding(found, torch_logits(model, tokens, state), exact_logits(model, tokens, state))
    assert engine.position == 1_000_005
    assert engine.state_bytes == size


@compiled_engines
def test_a_cache_grows_in_pieces(kind: type[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "SLOTS_AT_ONCE", 4)
    model = tiny("convtransformer")
    tokens = tokens_of(40)
    engine = kind(model)
    found, sizes = [], set()
    for token in tokens:
        found.append(engine.step(token).copy())
        sizes.add(engine.state_bytes)
    assert_equal_up_to_rounding(found, torch_logits(model, tokens), exact_logits(model, tokens))
    assert 3 <= len(sizes) <= 12


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("ring_type", ["f32", "bf16"])
def test_sums_over_rings(ring_type: str, compiled: bool) -> None:
    model = tiny("convsamba")
    program = lower(model)
    states = StepStates(program, ring_type)
    random = np.random.default_rng(0)
    history = [[] for _ in program.rings]
    sums = [np.zeros(ring.width, np.float32) for ring in program.rings]
    new = [np.zeros(ring.width, np.float32) for ring in program.rings]
    rings = CompiledRings(states, sums, new, threads=1) if compiled else None
    for position in range(90):
        if rings is not None:
            rings.sum(0, position)
        else:
            states.sum_rings(sums)
        for ring, found, past in zip(program.rings, sums, history, strict=True):
            assert ring.bias is not None
            taps, right = ring.taps.double().numpy(), ring.bias.double().numpy().copy()
            size = np.abs(right)
            for group in ring.dilations.groups:
                channels = slice(group.first, group.last)
                for tap in range(ring.dilations.kernel - 1):
                    at = position - (ring.dilations.kernel - 1 - tap) * group.dilation
                    if at >= 0:
                        term = taps[tap, channels] * past[at][channels]
                        right[channels] += term
                        size[channels] += np.abs(term)
            # Of bfloat16's 8 binary digits the last is off by half; each of up to K sums is rounded once.
            storage = BFLOAT16_ROUNDING if ring_type == "bf16" else 0
            assert (np.abs(found - right) <= (storage + 33 * FLOAT32_ROUNDING) * size).all()
        for inputs, past in zip(new, history, strict=True):
            inputs[:] = random.standard_normal(len(inputs))
            past.append(inputs.astype(np.float64))
        if rings is not None:
            rings.enter(0, position)
        else:
            states.enter_rings(new)
        states.position += 1
    half = StepStates(program, "bf16").nbytes
    assert half * 2 == StepStates(program, "f32").nbytes


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16_bits(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    assert np.array_equal(from_bfloat16(to_bfloat16(numbers)), torch.from_numpy(numbers).bfloat16().float().numpy())


@pytest.mark.parametrize("seed", range(3))
def test_rounded_matrices(seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(13, 29) * torch.logspace(-4, 4, 13)[:, None]
    weight[5] = 0
    values, scales = to_int8(weight)
    assert values.abs().max() == 127
    # Half a step of each row, and the rounding of the division.
    assert ((weight - values * scales[:, None]).abs() <= scales[:, None] * (0.5 + 127 * 2 * FLOAT32_ROUNDING)).all()
    assert ((weight - round_matrix(weight, "bf16")).abs() <= BFLOAT16_ROUNDING * weight.abs()).all()
    for kind in ("int8", "bf16"):
        once = round_matrix(weight, kind)
        torch.testing.assert_close(round_matrix(once, kind), once, rtol=4 * FLOAT32_ROUNDING, atol=0)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("preset", ["gated_conv", "mamba2", "lstm", "transformer"])
def test_smaller_weights_equal_the_rounded_model(preset: str, weights: str) -> None:
    model = tiny(preset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = rounded_weights(model, weights)  # type: ignore[arg-type]
    tokens = tokens_of(20)
    exact, same = exact_logits(rounded, tokens), torch_logits(rounded, tokens)
    names = ["torch"] if weights == "int8" else []
    for name in [*names, *(["native"] if library() is not None else [])]:
        engine = create_engine(name, model, weights=weights, threads=1)
        assert_equal_up_to_rounding([engine.step(token).copy() for token in tokens], same, exact)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in rounded.state_dict().items())


def test_torchs_bfloat16_takes_rounded_activations() -> None:
    """Each product then errs by at most 2^-7 of what it sums; a layer or two of that is far below 5 %."""
    model = tiny("gated_conv")
    tokens = tokens_of(20)
    engine = create_engine("torch", model, weights="bf16")
    for found, right in zip([engine.step(token) for token in tokens], torch_logits(model, tokens), strict=True):
        assert np.abs(found - right).max() <= 0.05 * np.abs(right).max()


@needs_native
def test_two_threads_give_the_same_numbers() -> None:
    for preset in ("convsamba", "mamba2", "transformer"):
        model = tiny(preset)
        one, two = NativeEngine(model, threads=1), NativeEngine(model, threads=2)
        for token in tokens_of(12):
            assert np.array_equal(one.step(token), two.step(token))


@engines
def test_bad_tokens(name: str) -> None:
    engine = create_engine(name, tiny("gated_conv"), threads=1)
    for tokens in ([], [3, 37], [-1, 2]):
        with pytest.raises(InputError):
            engine.prefill(tokens)
    for token in (-1, 37):
        with pytest.raises(InputError, match=f"token {token} is not one of the 37"):
            engine.step(token)
    assert engine.position == 0


def test_bad_engines() -> None:
    model = tiny("gated_conv")
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        create_engine("onxx", model)
    with pytest.raises(InputError, match="did you mean 'int8'"):
        create_engine("torch", model, weights="int4")
    with pytest.raises(InputError, match="threads is 0"):
        create_engine("torch", model, threads=0)
    with pytest.raises(InputError, match="choose int8, or the engine"):
        create_engine("onnx", model, weights="bf16")
    with pytest.raises(InputError, match="choose one of bf16, f32"):
        OnnxEngine(model, ring_type="bf8")
    pool = tiny("gated_conv", mixers=[{"name": "pool"}])
    with pytest.raises(InputError, match="Pool cannot be exported"):
        create_engine("onnx", pool)


def test_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmix.generation.native_engine.library", lambda: None)
    monkeypatch.setattr("seqmix.generation.native_engine.why_missing", lambda: "they were not compiled")
    with pytest.raises(InputError, match="they were not compiled, or choose"):
        create_engine("native", tiny("gated_conv"))
    monkeypatch.setattr("seqmix.generation.onnx_engine.library", lambda: None)
    model = tiny("convsamba_short")
    engine = OnnxEngine(model)
    tokens = tokens_of(20)
    found = [engine.step(token).copy() for token in tokens]
    assert_equal_up_to_rounding(found, torch_logits(model, tokens), exact_logits(model, tokens))


def draw(config: SamplingConfig, logits: np.ndarray, count: int) -> np.ndarray:
    sampler = Sampler(config)
    return np.array([sampler(logits) for _ in range(count)])


def test_sampling_follows_the_distribution() -> None:
    logits = np.array([0.0, 2.0, -1.0, 1.0, -np.inf], np.float32)
    count = 20_000
    for temperature in (0.5, 1.0, 2.0):
        right = np.exp(logits.astype(np.float64) / temperature)
        right /= right.sum()
        found = np.bincount(draw(SamplingConfig(temperature=temperature), logits, count), minlength=5) / count
        assert (np.abs(found - right) <= 5 * np.sqrt(right * (1 - right) / count)).all()


def test_top_k_and_top_p() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))

    def kept(**options: float) -> list[float]:
        return Sampler(SamplingConfig(**options)).probabilities(logits).round(6).tolist()  # type: ignore[arg-type]

    assert kept(top_k=2) == [0, round(4 / 7, 6), 0, round(3 / 7, 6)]
    assert kept(top_p=0.65) == [0, round(4 / 7, 6), 0, round(3 / 7, 6)]
    assert kept(top_p=0.75) == [0, round(4 / 9, 6), round(2 / 9, 6), round(3 / 9, 6)]
    assert kept(top_p=0.01) == [0, 1, 0, 0]
    assert kept(top_k=9, top_p=1.0) == kept()
    assert draw(SamplingConfig(temperature=0), logits, 3).tolist() == [1, 1, 1]
    assert draw(SamplingConfig(top_k=1), logits, 3).tolist() == [1, 1, 1]
    tied = np.zeros(4, np.float32)
    assert Sampler(SamplingConfig(top_k=2)).probabilities(tied).tolist() == [0.5, 0.5, 0, 0]


def test_a_seed_decides() -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    first = draw(SamplingConfig(seed=1), logits, 30)
    assert np.array_equal(first, draw(SamplingConfig(seed=1), logits, 30))
    assert not np.array_equal(first, draw(SamplingConfig(seed=2), logits, 30))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_sampling(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SamplingConfig(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(temperature: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        Sampler(SamplingConfig(temperature=temperature))(np.array([0, np.nan], np.float32))


def test_a_very_low_temperature_is_greedy() -> None:
    assert draw(SamplingConfig(temperature=1e-300), np.array([1, 3, 2], np.float32), 5).tolist() == [1] * 5


class Scripted(Engine):
    """Logits that always point to the next token of a script."""

    name = "scripted"

    def __init__(self, script: list[int]) -> None:
        self.vocab_size, self._script, self._at = 37, script, 0

    position = property(lambda self: self._at)  # type: ignore[assignment]
    state_bytes = 0  # type: ignore[assignment]
    state: Callable  # type: ignore[assignment]

    def _logits(self) -> np.ndarray:
        logits = np.zeros(37, np.float32)
        logits[self._script[self._at]] = 1
        return logits

    def prefill(self, tokens: list[int]) -> np.ndarray:  # type: ignore[override]
        return self._logits()

    def step(self, token: int) -> np.ndarray:
        assert token == self._script[self._at]
        self._at += 1
        return self._logits()

    def reset(self) -> None:
        self._at = 0

    branch = state = load_state = reset  # type: ignore[assignment]


def test_generation_ends_at_an_end_token_or_the_limit() -> None:
    sampler = Sampler(SamplingConfig(temperature=0))
    shown: list[int] = []
    result = generate(Scripted([4, 5, 9, 6]), [1], 10, sampler, end_tokens={9}, show=shown.append)
    assert (result.tokens, result.stopped, result.prompt_tokens) == ([4, 5], True, 1)
    assert shown == [4, 5]
    result = generate(Scripted([4, 5, 6]), [1], 3, sampler)
    assert (result.tokens, result.stopped) == ([4, 5, 6], False)
    assert generate(Scripted([4]), [1], 0, sampler).tokens == []
    with pytest.raises(InputError, match="max_new_tokens is -1"):
        generate(Scripted([4]), [1], -1, sampler)


TOKENIZER = byte_tokenizer()
BPE = train_bpe(["the quick brown fox — über die Brücke, 日本語 🙂 "] * 20, 300)


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_no_character_is_shown_in_halves(content: bytes) -> None:
    stream = text_stream(TOKENIZER)
    pieces = [stream.add(byte) for byte in content]
    whole = content.decode("utf-8", "replace")
    assert "".join(pieces) + stream.finish() == whole
    # What was shown never changes later: every beginning of it is a beginning of the whole.
    assert whole.startswith("".join(pieces))


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_streams_give_the_text_back(text: str) -> None:
    ids = BPE.backend_tokenizer.encode(text, add_special_tokens=False).ids
    stream = text_stream(BPE)
    assert "".join(map(stream.add, ids)) + stream.finish() == text


def test_special_tokens_are_not_shown() -> None:
    stream = text_stream(TOKENIZER)
    assert "".join(map(stream.add, [104, 256, 105, 257])) + stream.finish() == "hi"


def test_tokenizers_that_are_not_byte_level() -> None:
    stream = AnyStream(BPE)
    text = "die Brücke 日本"
    ids = BPE.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(map(stream.add, ids)) + stream.finish() == text


def test_the_loss_of_an_engine_is_that_of_the_evaluation() -> None:
    model = seqmix.create_model("gated_conv", vocab_size=258, context=32, hidden_size=16, num_hidden_layers=2).eval()
    store = memory_store([b"first document", b"second", b"", b"the third one"], end_id=256)
    whole = measure_loss(create_engine("torch", model), store, 10_000)
    evaluated = evaluate(model, store, context=64, batch_size=1, device="cpu")
    assert whole.tokens == evaluated.tokens == len(store) - 1
    assert whole.bits_per_byte == pytest.approx(evaluated.bits_per_byte, rel=1e-5)
    part = measure_loss(create_engine("torch", model), store, 9)
    assert part.tokens == 9
    with pytest.raises(InputError, match="at most 0 of them"):
        measure_loss(create_engine("torch", model), store, 0)


def test_the_fastest_engine_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_engine(tiny("gated_conv", mixers=[{"name": "pool"}])).name == "torch"
    if library() is not None:
        assert fastest_engine(tiny("gated_conv"), weights="int8").name == "native"
    monkeypatch.setattr("seqmix.generation.native_engine.library", lambda: None)
    assert fastest_engine(tiny("gated_conv"), weights="bf16").name == "torch"
