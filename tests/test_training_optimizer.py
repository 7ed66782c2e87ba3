"""Decay groups, and an optimizer's memory that survives being saved."""

from __future__ import annotations

import torch

from seqmix.models import create_model
from seqmix.training.optimizer import decay_groups, load_optimizer_tensors, make_optimizer, optimizer_tensors, set_rate


def tiny(name: str = "gated_conv") -> torch.nn.Module:
    return create_model(name, vocab_size=32, context=32, hidden_size=32, num_hidden_layers=2)


def test_biases_norms_embeddings_and_what_a_mixer_names_do_not_decay() -> None:
    decayed, kept = decay_groups(tiny())
    assert any("in_proj.weight" in name for name in decayed)
    assert any("feed_forward.down_proj.weight" in name for name in decayed)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= kept.keys()
    assert all(parameter.ndim >= 2 for parameter in decayed.values())
    assert not any("norm" in name for name in decayed)

    decayed, kept = decay_groups(tiny("mamba2"))
    for part in ("A_log", "dt_bias", "D"):
        assert any(name.endswith(part) for name in kept), part
        assert not any(name.endswith(f".{part}") for name in decayed)


def test_every_parameter_is_in_one_group() -> None:
    for name in ("transformer", "convsamba", "mamba2"):
        model = tiny(name)
        decayed, kept = decay_groups(model)
        assert not decayed.keys() & kept.keys()
        assert sorted([*decayed, *kept]) == sorted(key for key, _ in model.named_parameters())


def test_weight_decay_shrinks_only_its_group() -> None:
    model = tiny()
    optimizer = make_optimizer(model, weight_decay=0.5, betas=(0.9, 0.95))
    set_rate(optimizer, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed, kept = decay_groups(model)
    for name, parameter in decayed.items():
        torch.testing.assert_close(parameter.detach(), before[name] * 0.95)
    for name, parameter in kept.items():
        assert torch.equal(parameter, before[name]), name


def test_what_a_mixer_trains_faster_has_its_own_rate() -> None:
    model = tiny("rwkv7")
    optimizer = make_optimizer(model, weight_decay=0.1, betas=(0.9, 0.95))
    set_rate(optimizer, 1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    fast = {name for name, rate in rates.items() if rate == 2e-3}
    assert fast == {name for name in rates if name.endswith("mixer.decay.base")} != set()
    assert set(rates.values()) == {1e-3, 2e-3}
    assert len(rates) == len(names)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(32).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    set_rate(optimizer, 1e-2)
    optimizer.step()
    optimizer.zero_grad()


def test_a_loaded_optimizer_goes_on_bit_for_bit() -> None:
    first, second = tiny(), tiny()
    optimizers = [make_optimizer(model, weight_decay=0.1, betas=(0.9, 0.95)) for model in (first, second)]
    step(first, optimizers[0])
    step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(first, optimizers[0]).items()}
    load_optimizer_tensors(second, optimizers[1], tensors)
    step(first, optimizers[0])
    step(second, optimizers[1])
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(second.named_parameters())[name]), name
