"""Checks of what is written down: a config as JSON, parameters as tensors."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from torch import Tensor

from seqmix.conformance.subject import Subject, expect
from seqmix.errors import InputError
from seqmix.mixer import build_config


def config_round_trip(subject: Subject) -> None:
    """The config is a frozen keyword-only dataclass that comes back equal from JSON and builds the same mixer."""
    config_class: Any = subject.mixer_class.config_class
    config = subject.mixer.config
    expect(dataclasses.is_dataclass(config_class), "config_class is not a dataclass")
    expect(config_class.__dataclass_params__.frozen, "config_class is not frozen")
    fields = dataclasses.fields(config_class)
    expect(all(field.kw_only for field in fields), "config_class is not keyword-only")
    expect(config == subject.config, f"the mixer's config is {config}, not the one it was given, {subject.config}")
    expect(subject.mixer.dim == subject.dim, f"dim is {subject.mixer.dim}, not the {subject.dim} it was given")
    written = json.dumps(dataclasses.asdict(config))
    read = build_config(config_class, json.loads(written), subject.mixer_class.__name__)
    expect(read == config, f"the config {config} comes back from JSON as {read}")
    again = subject.mixer_class(subject.dim, read)
    expect(
        _shapes(again.state_dict()) == _shapes(subject.mixer.state_dict()),
        "a mixer built from the config that came back from JSON has other parameters",
    )
    default = subject.mixer_class.config_class()
    used = {name for _, options in subject.mixer_class.examples() for name in options}
    missing = [field.name for field in fields if field.name not in used and len(fields) > 0]
    expect(not missing, f"no example uses the option {', '.join(missing)} (default {default})")
    try:
        build_config(config_class, {"no_such_option": 1}, "the mixer")
    except InputError:
        return
    expect(False, "an unknown option is accepted")


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


@torch.no_grad()
def state_dict_round_trip(subject: Subject) -> None:
    """A new mixer with the loaded parameters gives the same outputs, and reset_parameters fills all of them."""
    x = subject.x(2, 9).float()
    expected = subject.forward(subject.mixer, x).y
    state = subject.mixer.state_dict()
    for name, value in state.items():
        expect(isinstance(value, Tensor), f"the state dict holds {name}, which is no tensor")
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    expect(len(places) == len(set(places)), "two entries of the state dict share memory")
    other = subject.build(seed=1)
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    expect(
        torch.equal(subject.forward(other, x).y, expected),
        "a new mixer with the loaded parameters gives other outputs: something that matters is not in the state dict",
    )
    for parameter in other.parameters():
        parameter.fill_(torch.nan)
    other.reset_parameters()
    for name, parameter in other.named_parameters():
        expect(bool(torch.isfinite(parameter).all()), f"reset_parameters leaves {name} as it was")
