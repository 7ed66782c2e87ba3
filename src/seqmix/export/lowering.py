"""From a model to the program of its step: every mixer says which operations its `step` consists of.

Projections of one input stand in one matrix, and a residual is added by the product that comes before it.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import cast

import torch
from torch import Tensor, nn

from seqmix.errors import InputError
from seqmix.export.program import (
    Add,
    Angles,
    Attend,
    Cache,
    Convolve,
    Embed,
    Linear,
    LSTMCell,
    Memory,
    Multiply,
    Norm,
    Operation,
    Program,
    Ring,
    Rotate,
    Silu,
    Span,
    StateSpace,
)
from seqmix.mixer import Mixer
from seqmix.mixers.attention.attention import Attention
from seqmix.mixers.convolution import DepthwiseConv, GatedConv
from seqmix.mixers.convsamba import ConvSamba
from seqmix.mixers.recurrent.lstm import LSTM
from seqmix.mixers.state_space import Mamba2
from seqmix.models import SeqmixForCausalLM
from seqmix.models.block import Block, FeedForward


class CannotLowerError(InputError):
    """A model with a mixer for which no operations are known; torch can still run it."""


def _plain(tensor: Tensor) -> Tensor:
    """A parameter as contiguous float32 numbers on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _plain(tensor)


class _Builder:
    """Collects the operations and states while the layers are gone through."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.rings: list[Ring] = []
        self.caches: list[Cache] = []
        self.memories: list[Memory] = []
        self.angles: list[Angles] = []
        self.layer = 0

    def vector(self, width: int) -> Span:
        """A new vector."""
        return Span(f"v{len(self.operations)}", 0, width)

    def put(self, operation: Operation) -> Span:
        """Appends an operation and gives what it writes."""
        self.operations.append(operation)
        return operation.out

    def linear(self, x: Span, weight: Tensor, bias: Tensor | None, add: Span | None = None) -> Span:
        """weight x + bias + add."""
        out = self.vector(weight.shape[0])
        return self.put(Linear(out=out, x=x, weight=_plain(weight), bias=_or_none(bias), add=add))

    def norm(self, x: Span, module: nn.Module) -> Span:
        """One of the norms around a mixer or a feed-forward."""
        out = self.vector(x.width)
        if isinstance(module, nn.RMSNorm):
            eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
            return self.put(Norm(out=out, x=x, kind="rms", weight=_plain(module.weight), bias=None, eps=eps))
        assert isinstance(module, nn.LayerNorm)
        weight, bias = _plain(module.weight), _or_none(module.bias)
        return self.put(Norm(out=out, x=x, kind="layer", weight=weight, bias=bias, eps=module.eps))

    def rotate(self, x: Span, angles: Angles) -> Span:
        """x with the pairs of its heads turned."""
        if angles not in self.angles:
            self.angles.append(angles)
        return self.put(Rotate(out=self.vector(x.width), x=x, angles=angles))

    def ring(self, mixer: Mixer, weight: Tensor, bias: Tensor | None, dilations: object) -> Ring:
        """The past of this layer's convolution."""
        ring = Ring(
            name=f"layers.{self.layer}.past",
            layer=self.layer,
            dilations=dilations,  # type: ignore[arg-type]
            taps=_plain(weight.T),
            bias=_or_none(bias),
        )
        assert ring.dilations.order is None, f"{type(mixer).__name__} keeps equal dilations beside each other"
        self.rings.append(ring)
        return ring

    def memory(self, field: str, *shape: int) -> Memory:
        """A tensor of this layer's state."""
        memory = Memory(name=f"layers.{self.layer}.{field}", layer=self.layer, field=field, shape=shape)
        self.memories.append(memory)
        return memory

    def read(self, memory: Memory) -> Span:
        """What a step finds in a memory, as a vector."""
        return Span(memory.name, 0, memory.size)


@singledispatch
def _mix(mixer: Mixer, build: _Builder, x: Span, add: Span) -> Span:
    """Appends a mixer's step on x, and adds `add` to it."""
    raise CannotLowerError(
        f"{type(mixer).__name__} cannot be exported as a graph of single steps yet: use the engine torch for this model"
    )


@_mix.register
def _(mixer: DepthwiseConv, build: _Builder, x: Span, add: Span) -> Span:
    ring = build.ring(mixer, mixer.weight, mixer.bias, mixer.dilations)
    convolved = build.put(Convolve(out=build.vector(x.width), x=x, ring=ring))
    return build.put(Add(out=build.vector(x.width), a=convolved, b=add))


@_mix.register
def _(mixer: GatedConv, build: _Builder, x: Span, add: Span) -> Span:
    dim = x.width
    projected = build.linear(x, mixer.in_proj.weight, mixer.in_proj.bias)
    gate_in, gate_out, value = projected.split(dim, dim, dim)
    values = build.put(Multiply(out=build.vector(dim), a=gate_in, b=value))
    ring = build.ring(mixer, mixer.weight, mixer.bias, mixer.dilations)
    convolved = build.put(Convolve(out=build.vector(dim), x=values, ring=ring))
    gated = build.put(Multiply(out=build.vector(dim), a=gate_out, b=convolved))
    return build.linear(gated, mixer.out_proj.weight, mixer.out_proj.bias, add)


@_mix.register
def _(mixer: ConvSamba, build: _Builder, x: Span, add: Span) -> Span:
    dim = x.width
    ring = build.ring(mixer, mixer.weight, mixer.bias, mixer.dilations)
    first, second = build.linear(x, mixer.gate.weight, mixer.gate.bias).split(dim, dim)
    convolved = build.put(Convolve(out=build.vector(dim), x=x, ring=ring))
    gate = build.put(Multiply(out=build.vector(dim), a=first, b=second, silu=True))
    return build.put(Multiply(out=build.vector(dim), a=convolved, b=gate, add=add))


@_mix.register
def _(mixer: Attention, build: _Builder, x: Span, add: Span) -> Span:
    if mixer.config.alibi or not mixer.sees_all_held:
        what = "ALiBi" if mixer.config.alibi else f"the pattern {mixer.config.pattern!r}"
        raise CannotLowerError(
            f"attention with {what} cannot be exported as a graph of single steps yet: use the engine torch for it"
        )
    width, groups = mixer.head_dim, mixer.groups
    of_heads, of_groups = mixer.heads * width, groups * width
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    weight = torch.cat([one.weight for one in projections])
    bias = torch.cat([one.bias for one in projections]) if mixer.config.bias else None
    projected = build.linear(x, weight, bias)
    both, v = projected.split(of_heads + of_groups, of_groups)
    if isinstance(mixer.q_norm, nn.RMSNorm) and isinstance(mixer.k_norm, nn.RMSNorm):
        of_q, of_k = _plain(mixer.q_norm.weight), _plain(mixer.k_norm.weight)
        weight = torch.cat([of_q.repeat(mixer.heads), of_k.repeat(groups)])
        eps, parts = mixer.config.qk_norm_eps, mixer.heads + groups
        both = build.put(
            Norm(out=build.vector(both.width), x=both, kind="rms", weight=weight, bias=None, eps=eps, groups=parts)
        )
    if mixer.config.rope:
        both = build.rotate(both, Angles(width, mixer.config.rope_theta))
    q, k = both.split(of_heads, of_groups)
    cache = Cache(name=f"layers.{build.layer}", layer=build.layer, groups=groups, width=width, window=mixer.ring)
    build.caches.append(cache)
    mixed = build.put(Attend(out=build.vector(of_heads), q=q, k=k, v=v, scale=1 / math.sqrt(width), cache=cache))
    return build.linear(mixed, mixer.o_proj.weight, mixer.o_proj.bias, add)


@_mix.register
def _(mixer: LSTM, build: _Builder, x: Span, add: Span) -> Span:
    hidden, cell = build.memory("hidden", mixer.hidden), build.memory("cell", mixer.hidden)
    bias = None
    if mixer.bias_ih is not None and mixer.bias_hh is not None:
        bias = mixer.bias_ih + mixer.bias_hh
    from_input = build.linear(x, mixer.weight_ih, bias)
    gates = build.linear(build.read(hidden), mixer.weight_hh, None, from_input)
    y = build.put(LSTMCell(out=build.vector(mixer.hidden), gates=gates, cell=cell, hidden=hidden))
    if isinstance(mixer.out_proj, nn.Linear):
        return build.linear(y, mixer.out_proj.weight, mixer.out_proj.bias, add)
    return build.put(Add(out=build.vector(x.width), a=y, b=add))


@_mix.register
def _(mixer: Mamba2, build: _Builder, x: Span, add: Span) -> Span:
    config, inner = mixer.config, mixer.inner
    shared = config.groups * config.state_size
    projected = build.linear(x, mixer.in_proj.weight, mixer.in_proj.bias)
    gate, channels, dt = projected.split(inner, mixer.channels, mixer.num_heads)
    ring = build.ring(mixer, mixer.conv_weight, mixer.conv_bias, mixer.dilations)
    convolved = build.put(Convolve(out=build.vector(mixer.channels), x=channels, ring=ring))
    values, B, C = build.put(Silu(out=build.vector(mixer.channels), x=convolved)).split(inner, shared, shared)
    mixed = build.put(
        StateSpace(
            out=build.vector(inner),
            x=values,
            dt=dt,
            B=B,
            C=C,
            A=-torch.exp(_plain(mixer.A_log)),
            D=_plain(mixer.D),
            dt_bias=_plain(mixer.dt_bias),
            dt_limit=config.dt_limit,
            groups=config.groups,
            hidden=build.memory("hidden", mixer.num_heads, mixer.head_dim, config.state_size),
        )
    )
    gated = build.put(Multiply(out=build.vector(inner), a=gate, b=mixed, silu=True))
    weight, eps = _plain(mixer.norm.weight), mixer.norm.eps
    normed = build.put(
        Norm(out=build.vector(inner), x=gated, kind="rms", weight=weight, bias=None, eps=eps, groups=mixer.norm.groups)
    )
    return build.linear(normed, mixer.out_proj.weight, mixer.out_proj.bias, add)


def _block(block: Block, build: _Builder, x: Span) -> Span:
    """Appends a block, as `Block.step`."""
    before = build.norm(x, block.mixer_norm) if block.is_pre_norm else x
    x = _mix(block.mixer, build, before, x)
    if not block.is_pre_norm:
        x = build.norm(x, block.mixer_norm)
    if block.feed_forward is None:
        return x
    if not isinstance(block.feed_forward, FeedForward):
        raise CannotLowerError(
            f"a feed-forward that is a {type(block.feed_forward).__name__} cannot be lowered: use the torch engine"
        )
    assert block.feed_forward_norm is not None
    inner = build.norm(x, block.feed_forward_norm) if block.is_pre_norm else x
    gate, up, down = block.feed_forward.gate_proj, block.feed_forward.up_proj, block.feed_forward.down_proj
    width = gate.out_features
    first, second = build.linear(inner, torch.cat([_plain(gate.weight), _plain(up.weight)]), None).split(width, width)
    wide = build.put(Multiply(out=build.vector(width), a=first, b=second, silu=True))
    x = build.linear(wide, down.weight, None, x)
    return x if block.is_pre_norm else build.norm(x, block.feed_forward_norm)


def lower(model: SeqmixForCausalLM) -> Program:
    """The program of `model.step` for one sequence, with the weights as they are now, in float32.

    Raises:
        CannotLowerError: a mixer for which no operations are known.
    """
    build = _Builder()
    config = model.config
    table = cast(nn.Embedding, model.model.embed_tokens).weight
    x = build.put(Embed(out=build.vector(config.hidden_size), table=_plain(table)))
    if config.embedding_position not in ("none", "rope"):
        raise CannotLowerError(
            f"embedding_position {config.embedding_position!r} cannot be lowered: use the torch engine"
        )
    if config.embedding_position == "rope":
        x = build.rotate(x, Angles(config.hidden_size, config.rope_theta))
    for layer, block in enumerate(model.model.layers):
        build.layer = layer
        x = _block(cast(Block, block), build, x)
    if not isinstance(model.model.norm, nn.Identity):
        x = build.norm(x, model.model.norm)
    logits = build.linear(x, model.lm_head.weight, model.lm_head.bias)
    return Program(
        vocab_size=config.vocab_size,
        operations=tuple(build.operations),
        logits=logits,
        rings=tuple(build.rings),
        caches=tuple(build.caches),
        memories=tuple(build.memories),
        angles=tuple(build.angles),
    )
