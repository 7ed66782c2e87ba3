"""The Hugging Face side: Auto classes, safetensors, generate() in all its forms, and conversion both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)

import seqmix.hf  # noqa: F401
from seqmix.errors import InputError
from seqmix.models import SeqmixForCausalLM, create_model, from_huggingface, list_models
from seqmix.models.convert import to_huggingface

VOCAB = 40


def tiny(name: str) -> SeqmixForCausalLM:
    torch.manual_seed(0)
    model = create_model(
        name,
        vocab_size=VOCAB,
        context=32,
        hidden_size=16,
        num_hidden_layers=3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.5,
    )
    return model.double().eval()


def prompt(rows: int, time: int, seed: int = 0) -> Tensor:
    """Tokens that are none of the special ones."""
    return torch.randint(3, VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list_models())
def model(request: pytest.FixtureRequest) -> SeqmixForCausalLM:
    return tiny(request.param)


@pytest.mark.parametrize(
    "how",
    [{"do_sample": False}, {"do_sample": True, "top_k": 10}, {"do_sample": False, "num_beams": 3}],
    ids=["greedy", "sampled", "beams"],
)
def test_generation_with_and_without_a_cache_is_the_same(model: SeqmixForCausalLM, how: dict[str, object]) -> None:
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        texts.append(model.generate(prompt(2, 7), max_new_tokens=12, use_cache=use_cache, **how))
    assert texts[0].shape[1] > 7
    assert texts[0].tolist() == texts[1].tolist()


def test_left_padded_rows_generate_what_they_would_alone(model: SeqmixForCausalLM) -> None:
    long, short = prompt(1, 9), prompt(1, 4, seed=1)
    ids = torch.cat([long, torch.cat([torch.full((1, 5), 2), short], dim=1)])
    mask = (ids != 2).long()
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, min_new_tokens=8)
    for row, alone in enumerate((long, short)):
        expected = model.generate(alone, max_new_tokens=8, do_sample=False, min_new_tokens=8)
        assert together[row, 9:].tolist() == expected[0, alone.shape[1] :].tolist()


def test_a_second_turn_continues_the_cache(model: SeqmixForCausalLM) -> None:
    first = model.generate(
        prompt(2, 6), max_new_tokens=5, min_new_tokens=5, do_sample=False, return_dict_in_generate=True
    )
    turn = torch.cat([first.sequences, prompt(2, 4, seed=2)], dim=1)
    cache = first.past_key_values
    assert cache.get_seq_length() == 10
    continued = model.generate(turn, past_key_values=cache, max_new_tokens=5, do_sample=False)
    scratch = model.generate(turn, max_new_tokens=5, do_sample=False)
    assert continued.tolist() == scratch.tolist()


def test_several_sequences_are_returned_for_a_prompt(model: SeqmixForCausalLM) -> None:
    out = model.generate(prompt(2, 5), max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert out.shape[0] == 6


def test_auto_classes_open_what_was_saved(model: SeqmixForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.bin"))
    saved = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {**saved, "_name_or_path": ""} == model.config.to_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, SeqmixForCausalLM)
    assert loaded.dtype == torch.float64
    ids = prompt(1, 9)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    bare = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(bare(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_saved_config_builds_the_same_shapes(model: SeqmixForCausalLM, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes


def test_a_missing_layer_is_drawn_as_a_new_one_is(tmp_path: Path) -> None:
    """Weights that a file lacks get the mixer's own initialisation, not memory left from before."""
    model = tiny("mamba2")
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 4
    larger = SeqmixForCausalLM.from_pretrained(tmp_path, config=config)
    fresh = larger.model.layers[3].mixer
    assert fresh.A_log.min() >= 0
    assert fresh.A_log.max() <= torch.tensor(16.0).log()
    assert torch.equal(fresh.D, torch.ones_like(fresh.D))
    assert torch.equal(larger.model.layers[0].mixer.A_log, model.model.layers[0].mixer.A_log)


def test_outputs_to_the_residual_are_shrunk_once() -> None:
    torch.manual_seed(0)
    model = create_model("transformer", vocab_size=VOCAB, context=32, hidden_size=64, num_hidden_layers=8)
    block = model.model.layers[0]
    expected = 1 / (3**0.5 * 64**0.5) / 16**0.5
    assert block.mixer.o_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert block.mixer.q_proj.weight.std().item() == pytest.approx(expected * 4, rel=0.05)
    gated = create_model("gated_conv", vocab_size=VOCAB, context=32, hidden_size=64, num_hidden_layers=8).model.layers[
        0
    ]
    assert gated.mixer.out_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert gated.mixer.in_proj.weight.std().item() == pytest.approx(expected * 4, rel=0.05)


def llama(**options: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **options})).eval()


def mamba2(**options: object) -> Mamba2ForCausalLM:
    torch.manual_seed(0)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_heads": 6,
        "head_dim": 8,
        "state_size": 5,
        "n_groups": 2,
        "num_hidden_layers": 2,
        "chunk_size": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return Mamba2ForCausalLM(Mamba2Config(**{**config, **options})).eval()


# Float32 sums in another order; in float64 Hugging Face's own rotary angles and norms still pass through float32.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "theirs",
    [llama(), llama(tie_word_embeddings=True, num_key_value_heads=4), mamba2(), mamba2(tie_word_embeddings=True)],
    ids=["llama", "llama-tied", "mamba2", "mamba2-tied"],
)
def test_converted_models_give_the_same_logits_both_ways(theirs: PreTrainedModel, dtype: torch.dtype) -> None:
    theirs = theirs.to(dtype)
    ours = from_huggingface(theirs)
    ids = prompt(2, 21)
    expected = theirs(ids).logits
    largest = expected.abs().max()
    assert ours.dtype == dtype
    assert (ours(ids).logits - expected).abs().max() <= TOLERANCES[dtype] * largest
    state = ours.init_state(2)
    for position in range(21):
        logits, state = ours.step(ids[:, position], state)
        assert (logits - expected[:, position]).abs().max() <= TOLERANCES[dtype] * largest
    back = to_huggingface(ours)
    assert type(back) is type(theirs)
    assert torch.equal(back(ids).logits, expected)
    weights = back.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["transformer", "mamba2"])
def test_presets_become_hugging_face_models(name: str) -> None:
    model = tiny(name)
    ids = prompt(1, 11)
    theirs = model.to_huggingface()
    expected = model(ids).logits
    assert (theirs(ids).logits - expected).abs().max() <= TOLERANCES[torch.float64] * expected.abs().max()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: from_huggingface(llama(attention_bias=True)), "attention_bias is True"),
        (lambda: from_huggingface(llama(hidden_act="gelu")), "hidden_act is 'gelu'"),
        (
            lambda: from_huggingface(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1))),
            "GPT2LMHeadModel cannot",
        ),
        (lambda: tiny("gated_conv").to_huggingface(), "layers of gated_conv have no counterpart"),
        (lambda: tiny("convtransformer").to_huggingface(), "layers of attention, gated_conv have no counterpart"),
        (lambda: tiny("local_transformer").to_huggingface(), "window is 8"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(build: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build()  # type: ignore[operator]
