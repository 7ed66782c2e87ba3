"""transformers' models on our kernels: the same logits, gradients and generated tokens, and everything put back."""

from __future__ import annotations

import importlib
import logging
import operator
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from seqmix.kernels import patch_transformers
from seqmix.kernels.huggingface import forms, patch

ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
MOE = {"num_experts": 2, "num_experts_per_tok": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "bamba": {**ATTENTION, **MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**ATTENTION, **MAMBA2, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **ATTENTION,
        **MAMBA2,
        "shared_intermediate_size": 48,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {
        **ATTENTION,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "num_experts": 2,
        "expert_layer_period": 2,
    },
    "lfm2": {**ATTENTION, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": {
        **ATTENTION,
        "num_hidden_layers": None,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "attention"],
    },
    "qwen3_next": {
        **ATTENTION,
        **MOE,
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {
        **ATTENTION,
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 64,
        "block_types": ["recurrent", "attention"],
    },
    "zamba": {
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "mamba_d_state": 8,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid", "mamba"],
    },
}
"""A small model of each type that the installed transformers has."""
NEVER_WARNS = {"recurrent_gemma"}
ALIKE = {"bamba", "falcon_mamba", "granitemoehybrid", "jamba", "nemotron_h", "zamba2"}
"""Types whose modeling files hold the same functions as another's here; they wait for the slow tests."""
PRESENT = [
    pytest.param(model_type, marks=[pytest.mark.slow] if model_type in ALIKE else [])
    for model_type in CONFIGS
    if model_type in CONFIG_MAPPING
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """transformers' messages go to the test, also those that it gives only once in a process."""
    logger = logging.getLogger("transformers")
    importlib.import_module("transformers.utils.logging").warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def _model(model_type: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0} | CONFIGS[model_type]
    config = AutoConfig.for_model(model_type, **{key: value for key, value in options.items() if value is not None})
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual small weights would hide a wrong mixer behind the residual.
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def _tokens(batch: int = 2, time: int = 21) -> torch.Tensor:
    return torch.randint(1, 50, (batch, time), generator=torch.Generator().manual_seed(1))


def _train(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits and gradients of a training step."""
    model.train()
    model.zero_grad()
    output = model(tokens, labels=tokens, use_cache=False)
    output.loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return {"logits": output.logits.detach(), **gradients}


def _generate(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is read with a cache: the logits of a prompt's end and of a few greedy tokens, and the tokens."""
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True}
    mask = torch.ones_like(tokens)
    generated = model.eval().generate(tokens, attention_mask=mask, return_dict_in_generate=True, **options)
    return {"generated logits": torch.stack(generated.logits), "generated tokens": generated.sequences}


def _results(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**_train(model, tokens), **_generate(model, tokens)}


def _effect_of_rounding(
    model: torch.nn.Module, tokens: torch.Tensor, expected: dict[str, torch.Tensor]
) -> dict[str, float]:
    """How far one more rounding of every weight moves each result: what the model makes of any rounding."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randn_like(parameter).sign()
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps * signs)
        moved = _train_with_grad(model, tokens)
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return {name: float((moved[name] - expected[name]).abs().max()) for name in moved}


@torch.enable_grad()
def _train_with_grad(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return _train(model, tokens)


def _assert_same(
    found: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    tolerance: float,
    moved: dict[str, float] | None = None,
) -> None:
    """Within a part of the largest entry, or four times what one rounding of the weights does to it."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        band = tolerance * float(tensor.abs().max()) if tensor.is_floating_point() else 0.0
        band = max(band, 4 * (moved or {}).get(name, 0.0))
        assert (found[name] - tensor).abs().max() <= band, name


@pytest.mark.parametrize("model_type", PRESENT)
def test_a_model_computes_the_same_before_during_and_after(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    model, tokens = _model(model_type), _tokens()
    expected = _results(model, tokens)
    moved = _effect_of_rounding(model, tokens, expected)
    assert ("falling back" in caplog.text) == (model_type not in NEVER_WARNS)
    originals = _functions(model_type)
    caplog.clear()
    importlib.import_module("transformers.utils.logging").warning_once.cache_clear()
    with patch_transformers([model_type]) as patched:
        assert list(patched.patched) == [model_type]
        assert all(_functions(model_type)[name] is not originals[name] for name in patched.patched[model_type])
        _assert_same(_results(model, tokens), expected, 1e-5, moved)
        later = _model(model_type).eval()(tokens).logits.detach()
        _assert_same({"logits": later}, {"logits": expected["logits"]}, 1e-5, moved)
    assert "falling back" not in caplog.text
    assert _functions(model_type) == originals
    _assert_same(_generate(model, tokens), {name: expected[name] for name in list(expected)[-2:]}, 0.0)


def _functions(model_type: str) -> dict[str, Any]:
    names = next(names for found, _, names in patch._modeling_files() if found == model_type)
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    return {name: operator.attrgetter(name)(module) for name in names}


@pytest.mark.parametrize("model_type", ["lfm2", "mamba", "mamba2"])
def test_float64(model_type: str) -> None:
    """transformers computes LFM2 in float64, but a part of the scans in float32 whatever the model is."""
    model, tokens = _model(model_type, torch.float64), _tokens()
    expected = _results(model, tokens)
    with patch_transformers([model_type]):
        _assert_same(_results(model, tokens), expected, 1e-10 if model_type == "lfm2" else 1e-5)


def test_packed_documents_do_not_see_each_other() -> None:
    """Without our kernels transformers refuses these on a CPU."""
    model = _model("mamba2").eval()
    mixer, x = model.backbone.layers[0].mixer, torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(2))
    documents = torch.tensor([[0] * 7 + [1] * 13], dtype=torch.int32)
    with torch.no_grad(), patch_transformers(["mamba2"]):
        alone = torch.cat([mixer(x[:, :7]), mixer(x[:, 7:])], dim=1)
        found = mixer(x, seq_idx=documents)
    assert (found - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_packed_documents_are_refused_where_a_scan_does_not_know_of_them() -> None:
    mixer = _model("mamba").backbone.layers[0].mixer
    with patch_transformers(["mamba"]), pytest.raises(ValueError, match="packed sequences"):
        mixer(torch.ones(1, 4, 32), seq_idx=torch.tensor([[0, 0, 1, 1]], dtype=torch.int32))


def test_left_padded_rows_generate_what_they_generate_alone() -> None:
    model, tokens = _model("mamba2").eval(), _tokens(1, 11)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), tokens], dim=1)
    mask = (torch.arange(16) >= 5).long()[None]
    with patch_transformers(["mamba2"]):
        alone = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False)
        found = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(found[:, 16:], alone[:, 11:])


def test_call_and_undo() -> None:
    before = _functions("mamba")
    patched = patch_transformers()
    assert set(patched.patched) >= {"mamba", "mamba2", "lfm2"}
    assert _functions("mamba") != before
    with patch_transformers(["mamba"]):
        pass
    assert _functions("mamba") != before
    patched.undo()
    patched.undo()
    assert _functions("mamba") == before


def test_what_is_not_served_is_named_with_a_reason() -> None:
    with patch_transformers() as patched:
        assert "delta rule" in patched.not_patched["qwen3_next"]
        assert "recurrence" in patched.not_patched["rwkv"]


def test_an_unknown_model_type_is_refused() -> None:
    before = _functions("mamba")
    with pytest.raises(ValueError, match=r"'llama' has nothing to patch: choose from .*mamba"):
        patch_transformers(["mamba", "llama"])
    assert _functions("mamba") == before


def test_an_unknown_signature_gives_one_warning_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_conv1d_fn(x: torch.Tensor, weight: torch.Tensor) -> None: ...

    module = importlib.import_module("transformers.models.lfm2.modeling_lfm2")
    monkeypatch.setattr(module, "causal_conv1d_fn", causal_conv1d_fn)
    with pytest.warns(UserWarning, match=r"lfm2.causal_conv1d_fn stays as it is") as caught:
        patched = patch_transformers(["lfm2", "mamba"])
    assert len(caught) == 1
    assert module.causal_conv1d_fn is causal_conv1d_fn
    assert set(patched.patched["mamba"]) == set(_functions("mamba"))
    assert patched.patched["lfm2"] == ("causal_conv1d_update",)
    assert "another signature" in patched.not_patched["lfm2"]
    patched.undo()


def test_another_transformers_altogether(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    other = types.ModuleType("transformers")
    other.__version__ = "9.0"
    monkeypatch.setitem(sys.modules, "transformers", other)
    spec = importlib.machinery.ModuleSpec("transformers", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "transformers" else None)
    with pytest.warns(UserWarning, match=r"transformers 9.0 differs .* every function stays as it is"):
        assert patch_transformers().patched == {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install transformers"):
        patch_transformers()


def test_other_devices_and_other_activations_go_where_they_belong() -> None:
    calls = []

    def original(*args: Any, **kwargs: Any) -> str:
        calls.append(kwargs)
        return "original"

    x, weight = torch.ones(1, 3, 4), torch.ones(3, 2)
    ours = forms.causal_conv1d_fn(original)
    assert ours(x.to("meta"), weight) == "original"
    plain = ours(x, weight)
    torch.testing.assert_close(ours(x, weight, activation="relu6"), torch.nn.functional.relu6(plain))
    assert len(calls) == 1


def test_decays_of_their_own_for_every_channel_go_to_the_original() -> None:
    x = torch.ones(1, 2, 3)
    ours = forms.mamba2_selective_state_update(lambda *args, **kwargs: "original")
    state, B = torch.zeros(1, 2, 3, 4), torch.ones(1, 1, 4)
    assert ours(state, x, x, torch.ones(2, 3, 4), B, B) == "original"
