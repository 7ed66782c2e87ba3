"""What a Hugging Face model costs, counted on short forwards and continued by formula.

    products(T) = c + a T + b T^2 + e * links(T)

Three forwards of few tokens on weights that take no memory are counted by `FlopCounter`: scaled dot-product attention
by its links (e FLOPs each), everything else by a line or a parabola through the three counts. Beyond those lengths
links follow from the config: causal, and at most `sliding_window` a target in the layers whose type says so (in all
layers where the config has no types). Two steps are counted, whose links then grow with the position. States are
what the cache of a short forward holds, layer by layer: constant, or a number of bytes a token, which ends at the
window of a sliding layer. Element-wise work is not counted, and scans that are only that count nothing.

A model whose products need weights that lie in memory is counted so up to a gigabyte; of a larger one each weight
counts once a token, and the state is unknown (0 bytes).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from seqmix.cost import Cost, causal_links
from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.models.huggingface.configs import config_document, config_from_document, new_model, quiet

_MOST_BYTES = 1 << 30
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)
"""What models of others raise where they cannot run without memory or read on; it ends in an InputError."""

_STEP_AT = 1
"""Tokens read before the first of the two steps that are counted."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What a layer of a cache holds: bytes at no token, bytes a token, and the tokens at which it stops growing."""

    start: int
    growth: int
    most: int | None

    def at(self, tokens: int) -> int:
        return self.start + self.growth * (tokens if self.most is None else min(tokens, self.most))


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The formula of the module's head with its numbers, for one row.

    curve: (c, a, b). link: e, over all layers. windows: (window, share of e) of the layers that have the same, None
    for no window. step, step_link: products of a step without its links, and of one link. lines: the layers of the
    cache. parameters, weight_bytes: all weights, each once.
    """

    curve: tuple[float, float, float]
    link: float
    windows: tuple[tuple[int | None, float], ...]
    step: float
    step_link: float
    lines: tuple[_Line, ...]
    parameters: int = 0
    weight_bytes: int = 0

    def forward(self, time: int) -> int:
        """Products of a forward over `time` tokens."""
        c, a, b = self.curve
        links = sum(share * causal_links(time, window) for window, share in self.windows)
        return round(c + a * time + b * time * time + self.link * links)

    def one_step(self, position: int) -> int:
        """Products of a step with `position` tokens read."""
        seen = position + 1
        links = sum(share * (seen if window is None else min(seen, window)) for window, share in self.windows)
        return round(self.step + self.step_link * links)

    def state_bytes(self, tokens: int) -> int:
        """Bytes of the cache after some tokens."""
        return sum(line.at(tokens) for line in self.lines)

    @property
    def grows(self) -> bool:
        """Whether some layer of the cache grows without end."""
        return any(line.growth and line.most is None for line in self.lines)

    def cost(self, batch: int, time: int) -> Cost:
        """As `Mixer.cost`."""
        return self._cost(batch, self.forward(time), self.state_bytes(time))

    def step_cost(self, batch: int, position: int) -> Cost:
        """As `Mixer.step_cost`."""
        return self._cost(batch, self.one_step(position), self.state_bytes(position + 1))

    def _cost(self, batch: int, products: int, state_bytes: int) -> Cost:
        return Cost(
            product_flops=batch * products,
            parameters=self.parameters,
            state_bytes=batch * state_bytes,
            bytes_moved=self.weight_bytes + batch * state_bytes,
        )


def counts_of(config: PreTrainedConfig, dtype: torch.dtype) -> Counts:
    """The costs of a config's model in a precision; counted once."""
    return _counts(json.dumps(config_document(config), sort_keys=True), dtype)


@cache
def _counts(document: str, dtype: torch.dtype) -> Counts:
    config = config_from_document(json.loads(document))
    with quiet(), torch.no_grad():
        whole = hollow(config, dtype)
        total = sum(parameter.numel() for parameter in whole.parameters())
        try:
            counts = _by_depth(config, dtype, whole)
        except _FAILURES:
            # Some products need weights that really lie in memory.
            counts = _filled_counts(config, dtype) if total * dtype.itemsize <= _MOST_BYTES else _by_weights(whole)
        return dataclasses.replace(counts, parameters=total, weight_bytes=total * dtype.itemsize)


def _filled_counts(config: PreTrainedConfig, dtype: torch.dtype) -> Counts:
    """The counts of a model whose weights are in memory.

    Raises:
        InputError: it does not run.
    """
    try:
        return _count(hollow(config, dtype, is_filled=True))
    except _FAILURES as error:
        words = " ".join(str(error).split())
        raise InputError(
            f"a {config.model_type} with hidden_size {config.hidden_size} and {config.num_hidden_layers} layers "
            f"does not run ({words[:160]}): choose another size, or hold its heads by options"
        ) from error


def _by_weights(model: PreTrainedModel) -> Counts:
    """Each weight of a product once a token, which leaves attention's links out; no state."""
    once = 2.0 * sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    if not model.config.tie_word_embeddings:
        once -= 2.0 * model.config.vocab_size * model.config.hidden_size
    return Counts(curve=(0.0, once, 0.0), link=0.0, windows=(), step=once, step_link=0.0, lines=())


def _by_depth(config: PreTrainedConfig, dtype: torch.dtype, whole: PreTrainedModel) -> Counts:
    """The counts of a model; of one with many layers from two shallow ones, since its layers repeat."""
    kinds, depth = list(getattr(config, "layer_types", None) or []), config.num_hidden_layers
    period = next((n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n]), len(kinds) or 1)
    # What the first layers alone have, such as a feed-forward without experts, stands in both.
    low = depth % period + 2 * period
    if depth <= low + period:
        return _count(whole)
    few, more = (_count(hollow(_at_depth(config, count), dtype)) for count in (low, low + period))
    times = (depth - low) // period
    if len(few.lines) != low:
        return _count(whole)

    def on(first: float, second: float) -> float:
        return first + times * (second - first)

    return dataclasses.replace(
        few,
        curve=(on(few.curve[0], more.curve[0]), on(few.curve[1], more.curve[1]), on(few.curve[2], more.curve[2])),
        link=on(few.link, more.link),
        windows=layer_windows(config),
        step=on(few.step, more.step),
        step_link=on(few.step_link, more.step_link),
        lines=few.lines + times * more.lines[low:],
    )


def _at_depth(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """The config with fewer layers."""
    document = config_document(config)
    for key, value in document.items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            document[key] = value[:depth]
    return config_from_document(
        {**document, type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers"): depth}
    )


def _count(model: PreTrainedModel) -> Counts:
    config = model.config
    windows = layer_windows(config)
    unit = _unit(config)
    lengths = (unit, 2 * unit, 3 * unit)
    counted = [_forward(model, length) for length in lengths]
    link = counted[0][1] / sum(share * causal_links(unit, window) for window, share in windows)
    first, second, third = (rest for rest, _, _ in counted)
    b = (third - 2 * second + first) / (2 * unit * unit)
    a = (second - first) / unit - 3 * unit * b
    c = first - a * unit - b * unit * unit
    _, _, cache_after = _forward(model, _STEP_AT)
    steps = []
    for _ in range(2):
        with FlopCounter() as counter:
            run(model, torch.zeros(1, 1, dtype=torch.int64), cache_after)
        steps.append(counter.total)
    step_link = float(steps[1] - steps[0])
    return Counts(
        curve=(c, a, b),
        link=link,
        windows=windows,
        step=steps[0] - step_link * (_STEP_AT + 1),
        step_link=step_link,
        lines=tuple(_lines(model)),
    )


def _unit(config: PreTrainedConfig) -> int:
    """A third of the longest length that is counted: a whole chunk of a chunked scan, else a few tokens."""
    chunk = getattr(config, "chunk_size", None) or getattr(config, "mamba_chunk_size", None)
    if isinstance(chunk, int):
        return chunk
    limit = getattr(config, "max_position_embeddings", None)
    return max(1, min([4, *([limit // 3] if isinstance(limit, int) else [])]))


def _forward(model: PreTrainedModel, length: int) -> tuple[int, int, Any]:
    """(products outside of attention, those of attention, the cache after it) of a forward over some tokens."""
    with FlopCounter() as counter:
        _, cache_after = run(model, torch.zeros(1, length, dtype=torch.int64), None)
    attention = counter.by_operation["attention"]
    return counter.total - attention, attention, cache_after


def _lines(model: PreTrainedModel) -> Iterator[_Line]:
    """The layers of the cache, from what it holds after one token and after two."""
    before, after = (_by_layer(_forward(model, length)[2]) for length in (1, 2))
    for (small, _), (large, window) in zip(before, after, strict=True):
        growth = large - small
        # A layer that starts full holds its window from the first token on.
        yield _Line(start=small - growth, growth=growth, most=None if window is None else max(1, window - 1))


def _by_layer(cache_after: Any) -> list[tuple[int, int | None]]:
    """(bytes, window) of each layer of a cache of transformers, or of the whole of another one."""
    layers = getattr(cache_after, "layers", None)
    if layers is None:
        return [(nbytes(cache_after), None)]
    return [(nbytes(layer), layer.sliding_window if getattr(layer, "is_sliding", False) else None) for layer in layers]


def layer_windows(config: PreTrainedConfig) -> tuple[tuple[int | None, float], ...]:
    """(window, share of the attention layers that have it), None for no window."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return ((None, 1.0),)
    types = getattr(config, "layer_types", None)
    kinds = [kind for kind in types or [] if "attention" in kind and "linear" not in kind]
    if not kinds:
        return ((window, 1.0),)
    share = sum(kind == "sliding_attention" for kind in kinds) / len(kinds)
    return tuple((size, part) for size, part in ((window, share), (None, 1 - share)) if part)


def hollow(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, *, is_filled: bool = False) -> PreTrainedModel:
    """The model on the CPU with zeros for weights, which take no memory unless it `is_filled`."""
    config = copy.deepcopy(config)
    # Experts one by one are products that the counter knows.
    config._experts_implementation = "eager"
    with torch.device("meta"):
        model = new_model(config)
    filled: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                empty = torch.zeros((), dtype=kind).expand(parameter.shape)
                empty = empty.contiguous() if is_filled else empty
                made = filled.setdefault(id(parameter), nn.Parameter(empty, requires_grad=False))
                module._parameters[name] = made
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return model.eval()


def cache_argument(model: PreTrainedModel) -> str:
    """The name that forward and its result give the cache."""
    return next((name for name in ("past_key_values", "cache_params", "state") if accepts(model, name)), "state")


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether forward names an argument."""
    return argument in inspect.signature(type(model).forward).parameters


def run(model: PreTrainedModel, tokens: Tensor, cache_before: Any, *, last_alone: bool = False) -> tuple[Tensor, Any]:
    """(logits, cache) of a piece (batch, time) that continues a cache, which is written into; None begins one."""
    name = cache_argument(model)
    given: dict[str, Any] = {name: cache_before} if cache_before is not None else {}
    if last_alone and accepts(model, "logits_to_keep"):
        given["logits_to_keep"] = 1
    outputs = model(input_ids=tokens, use_cache=True, **given)
    return outputs.logits, getattr(outputs, name)


def nbytes(value: Any) -> int:
    """The bytes of all tensors that a cache holds, each once."""
    seen: set[int] = set()

    def count(one: Any) -> int:
        if isinstance(one, str | int | float | type(None) | torch.dtype | torch.device) or id(one) in seen:
            return 0
        seen.add(id(one))
        if isinstance(one, Tensor):
            return one.numel() * one.element_size()
        if isinstance(one, dict):
            return sum(count(part) for part in one.values())
        if isinstance(one, list | tuple):
            return sum(count(part) for part in one)
        return count(getattr(one, "__dict__", None))

    return count(value)
