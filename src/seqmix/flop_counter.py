"""Counts the FLOPs of products and convolutions while PyTorch runs them.

torch's own counter ignores the groups of a convolution's backward, gives attention on a CPU nothing and causal
attention twice its links, and skips matrix-vector products and fused LSTMs. Element-wise work, scans and Fourier
transforms are no products and count nothing here, and neither does what a backward pass computes again to hold less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from seqmix.kernels import delta_rule
from seqmix.kernels.recompute import is_computing_again

aten = torch.ops.aten
Formula = Callable[..., int]


def _mm(a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return _mm(a, b)


def _bmm(a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return 2 * a.numel() * b.shape[2]


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return _bmm(a, b)


def _mv(a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return 2 * a.numel()


def _addmv(bias: Tensor, a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    return 2 * a.numel()


def _solve_triangular(a: Tensor, b: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Each right-hand side of n numbers takes n² / 2 multiply-adds."""
    return a.shape[-1] * b.numel()


def _convolution_flops(
    weight: Tensor, input_shape: Sequence[int], output_shape: Sequence[int], transposed: bool
) -> int:
    """Every weight, one group's inputs wide, meets every output position; every input position when transposed."""
    places = input_shape if transposed else output_shape
    return 2 * places[0] * prod(places[2:]) * weight.numel()


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
    out: Tensor,
) -> int:
    return _convolution_flops(weight, x.shape, out.shape, transposed)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out: Any,
) -> int:
    """The gradients of input and weight each take the products of the forward pass once more."""
    return sum(output_mask[:2]) * _convolution_flops(weight, x.shape, grad.shape, transposed)


def _attention_links(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> int:
    """(target, source) pairs over batch and heads: a boolean mask's True, an additive one's finite entries."""
    targets, sources = query.shape[-2], key.shape[-2]
    lead = query.shape[:-2]
    if is_causal:
        return prod(lead) * sum(min(target + 1, sources) for target in range(targets))
    if mask is None:
        return prod(lead) * targets * sources
    kept = mask if mask.dtype == torch.bool else mask != -torch.inf
    return int(kept.expand(*lead, targets, sources).sum())


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, links: int) -> int:
    return 2 * links * (query.shape[-1] + value.shape[-1])


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
) -> int:
    """The scores once more, the gradients of query and key (head width each), of weights and values (value width)."""
    links = _attention_links(query, key, mask, is_causal)
    return 2 * links * (3 * query.shape[-1] + 2 * value.shape[-1])


def _cpu_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Any,
    logsumexp: Any,
    dropout: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    **kwargs: Any,
) -> int:
    return _attention_backward(grad, query, key, value, attn_mask, is_causal)


def _lstm_layer(x: Tensor, weight_input: Tensor, weight_hidden: Tensor, *rest: Any, **kwargs: Any) -> int:
    """Both products of an LSTM's layer, for each of the (time, batch) positions."""
    return 2 * x.shape[0] * x.shape[1] * (weight_input.numel() + weight_hidden.numel())


def _lstm_layer_backward(x: Tensor, weight_input: Tensor, weight_hidden: Tensor, *rest: Any, **kwargs: Any) -> int:
    return 2 * _lstm_layer(x, weight_input, weight_hidden)


_FORMULAS: dict[Any, Formula] = {
    aten.mm: _mm,
    aten.addmm: _addmm,
    aten.bmm: _bmm,
    aten.baddbmm: _baddbmm,
    aten.mv: _mv,
    aten.addmv: _addmv,
    aten.dot: _mv,
    aten.vdot: _mv,
    aten.linalg_solve_triangular: _solve_triangular,
    aten.mkldnn_rnn_layer: _lstm_layer,
    aten.mkldnn_rnn_layer_backward: _lstm_layer_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


def _head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
) -> int:
    """The logits, and each gradient that is taken along."""
    return (1 + wants_hidden + wants_weight) * _mm(hidden, weight.t())


def _head_token_losses(hidden: Tensor, weight: Tensor, *rest: Any) -> int:
    return _mm(hidden, weight.t())


def _head_token_losses_backward(grad: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> int:
    """The logits once more, and each gradient."""
    return (1 + rest[-2] + rest[-1]) * _mm(hidden, weight.t())


def _depthwise_conv(x: Tensor, weight: Tensor, *rest: Any) -> int:
    return 2 * x.shape[0] * x.shape[1] * weight.numel()


def _depthwise_conv_weight_gradient(grad: Tensor, x: Tensor, kernel: int, *rest: Any) -> int:
    return 2 * grad.numel() * kernel


def _swiglu_depthwise_conv(x: Tensor, gates: Tensor, weight: Tensor, *rest: Any) -> int:
    return _depthwise_conv(x, weight)


def _gated_depthwise_conv_backward(grad: Tensor, *rest: Any) -> int:
    """The gradients of input and weights; the forward's products that are formed once more are not the model's."""
    weight = next(part for part in rest if part.dim() == 2)
    return 2 * _depthwise_conv(grad, weight)


def _dynamic_conv(padded: Tensor, weight: Tensor) -> int:
    """Every tap of a head and position meets the head's channels."""
    return 2 * weight[..., 0, :].numel() * padded.shape[2]


def _dynamic_conv_backward(grad: Tensor, padded: Tensor, weight: Tensor) -> int:
    return 2 * _dynamic_conv(padded, weight)


def _recurrent_loop(gates: Tensor, weight: Tensor, *rest: Any) -> int:
    """Every position's memory meets W_hh; a backward's first argument has the same batch and time."""
    return 2 * gates.shape[0] * gates.shape[1] * weight.numel()


def _recurrent_loop_backward(grad: Tensor, weight: Tensor, *rest: Any) -> int:
    """The gradients of memories and weights; the activations that are formed once more are not the model's."""
    return 2 * _recurrent_loop(grad, weight)


def _state_space_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, runs: Any, chunk: int
) -> int:
    """As the chunked form computes it, whose chunks are as equal as can be: scores, inside, states and reading."""
    (batch, time, heads, width), (groups, size) = x.shape, B.shape[2:]
    count = -(-time // chunk)
    length = -(-time // count)
    return 2 * batch * count * length * (length * (groups * size + heads * width) + 2 * heads * width * size)


def _tiled_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> int:
    return 2 * rest[-1] * q.shape[1] * (q.shape[-1] + v.shape[-1])


def _tiled_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> int:
    return 2 * rest[-1] * q.shape[1] * (3 * q.shape[-1] + 2 * v.shape[-1])


def _delta_rule(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    state: Tensor,
    runs: Any,
    chunk: int,
    *rest: Any,
) -> int:
    """As the chunked form computes it."""
    batch, time, heads, width = r.shape
    return batch * delta_rule.scan_flops(time, heads, width, v.shape[3], chunk)


_FORMULAS_BY_NAME: dict[str, Formula] = {
    "seqmix::delta_rule": _delta_rule,
    "seqmix::depthwise_conv": _depthwise_conv,
    "seqmix::depthwise_conv_input_gradient": _depthwise_conv,
    "seqmix::depthwise_conv_weight_gradient": _depthwise_conv_weight_gradient,
    "seqmix::gated_depthwise_conv": _depthwise_conv,
    "seqmix::gated_depthwise_conv_backward": _gated_depthwise_conv_backward,
    "seqmix::swiglu_depthwise_conv": _swiglu_depthwise_conv,
    "seqmix::swiglu_depthwise_conv_backward": _gated_depthwise_conv_backward,
    "seqmix::dynamic_conv": _dynamic_conv,
    "seqmix::dynamic_conv_backward": _dynamic_conv_backward,
    "seqmix::linear_cross_entropy": _head_loss,
    "seqmix::linear_token_losses": _head_token_losses,
    "seqmix::linear_token_losses_backward": _head_token_losses_backward,
    "seqmix::elman_loop": _recurrent_loop,
    "seqmix::elman_loop_backward": _recurrent_loop_backward,
    "seqmix::gru_loop": _recurrent_loop,
    "seqmix::gru_loop_backward": _recurrent_loop_backward,
    "seqmix::lstm_loop": _recurrent_loop,
    "seqmix::lstm_loop_backward": _recurrent_loop_backward,
    "seqmix::state_space_scan": _state_space_scan,
    "seqmix::tiled_attention": _tiled_attention,
    "seqmix::tiled_attention_backward": _tiled_attention_backward,
}
"""Operations of seqmix's kernels: they hide their products, and exist only once their module is imported."""

_FORMULAS_WITH_OUTPUT: dict[Any, Formula] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.cudnn_convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}


class FlopCounter:
    """Counts while it is entered; `total` is the FLOPs, `by_operation` splits them.

        with FlopCounter() as counter:
            mixer(x)
        counter.total

    Scaled dot-product attention is counted where it is called, by its links, whichever way PyTorch then takes.
    """

    def __init__(self) -> None:
        self.by_operation: Counter[str] = Counter()
        self._paused = False

    @property
    def total(self) -> int:
        """All FLOPs so far; a multiply-add is two."""
        return sum(self.by_operation.values())

    def summary(self) -> str:
        """The operations and their FLOPs in one line."""
        return ", ".join(f"{name} {count}" for name, count in self.by_operation.most_common()) or "no product at all"

    def __enter__(self) -> Self:
        self._calls, self._operations = _CallMode(self), _OperationMode(self)
        self._calls.__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._operations.__exit__(*details)
        self._calls.__exit__(*details)


class _CallMode(TorchFunctionMode):
    """Sees the calls of attention, before PyTorch chooses how to compute it."""

    def __init__(self, counter: FlopCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, mask, is_causal = _attention_arguments(*args, **kwargs)
        with torch.no_grad():
            self.counter._paused = True
            flops = _attention_flops(query, key, value, _attention_links(query, key, mask, is_causal))
        try:
            return func(*args, **kwargs)
        finally:
            self.counter._paused = False
            self.counter.by_operation["attention"] += flops


def _attention_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    return query, key, value, attn_mask, is_causal


class _OperationMode(TorchDispatchMode):
    """Sees every operation that PyTorch runs, forward and backward."""

    def __init__(self, counter: FlopCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, name = func._overloadpacket, func._schema.name
        known = packet in _FORMULAS or packet in _FORMULAS_WITH_OUTPUT or name in _FORMULAS_BY_NAME
        # Without autograd, composite operations such as linear arrive here whole.
        if not known and not self.counter._paused and func._can_decompose():
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        if self.counter._paused or is_computing_again():
            return out
        if packet in _FORMULAS:
            self.counter.by_operation[packet.__name__] += _FORMULAS[packet](*args, **kwargs)
        elif name in _FORMULAS_BY_NAME:
            self.counter.by_operation[packet.__name__] += _FORMULAS_BY_NAME[name](*args, **kwargs)
        elif packet in _FORMULAS_WITH_OUTPUT:
            self.counter.by_operation[packet.__name__] += _FORMULAS_WITH_OUTPUT[packet](*args, **kwargs, out=out)
        return out
