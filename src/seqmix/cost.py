"""What a computation costs, in FLOPs, parameters and bytes: the ground that everything else adds up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a forward pass over `batch` rows of `time` positions.

    product_flops: multiply-adds of matrix products, convolutions and scans, counted as two FLOPs each and
        exactly (a causal attention has T(T+1)/2 links; a chunked scan counts what its algorithm does).
    other_flops: element-wise work (norms, activations, gates), approximate.
    parameters: trainable numbers, independent of batch and time.
    state_bytes: the bytes of the state after `time` positions, for all rows.
    bytes_moved: the least that must be read and written: weights, input, output and state.
    """

    product_flops: int = 0
    other_flops: int = 0
    parameters: int = 0
    state_bytes: int = 0
    bytes_moved: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            product_flops=self.product_flops + other.product_flops,
            other_flops=self.other_flops + other.other_flops,
            parameters=self.parameters + other.parameters,
            state_bytes=self.state_bytes + other.state_bytes,
            bytes_moved=self.bytes_moved + other.bytes_moved,
        )

    @property
    def flops(self) -> int:
        """All FLOPs of the forward pass."""
        return self.product_flops + self.other_flops


def linear_flops(positions: int, inputs: int, outputs: int) -> int:
    """Product FLOPs of a linear layer applied to `positions` vectors."""
    return 2 * positions * inputs * outputs


def causal_links(time: int, window: int | None = None) -> int:
    """Number of (target, source) pairs of a causal mixer over `time` positions, itself included."""
    if window is None or window >= time:
        return time * (time + 1) // 2
    return window * (window + 1) // 2 + (time - window) * window
