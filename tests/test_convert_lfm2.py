"""LFM2 of Hugging Face and back: the same layout, the same logits whole and token by token, the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config, Lfm2ForCausalLM

from seqmix.errors import InputError
from seqmix.models import SeqmixConfig, SeqmixForCausalLM, create_model, from_huggingface

VOCAB = 40
# Float32 sums in another order; in float64 Hugging Face's own rotary angles and norms still pass through float32.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
ATTENTION = {"name": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_eps": 1e-5, "rope_theta": 1e6}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONV = {"name": "gated_conv", "kernel": 3}


def lfm2(**options: Any) -> Lfm2ForCausalLM:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 60,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "block_multiple_of": 16,
        "initializer_range": 0.3,
        **SPECIAL,
    }
    model = Lfm2ForCausalLM(Lfm2Config(**{**config, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ours(mixers: list[dict[str, Any]], **options: Any) -> SeqmixForCausalLM:
    torch.manual_seed(0)
    fields = {"hidden_size": 24, "num_hidden_layers": 3, "feed_forward": 40, "norm_eps": 1e-5}
    config: Any = SeqmixConfig(
        vocab_size=VOCAB, mixers=mixers, initializer_range=0.3, **{**SPECIAL, **fields, **options}
    )
    return SeqmixForCausalLM(config).double().eval()


def tokens(rows: int, time: int) -> Tensor:
    return torch.randint(3, VOCAB, (rows, time), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False, "norm_eps": 1e-3, "num_key_value_heads": 4},
        {"block_auto_adjust_ff_dim": False, "conv_L_cache": 4},
        {"block_ffn_dim_multiplier": 1.5, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"layer_types": ["full_attention"] * 4},
    ],
    ids=["plain", "untied", "width", "multiplier", "attention"],
)
def test_logits_are_the_same_both_ways(options: dict[str, Any], dtype: torch.dtype) -> None:
    theirs = lfm2(**options).to(dtype)
    model = from_huggingface(theirs)
    ids = tokens(2, 21)
    expected = theirs(ids).logits
    allowed = TOLERANCES[dtype] * expected.abs().max()
    assert model.dtype == dtype
    assert (model(ids).logits - expected).abs().max() <= allowed
    state = model.init_state(2)
    for position in range(21):
        logits, state = model.step(ids[:, position], state)
        assert (logits - expected[:, position]).abs().max() <= allowed
    back = model.to_huggingface()
    assert isinstance(back, Lfm2ForCausalLM)
    assert torch.equal(back(ids).logits, expected)
    weights = theirs.state_dict()
    assert back.state_dict().keys() == weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in back.state_dict().items())


@torch.no_grad()
def test_a_model_of_ours_becomes_one_that_generates_the_same(tmp_path: Path) -> None:
    model = ours([CONV, CONV, ATTENTION])
    ids = tokens(1, 11)
    theirs = model.to_huggingface()
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    # What other engines read in place of Hugging Face's rule.
    assert (written["block_ff_dim"], written["block_auto_adjust_ff_dim"]) == (40, False)
    assert (written["full_attn_idxs"], written["tie_embedding"]) == ([2], True)
    assert written["layer_types"] == ["conv", "conv", "full_attention"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = model(ids).logits
    assert (loaded(ids).logits - expected).abs().max() <= 1e-6 * expected.abs().max()
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    assert loaded.generate(ids, **how).tolist() == model.generate(ids, **how).tolist()
    again = from_huggingface(loaded)
    assert again.config.mixers == from_huggingface(theirs).config.mixers
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.state_dict().items())


@torch.no_grad()
def test_the_preset_has_its_layout() -> None:
    torch.manual_seed(0)
    model = create_model("lfm2_like", vocab_size=VOCAB, context=32, hidden_size=64, num_hidden_layers=6, **SPECIAL)
    theirs = model.double().eval().to_huggingface()
    assert isinstance(theirs, Lfm2ForCausalLM)
    assert theirs.config.layer_types == ["conv", "conv", "full_attention"] * 2
    ids = tokens(2, 15)
    expected = model(ids).logits
    assert (theirs(ids).logits - expected).abs().max() <= TOLERANCES[torch.float64] * expected.abs().max()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: from_huggingface(lfm2(conv_bias=True)), "conv_bias is True"),
        (
            lambda: from_huggingface(
                lfm2(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            ),
            "rope_type is 'linear'",
        ),
        (lambda: ours([CONV, {**ATTENTION, "qk_norm": False}, CONV]).to_huggingface(), "have no counterpart"),
        (lambda: ours([CONV, {**ATTENTION, "window": 4}, CONV]).to_huggingface(), "window is 4"),
        (lambda: ours([CONV, {**ATTENTION, "rope": False}, CONV]).to_huggingface(), "rope is False"),
        (lambda: ours([CONV, {**ATTENTION, "qk_norm_eps": 1e-6}, CONV]).to_huggingface(), "qk_norm_eps is 1e-06"),
        (lambda: ours([CONV, {**ATTENTION, "head_dim": 4}, CONV]).to_huggingface(), "4 heads of width 4"),
        (lambda: ours([{**CONV, "dilation": 2}, ATTENTION, CONV]).to_huggingface(), "dilation is 2"),
        (lambda: ours([{**CONV, "bias": True}, ATTENTION, CONV]).to_huggingface(), "bias is True"),
        (lambda: ours([CONV, ATTENTION, {**CONV, "kernel": 4}]).to_huggingface(), "kernel differ"),
        (
            lambda: ours([CONV, ATTENTION, {**ATTENTION, "kv_heads": 4}]).to_huggingface(),
            "kv_heads and rope_theta differ",
        ),
        (lambda: ours([CONV, ATTENTION, CONV], feed_forward=[8, 8, 16]).to_huggingface(), "LFM2 has one width"),
        (lambda: ours([CONV, ATTENTION, CONV], feed_forward=0).to_huggingface(), "LFM2 has one width"),
        (lambda: ours([CONV, ATTENTION, CONV], norm="layer").to_huggingface(), "norm is 'layer'"),
    ],
)
def test_what_lfm2_cannot_express_is_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_llama_cpp_runs_what_comes_out() -> None:
    """An engine of its own, which knows LFM2 and nothing of us, gives the logits of our model."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from seqmix.bench.llama_cpp import LlamaCppDecoder

    torch.manual_seed(0)
    model = create_model("lfm2_like", vocab_size=258, params="50k", context=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    prompt = torch.randint(258, (1, 40))
    decoder = LlamaCppDecoder("lfm2", model.to_huggingface(), threads=1, context=64)
    decoder.read(prompt[0].tolist())
    with torch.inference_mode():
        expected = model.prefill(prompt)[0][0]
    # Its cache holds keys and values in float16, with a relative error of 2^-11 each.
    torch.testing.assert_close(torch.from_numpy(decoder.logits().copy()), expected, rtol=0, atol=4 * 2**-11)
