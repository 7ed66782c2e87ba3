"""Weights by their names: a conversion is a table of names, and every weight is copied, none is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from seqmix.errors import InputError

Names = tuple[tuple[str, str], ...]
"""(theirs, ours): how names begin, {} for the number of a layer."""

PLAIN: dict[str, Any] = {"window": None, "pattern": None, "alibi": False}
"""The options of attention that say who listens to whom, as Llama and LFM2 have them."""

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def renamer(pairs: Names, *, forward: bool) -> Callable[[str], str]:
    """Turns names of one side into those of the other; forward is from theirs to ours."""
    rules = []
    for theirs, ours in pairs:
        old, new = (theirs, ours) if forward else (ours, theirs)
        rules.append((re.compile("^" + re.escape(old).replace(r"\{\}", r"(\d+)")), new.replace("{}", r"\1")))

    def rename(name: str) -> str:
        for pattern, new in rules:
            if pattern.match(name):
                return pattern.sub(new, name)
        raise InputError(f"weight {name!r} has no counterpart: convert a model of an unmodified architecture")

    return rename


def copy_weights(source: PreTrainedModel, target: PreTrainedModel, rename: Callable[[str], str]) -> None:
    """Copies every weight of `source` into `target`, which must have them all in the same sizes."""
    wanted = target.state_dict()
    given = {rename(name): tensor for name, tensor in source.state_dict().items()}
    missing = sorted(set(wanted) ^ set(given))
    if missing:
        raise InputError(f"weight {missing[0]!r} has no counterpart: convert a model of an unmodified architecture")
    fitted: dict[str, Tensor] = {name: tensor.reshape(wanted[name].shape) for name, tensor in given.items()}
    target.load_state_dict(fitted)


def require(config: Any, **expected: Any) -> None:
    """Refuses a config whose field differs from the only value the other side can express."""
    for name, value in expected.items():
        actual = getattr(config, name)
        if actual != value:
            raise InputError(f"{name} is {actual!r}, which cannot be converted: only {value!r} can")


def common_fields(config: Any) -> dict[str, Any]:
    """The fields that both sides call the same."""
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", *_SPECIAL)
    return {name: getattr(config, name) for name in fields}


def rope_theta(config: Any) -> float:
    """The base of the rotary positions of a Hugging Face config; other kinds than the plain one are refused."""
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type is {rope['rope_type']!r}, which cannot be converted: only 'default' can")
    return float(rope["rope_theta"])


def single_width(config: Any, architecture: str) -> int:
    """The width of the feed-forward, which the architecture has once for all layers."""
    widths = {config.feed_forward_of_layer(layer) for layer in range(config.num_hidden_layers)}
    if len(widths) > 1 or 0 in widths:
        raise InputError(
            f"feed_forward widths {sorted(widths)} cannot be converted: {architecture} has one width above 0"
        )
    return int(widths.pop())
