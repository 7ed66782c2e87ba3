"""What a Hugging Face model does with documents and with its cache, found out by trying it at a tiny size.

A tiny model of the same config (few dimensions, a layer or more of every kind, random weights in every parameter) is
run on a few tokens: whether a later token changes an earlier output, whether documents that `position_ids` tell apart
reach each other, whether a piece continues a cache, and whether steps give what the forward gives. Weights that
nothing has trained hide no path, since every parameter is drawn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from seqmix.errors import InputError
from seqmix.models.huggingface.configs import (
    NOT_THE_SHAPE,
    PREFIX,
    HuggingFaceFamily,
    config_document,
    config_from_document,
    new_model,
    quiet,
)
from seqmix.models.huggingface.costs import accepts, run

_TIME, _BORDER = 12, 5
_VOCABULARY = 40
_WINDOW = 4
_ROUNDING = 1e-5
"""Of the largest logit: some float32 roundings. What random weights let through is hundreds of times as large."""

_TOLERANCE = 2e-4
"""Of the largest logit: float32 sums in another order, over a few layers of a few dozen terms."""

_REFUSALS = (RuntimeError, ValueError, IndexError, NotImplementedError)
"""How models of others say that they cannot read on in pieces, or take no such positions: that is their answer."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """separates_documents: nothing crosses a border that `position_ids` mark, and a document comes out as if alone.

    continues: a piece of several tokens may follow a cache.
    """

    separates_documents: bool
    continues: bool


def behaviour_of(config: PreTrainedConfig) -> Behaviour:
    """What the model of a config does; tried once for all its sizes.

    Raises:
        InputError: the model is not causal, or its steps do not give what its forward gives.
    """
    return _try(json.dumps(config_document(_tiny(config)), sort_keys=True))


@cache
def _try(document: str) -> Behaviour:
    config = config_from_document(json.loads(document))
    name = f"{PREFIX}{config.model_type}"
    try:
        with torch.no_grad(), quiet():
            model = _draw(config)
            _check_causal(model, name)
            _check_steps(model, name)
            return Behaviour(separates_documents=_separates(model), continues=_continues(model))
    except InputError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        raise InputError(
            f"{name} cannot take part: trying it on a few tokens fails with {type(error).__name__} ({words[:160]}), "
            "choose another config"
        ) from error


def _tiny(config: PreTrainedConfig) -> PreTrainedConfig:
    """A small config with every kind of layer."""
    document = config_document(config)
    kind = document.pop("model_type")
    given = {key: value for key, value in document.items() if key not in NOT_THE_SHAPE}
    kinds, depth = getattr(config, "layer_types", None), min(2, config.num_hidden_layers)
    if isinstance(kinds, list | tuple) and len(set(kinds)) > 1:
        depth = max(depth, 1 + max(list(kinds).index(one) for one in set(kinds)))
    options = {"sliding_window": _WINDOW} if isinstance(getattr(config, "sliding_window", None), int) else {}
    family = HuggingFaceFamily(name=f"{PREFIX}{kind}", kind=kind, given=given)
    return family.config(vocab_size=_VOCABULARY, context=2 * _TIME, width=32, depth=depth, **options)


def _draw(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the config, every parameter drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(config)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _tokens(rows: int, time: int = _TIME) -> Tensor:
    steps = torch.arange(rows * time).view(rows, time)
    return (7 * steps + steps * steps // 3) % (_VOCABULARY - 1)


def _changed(tokens: Tensor, place: int) -> Tensor:
    other = tokens.clone()
    other[:, place] = (other[:, place] + 11) % _VOCABULARY
    return other


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether nothing reached these outputs; routed experts alone add up in another order for other tokens."""
    return bool(torch.allclose(one, other, rtol=0, atol=_ROUNDING * float(other.abs().max())))


def _near(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=0, atol=_TOLERANCE * float(other.abs().max())))


def _check_causal(model: PreTrainedModel, name: str) -> None:
    tokens = _tokens(2)
    last = tokens.shape[1] - 1
    before = model(input_ids=tokens, use_cache=False).logits
    after = model(input_ids=_changed(tokens, last), use_cache=False).logits
    if not _same(after[:, :last], before[:, :last]):
        hint = ", or set is_decoder=true in its options" if getattr(model.config, "is_decoder", None) is False else ""
        raise InputError(f"{name} cannot take part: it is not causal, choose a decoder{hint}")


def _check_steps(model: PreTrainedModel, name: str) -> None:
    tokens = _tokens(2)
    whole = model(input_ids=tokens, use_cache=False).logits
    logits, cache_after = run(model, tokens[:, :_BORDER], None)
    outputs = [logits]
    for place in range(_BORDER, _TIME):
        logits, cache_after = run(model, tokens[:, place : place + 1], cache_after)
        outputs.append(logits)
    if not _near(torch.cat(outputs, dim=1), whole):
        raise InputError(f"{name} cannot take part: steps with its cache do not give what its forward gives")


def _continues(model: PreTrainedModel) -> bool:
    tokens = _tokens(2)
    whole = model(input_ids=tokens, use_cache=False).logits
    try:
        first, cache_after = run(model, tokens[:, :_BORDER], None)
        second, _ = run(model, tokens[:, _BORDER:], cache_after)
    except _REFUSALS:
        return False
    return _near(torch.cat([first, second], dim=1), whole)


def _separates(model: PreTrainedModel) -> bool:
    """Rows with borders at different places, so that one row's positions cannot stand for all."""
    if not accepts(model, "position_ids"):
        return False
    tokens, borders = _tokens(2), (_BORDER, _BORDER + 2)
    positions = torch.stack([torch.cat([torch.arange(at), torch.arange(_TIME - at)]) for at in borders])
    try:
        before = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    except _REFUSALS:
        return False
    for place in range(_BORDER):
        after = model(input_ids=_changed(tokens, place), position_ids=positions, use_cache=False).logits
        if not all(_same(after[row, at:], before[row, at:]) for row, at in enumerate(borders)):
            return False
    alone = [model(input_ids=tokens[row : row + 1, at:], use_cache=False).logits for row, at in enumerate(borders)]
    return all(_near(before[row, at:], alone[row][0]) for row, at in enumerate(borders))
