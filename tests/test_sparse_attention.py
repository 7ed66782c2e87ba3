"""Attention on patterns of links: its tiles, states and bias against the written-out form, and oracles from elsewhere.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, K head width.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqmix import create_mixer
from seqmix.conformance import check_mixer
from seqmix.export.lowering import CannotLowerError, lower
from seqmix.flop_counter import FlopCounter
from seqmix.generation import create_engine
from seqmix.kernels.library import library, why_missing
from seqmix.mixers.attention import sparse
from seqmix.mixers.attention.attention import Attention
from seqmix.mixers.attention.flex import attend_by_blocks
from seqmix.mixers.attention.sparse import alibi_slopes, attend_by_links
from seqmix.mixers.attention.tile_layouts import Near
from seqmix.mixers.attention.tiled import mix_tiles
from seqmix.mixers.links.parts import Random
from seqmix.mixers.links.pattern import random
from seqmix.mixers.links.text import parse_pattern
from seqmix.models import SeqmixForCausalLM
from seqmix.models.config import SeqmixConfig

EPS = torch.finfo(torch.float32).eps
PATTERNS = [
    "window(70)",
    "window(20, dilation=3)",
    "window(2, block=16)",
    "window(9) | global_(3)",
    "window(9) | global_([5, 90]) | random(2, seed=4)",
    "bigbird(block=8)",
    "window(6, dilation=4) | window(5) | global_(1)",
    "random(1, block=20)",
]
HUGGING_FACE = 1e-6


def build(dim: int, dtype: torch.dtype = torch.float64, **options: Any) -> Attention:
    torch.manual_seed(0)
    mixer = create_mixer("attention", dim, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert isinstance(mixer, Attention)
    return mixer.to(dtype).eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def documents(batch: int, time: int) -> Tensor:
    """Ids of packed documents of many lengths, other ones in each row."""
    starts = torch.rand(batch, time, generator=torch.Generator().manual_seed(3)) < 0.04
    return starts.cumsum(dim=1)


def takes_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles at any length; otherwise they begin where they pay."""
    monkeypatch.setattr(sparse, "_pays", lambda pattern, q, causal: q.dtype != torch.float64)


def gradients(mixer: Attention, x: Tensor, cotangent: Tensor, ids: Tensor | None) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = mixer(leaf, document_ids=ids).y
    return [y, *torch.autograd.grad((y * cotangent).sum(), [leaf, *mixer.parameters()])]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("causal, packed", [(True, False), (True, True), (False, False), (False, True)])
@pytest.mark.parametrize("alibi", [False, True])
def test_tiles_equal_the_written_out_form(
    pattern: str, causal: bool, packed: bool, alibi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_tiles(monkeypatch)
    time = 150
    options = {"heads": 4, "kv_heads": 2, "pattern": pattern, "causal": causal, "alibi": alibi, "rope": not alibi}
    exact, single = build(12, **options), build(12, torch.float32, **options)
    x, cotangent = normal(2, time, 12), normal(2, time, 12, seed=2)
    ids = documents(2, time) if packed else None
    expected = gradients(exact, x, cotangent, ids)
    for one, other in zip(gradients(single, x.float(), cotangent.float(), ids), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=8 * time * EPS * float(other.detach().abs().max()))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("causal", [True, False])
def test_flops_of_tiles_are_those_of_the_links(pattern: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    takes_tiles(monkeypatch)
    mixer = build(8, torch.float32, heads=2, kv_heads=1, pattern=pattern, causal=causal)
    x = torch.randn(2, 150, 8, requires_grad=True)
    with FlopCounter() as counter:
        y = mixer(x).y
    declared = mixer.cost(2, 150).product_flops
    assert counter.total == declared
    of_links = counter.by_operation["tiled_attention"]
    assert of_links == 2 * 2 * int(mixer.links(150).sum()) * 2 * (4 + 4)
    with FlopCounter() as counter:
        y.sum().backward()
    # Each product once more for both of its factors, and the scores.
    assert counter.total == 2 * declared + of_links // 2


def test_flops_of_packed_documents_are_those_of_their_links(monkeypatch: pytest.MonkeyPatch) -> None:
    takes_tiles(monkeypatch)
    lengths = [40, 1, 77, 32]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    for pattern in PATTERNS:
        mixer = build(8, torch.float32, heads=2, pattern=pattern)
        with FlopCounter() as counter, torch.no_grad():
            mixer(torch.randn(1, 150, 8), document_ids=ids)
        assert counter.total == sum(mixer.cost(1, length).product_flops for length in lengths)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made by any operation has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_memory_of_a_window_grows_with_the_length_alone() -> None:
    largest = []
    for time in (2048, 8192):
        q = torch.randn(1, 1, time, 64)
        with Largest() as mode:
            mix_tiles(Near(time, 63, 0, 1, None, q.device), None, q, q, q)
        largest.append(mode.numbers)
    assert largest[1] <= 4 * largest[0]
    assert largest[1] < 2 * 8192 * 64


@pytest.mark.parametrize("pattern", ["window(4) | global_(2)", "window(2, block=3)", "window(3, dilation=2)"])
def test_a_state_holds_what_a_later_position_can_see_and_no_more(pattern: str) -> None:
    mixer = build(8, heads=2, pattern=pattern)
    config, x = mixer.config, normal(2, 60, 8)
    slots = {"window(4) | global_(2)": 6, "window(2, block=3)": 6, "window(3, dilation=2)": 5}[pattern]
    assert (config.ring or 0) + config.kept == slots
    state = mixer.init_state(2)
    assert state.nbytes == mixer.cost(2, 60).state_bytes == 2 * (2 * slots * 8 * 8 + 16)
    with torch.no_grad():
        whole = mixer(x).y
        for first in range(0, 60, 7):
            y, state = mixer(x[:, first : first + 5], state)
            torch.testing.assert_close(y, whole[:, first : first + 5])
            for at in range(first + 5, min(first + 7, 60)):
                y, state = mixer.step(x[:, at], state)
                torch.testing.assert_close(y, whole[:, at])
        assert state.nbytes == mixer.cost(2, 60).state_bytes


@pytest.mark.parametrize("pattern", ["window(30)", "window(7, dilation=5)"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("alibi", [False, True])
def test_long_pieces_after_a_window_equal_the_whole(pattern: str, packed: bool, alibi: bool) -> None:
    options = {"heads": 2, "pattern": pattern, "alibi": alibi, "rope": not alibi}
    exact, mixer = build(8, **options), build(8, torch.float32, **options)
    x, ids = normal(2, 400, 8), documents(2, 400) if packed else torch.zeros(2, 400, dtype=torch.int64)
    with torch.no_grad():
        expected = exact(x, document_ids=ids).y
        states = [
            mixer(x[row : row + 1, first:40].float(), document_ids=ids[row : row + 1, first:40]).state
            for row, first in ((0, 0), (1, 0))
        ]
        with FlopCounter() as counter:
            y, _ = mixer(x[:, 40:].float(), states[0].cat(states[1]), document_ids=ids[:, 40:])
        torch.testing.assert_close(y.double(), expected[:, 40:], rtol=0, atol=512 * EPS)
        if not packed:
            declared = mixer.cost(2, 400).product_flops - mixer.cost(2, 40).product_flops
            assert counter.total == declared
            # Rows that stand at different positions: one began later.
            late = mixer(x[1:, 33:40].float()).state
            y, _ = mixer(x[:, 40:].float(), states[0].cat(late))
            torch.testing.assert_close(y[:1].double(), expected[:1, 40:], rtol=0, atol=512 * EPS)
            torch.testing.assert_close(y[1:].double(), exact(x[1:, 33:]).y[:, 7:], rtol=0, atol=512 * EPS)


def test_a_state_with_random_links_grows() -> None:
    mixer = build(8, heads=2, pattern="window(4) | random(1)")
    assert mixer.traits.state_growth == "linear"
    assert build(8, heads=2, pattern="window(4) | global_(3)").traits.state_growth == "constant"


def test_short_sequences_are_not_attended_in_full() -> None:
    mixer = build(8, heads=2, pattern="bigbird(block=4, window_blocks=1, global_blocks=1, random_blocks=1)")
    (part,) = mixer.mixing(normal(1, 24, 8))
    assert torch.equal((part.matrix[0, 0] != 0), mixer.links(24))
    assert int(mixer.links(24).sum()) < 24 * 25 // 2


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 2, "pattern": "window(2, block=3)"},
        {"heads": 2, "pattern": "window(2, dilation=3) | global_([1, 4])", "qk_norm": True},
        {"heads": 3, "alibi": True, "rope": False},
        {"heads": 2, "pattern": "window(2, block=3) | global_([0, 7])", "causal": False},
        {"heads": 2, "pattern": "window(2, block=3)", "causal": False, "alibi": True, "rope": False},
    ],
    ids=str,
)
def test_the_kit_passes_further_patterns(options: dict[str, Any]) -> None:
    names = [
        "forward_equals_steps",
        "pieces_equal_whole",
        "matrix_reproduces_forward",
        "links_by_gradient",
        "receptive_field_by_gradient",
        "packed_equals_separate",
        "batch_invariance",
        "state_bytes",
        "flops",
    ]
    names = names if options.get("causal", True) else names[2:6] + names[7:]
    results = check_mixer(Attention, examples=[(6, options)], checks=names)
    assert {result.check: result.message for result in results if result.status != "passed"} == {}


@pytest.mark.parametrize(
    "pattern, packed", [("window(30)", False), ("window(9) | global_(3)", True), ("window(12, dilation=2)", True)]
)
def test_compiled_forms_are_one_graph(pattern: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    takes_tiles(monkeypatch)
    mixer = build(8, torch.float32, heads=2, pattern=pattern)
    x, ids = torch.randn(2, 130, 8), documents(2, 130) if packed else None
    torch._dynamo.reset()

    def whole(x: Tensor) -> Tensor:
        return mixer(x, document_ids=ids).y

    found = []
    for function in (whole, torch.compile(whole, fullgraph=True, backend="aot_eager", dynamic=False)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        found.append((y, *torch.autograd.grad(y.sum(), leaf)))
    torch.testing.assert_close(*found)
    torch._dynamo.reset()


@pytest.mark.parametrize("pattern", ["window(5) | global_(3) | random(2, seed=3)", "bigbird(block=8)"])
@pytest.mark.parametrize("causal, packed", [(True, True), (False, False)])
def test_flex_attention_follows_the_same_rule(pattern: str, causal: bool, packed: bool) -> None:
    """What a GPU compiles, run uncompiled; there is no backward pass on a CPU."""
    time, links = 128, parse_pattern(pattern)
    q, k, v = normal(2, 4, time, 16), normal(2, 2, time, 16, seed=2), normal(2, 2, time, 16, seed=3)
    positions, runs = torch.arange(time)[None], None
    if packed:
        runs = documents(2, time)
        is_first = torch.cat([torch.ones(2, 1, dtype=torch.bool), runs[:, 1:] != runs[:, :-1]], dim=1)
        positions = positions - torch.where(is_first, positions, 0).cummax(dim=1).values
    slopes = alibi_slopes(4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*flex_attention called without torch.compile")
        y = attend_by_blocks(q.float(), k.float(), v.float(), links, causal, positions, runs, slopes)
        expected = attend_by_links(q, k, v, links, causal=causal, positions=positions, runs=runs, slopes_H=slopes)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=64 * EPS)


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 20])
def test_slopes_of_alibi_are_those_of_hugging_face(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    expected = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", [2, 3])
def test_alibi_is_that_of_bloom(heads: int) -> None:
    from transformers import BloomConfig
    from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

    dim, time = 4 * heads, 11
    mixer = build(dim, heads=heads, bias=True, rope=False, alibi=True)
    theirs = BloomAttention(BloomConfig(hidden_size=dim, n_head=heads), layer_idx=0).double().eval()
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(one, name).unflatten(0, (heads, 4)) for one in projections]
            getattr(theirs.query_key_value, name).copy_(torch.stack(parts, dim=1).flatten(0, 2))
            getattr(theirs.dense, name).copy_(getattr(mixer.o_proj, name))
        x = normal(2, time, dim)
        bias = build_alibi_tensor(torch.ones(2, time, dtype=torch.int64), heads, torch.float64)
        hidden = torch.full((time, time), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
        expected = theirs(x, torch.zeros_like(x), bias, hidden)[0]
        torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=HUGGING_FACE)


def test_norms_of_queries_and_keys_are_those_of_lfm2_and_qwen3() -> None:
    from transformers import Lfm2Config, Qwen3Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, Lfm2RotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    mixer = build(16, heads=4, kv_heads=2, qk_norm=True, qk_norm_eps=1e-3, rope_theta=1e4)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    x = normal(2, 9, 16)
    hidden = torch.full((9, 9), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
    lfm2 = Lfm2Config(**sizes, **theta, norm_eps=1e-3)
    qwen3 = Qwen3Config(**sizes, **theta, head_dim=4, rms_norm_eps=1e-3)
    angles = Lfm2RotaryEmbedding(lfm2)(x, torch.arange(9)[None])
    weights = mixer.state_dict()
    renamed = {"o_proj.weight": "out_proj.weight", "q_norm.weight": "q_layernorm.weight"}
    renamed |= {"k_norm.weight": "k_layernorm.weight"}
    for theirs, names in ((Qwen3Attention(qwen3, 0), {}), (Lfm2Attention(lfm2, 0), renamed)):
        theirs.double().load_state_dict({names.get(name, name): weight for name, weight in weights.items()})
        with torch.no_grad():
            expected = theirs(x, position_embeddings=angles, attention_mask=hidden)[0]
            torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=HUGGING_FACE)


def test_a_causal_window_is_that_of_mistral() -> None:
    from transformers import MistralConfig, MistralModel

    sizes = {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 7, "num_key_value_heads": 2}
    config = MistralConfig(
        hidden_size=16, num_attention_heads=4, sliding_window=5, attn_implementation="eager", head_dim=4, **sizes
    )
    theirs = MistralModel(config).double().eval()
    calls: list[tuple[Tensor, Tensor]] = []
    attention = theirs.layers[0].self_attn
    attention.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs["hidden_states"], output[0])), with_kwargs=True
    )
    with torch.no_grad():
        theirs(inputs_embeds=normal(2, 17, 16))
        ((x, expected),) = calls
        for links in ({"window": 5}, {"pattern": "window(5)"}):
            mixer = build(16, heads=4, kv_heads=2, rope_theta=config.rope_parameters["rope_theta"], **links)
            mixer.load_state_dict(attention.state_dict())
            torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=HUGGING_FACE)


def test_windows_and_global_tokens_are_those_of_longformer() -> None:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    heads, reach, time = 2, 3, 24
    mixer = build(8, heads=heads, bias=True, rope=False, causal=False, pattern=f"longformer({reach + 1}, [0, 10])")
    config = LongformerConfig(hidden_size=8, num_attention_heads=heads, attention_window=[2 * reach])
    theirs = LongformerSelfAttention(config, 0).double().eval()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            for module in (getattr(theirs, name), getattr(theirs, f"{name}_global")):
                module.load_state_dict(getattr(mixer, f"{name[0]}_proj").state_dict())
        # What the attention is given by Longformer's own model: 10000 for global positions.
        mask = torch.zeros(2, time, dtype=torch.float64)
        mask[:, [0, 10]] = 10000.0
        x = normal(2, time, 8)
        found = theirs(x, mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)[0]
        torch.testing.assert_close(mixer(x).y, mixer.o_proj(found), rtol=0, atol=HUGGING_FACE)


def test_blocks_are_those_of_bigbird() -> None:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    heads, block, count = 2, 4, 12
    last, time = count - 1, count * block
    pattern = f"bigbird(block={block}, global_blocks=[0, {last}], random_blocks=1, seed=5)"
    mixer = build(8, heads=heads, rope=False, causal=False, pattern=pattern)
    (part,) = random(1, seed=5, block=block).parts
    assert isinstance(part, Random)
    picks = {(unit, int(part.draws(torch.tensor(unit))[0])) for unit in range(1, count)}
    either_way = picks | {(pick, unit) for unit, pick in picks}
    # Of those, what neither the window nor a global block links already.
    drawn = [
        [pick for pick in range(1, last) if (unit, pick) in either_way and abs(unit - pick) > 1]
        for unit in range(1, last)
    ]
    most = max(map(len, drawn))
    assert Counter(map(len, drawn))[0] < len(drawn)
    config = BigBirdConfig(
        hidden_size=8, num_attention_heads=heads, block_size=block, num_random_blocks=most, use_bias=False
    )
    theirs = BigBirdBlockSparseAttention(config).double().eval()
    filled = np.array([blocks + [0] * (most - len(blocks)) for blocks in drawn])
    exists = torch.tensor([[True] * len(blocks) + [False] * (most - len(blocks)) for blocks in drawn])
    theirs._bigbird_block_rand_mask_with_head = lambda **sizes: [filled] * heads
    make_mask = theirs._create_rand_mask_from_inputs
    # A place in the list that holds no block is hidden, as padding is.
    theirs._create_rand_mask_from_inputs = lambda *inputs: (
        make_mask(*inputs) * exists.repeat_interleave(block, dim=1)[None, None, :, None, :]
    )
    for name in ("query", "key", "value"):
        getattr(theirs, name).load_state_dict(getattr(mixer, f"{name[0]}_proj").state_dict())
    x = normal(2, time, 8)
    blocked, band, *masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, time).double(), block)
    with torch.no_grad():
        found = theirs(x, band, *masks, blocked, blocked)[0]
        torch.testing.assert_close(mixer(x).y, mixer.o_proj(found), rtol=0, atol=HUGGING_FACE)


def model(**options: Any) -> SeqmixForCausalLM:
    torch.manual_seed(0)
    mixer = {"name": "attention", "heads": 2, "kv_heads": 1, **options}
    config = SeqmixConfig(vocab_size=31, hidden_size=24, num_hidden_layers=2, mixers=[mixer], feed_forward=32)
    built = SeqmixForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


@pytest.mark.parametrize("engine", ["onnx", "native"])
@pytest.mark.parametrize("options", [{"qk_norm": True}, {"pattern": "window(5)", "qk_norm": True}], ids=str)
def test_engines_take_norms_and_windows(options: dict[str, Any], engine: str) -> None:
    if engine == "native" and library() is None:
        pytest.skip(why_missing() or "")
    built = model(**options)
    tokens = torch.randint(31, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = built(tokens).logits[0]
    runner = create_engine(engine, built, threads=1)
    for token, logits in zip(tokens[0].tolist(), expected, strict=True):
        found = torch.from_numpy(np.array(runner.step(token)))
        torch.testing.assert_close(found, logits, rtol=0, atol=256 * EPS * float(expected.abs().max()))


@pytest.mark.parametrize(
    "options, words", [({"alibi": True, "rope": False}, "ALiBi"), ({"pattern": "window(5) | global_(1)"}, "window")]
)
def test_what_engines_do_not_know_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotLowerError, match=words):
        lower(model(**options))
