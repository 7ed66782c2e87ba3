"""Linear attention: sums of key (outer) value, read by queries.

The causal sum without a norm is `kernels/state_space` with steps of 1 and a constant decay. Here stand the sum over a
whole document, `attend_both_ways`, and the causal one of exponential features, `exponential_attention`, which never
overflows: `reference.py` is its specification, a loop, and `chunked.py` its fast form.
"""

from __future__ import annotations

from seqmix.kernels.linear_attention.both_ways import attend_both_ways
from seqmix.kernels.linear_attention.exponential import (
    exponential_attention,
    exponential_attention_both_ways,
    exponential_attention_flops,
    exponential_attention_step,
    exponential_weights,
)

__all__ = [
    "attend_both_ways",
    "exponential_attention",
    "exponential_attention_both_ways",
    "exponential_attention_flops",
    "exponential_attention_step",
    "exponential_weights",
]
