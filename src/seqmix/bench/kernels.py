"""The depthwise convolution, each implementation beside those of others and beside what the machine does at best.

Shapes: B batch, T time, D channels, K kernel. Everything reads and writes (batch, time, dim).

The arithmetic of one pass is 2·B·T·D·K operations; forward and backward make three passes (the output, the gradient of
the input, that of the weights). Besides, a pass reads and writes tensors of B·T·D values: 2 in forward, 2 more for the
gradient of the input, 2 more for that of the weights. The floor "with the layout counted" is the arithmetic at the
matrix product's rate plus those tensors at the memory's rate, both measured in the same rounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seqmix.bench import floors, peers
from seqmix.bench.collect import Case, Row, Watch, collect
from seqmix.bench.peers import Convolution
from seqmix.bench.timing import quartiles, ratio, take_turns, with_threads
from seqmix.compare.progress import Display
from seqmix.errors import InputError
from seqmix.kernels import depthwise_conv
from seqmix.kernels.depthwise_conv import IMPLEMENTATIONS
from seqmix.kernels.library import library
from seqmix.training.memory import freed_memory_kept

DEFAULT_SIZES = ("8x1024x512:32:1", "8x1024x512:32:8", "8x1024x512:4:1", "1x16384x512:32:64", "1x16384x512:4:1")
PEER = "torch conv1d"
"""What the first ratio is formed against: it is installed wherever seqmix is."""

CHECKED_CHANNELS = 32

PASSES = {
    "forward": (1, 2),
    "forward and backward": (3, 6),
    "weight gradient": (1, 2),
    "input gradient": (1, 2),
}
"""Of each: passes of arithmetic, and tensors of B·T·D values that must be read or written."""


@dataclass(frozen=True, kw_only=True)
class ConvSize:
    """A convolution of x (batch, time, dim) with weight (dim, kernel)."""

    batch: int
    time: int
    dim: int
    kernel: int
    dilation: int = 1

    @property
    def flops(self) -> float:
        """Operations of one pass, a multiply-add counted as two."""
        return 2.0 * self.batch * self.time * self.dim * self.kernel

    def __str__(self) -> str:
        return f"{self.batch}x{self.time}x{self.dim}:{self.kernel}:{self.dilation}"


def parse_size(text: str) -> ConvSize:
    """A size from BATCHxTIMExDIM:KERNEL or BATCHxTIMExDIM:KERNEL:DILATION, such as 8x1024x512:32:8."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+):(\d+)(?::(\d+))?", text.strip())
    numbers = [int(number) for number in match.groups(default="1")] if match else [0]
    if min(numbers) < 1:
        raise InputError(
            f"size {text!r} is not a convolution: write BATCHxTIMExDIM:KERNEL:DILATION with numbers from 1 on, such as "
            "8x1024x512:32:8"
        )
    batch, time, dim, kernel, dilation = numbers
    return ConvSize(batch=batch, time=time, dim=dim, kernel=kernel, dilation=dilation)


def our_convolutions(device: torch.device) -> dict[str, Convolution]:
    """The implementations of seqmix that run on a device, by name; the reference is not made to be fast."""
    missing = {"reference"}
    if device.type != "cpu" or library() is None:
        missing.add("native")
    if device.type != "cuda":
        missing.add("triton")
    return {f"seqmix {name}": partial(_ours, implementation=name) for name in IMPLEMENTATIONS if name not in missing}


def _ours(x: Tensor, weight: Tensor, dilation: int, implementation: str) -> Tensor:
    return depthwise_conv(x, weight, dilation=dilation, implementation=implementation, keep_state=False)[0]


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """One convolution's input, and what its gradient is asked with."""

    size: ConvSize
    x: Tensor
    weight: Tensor
    grad: Tensor

    @classmethod
    def draw(cls, size: ConvSize, device: torch.device, dtype: torch.dtype) -> _Problem:
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (size.batch, size.time, size.dim)
        return cls(
            size=size,
            x=torch.randn(shape, **options).requires_grad_(),
            weight=torch.randn(size.dim, size.kernel, **options).requires_grad_(),
            grad=torch.randn(shape, **options),
        )

    def answers(self, conv: Convolution) -> tuple[Tensor, Tensor, Tensor]:
        """The output and the gradients of x and weight."""
        y = conv(self.x, self.weight, self.size.dilation)
        x_grad, weight_grad = torch.autograd.grad(y, (self.x, self.weight), self.grad)
        return y.detach(), x_grad, weight_grad

    def passes(self, conv: Convolution) -> dict[str, Callable[[], object]]:
        """The work of each of `PASSES`. The gradients alone walk a graph that was recorded before."""
        dilation = self.size.dilation

        def forward() -> None:
            with torch.no_grad():
                conv(self.x, self.weight, dilation)

        to_weight = conv(self.x.detach(), self.weight, dilation)
        to_x = conv(self.x, self.weight.detach(), dilation)
        return {
            "forward": forward,
            "forward and backward": partial(self.answers, conv),
            "weight gradient": lambda: torch.autograd.grad(to_weight, self.weight, self.grad, retain_graph=True),
            "input gradient": lambda: torch.autograd.grad(to_x, self.x, self.grad, retain_graph=True),
        }


def _checked(problem: _Problem, sides: Mapping[str, Convolution], watch: Watch) -> dict[str, Convolution]:
    """The sides that compute the right thing; a wrong result is never timed.

    The truth is the reference in float64, on some channels, which do not know of each other. A sum of n products in any
    order is within n·eps·(sum of the products' sizes) of it, and storing it rounds once more.
    """
    channels = torch.linspace(0, problem.size.dim - 1, CHECKED_CHANNELS, device=problem.x.device).long().unique()
    exact, sizes = _reference(problem, channels), _reference(problem, channels, absolute=True)
    terms = (problem.size.kernel, problem.size.kernel, problem.size.batch * problem.size.time)
    stored = torch.finfo(problem.x.dtype).eps
    right: dict[str, Convolution] = {}
    for name, conv in sides.items():
        try:
            y, x_grad, weight_grad = problem.answers(conv)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            watch.leave_out(f"{name} at {problem.size}", f"it failed: {' '.join(str(error).split())[:200]}")
            continue
        found = (y[:, :, channels], x_grad[:, :, channels], weight_grad[channels])
        excess = max(
            float(((got.double() - true).abs() / (size * (count * torch.finfo(torch.float32).eps + stored))).max())
            for got, true, size, count in zip(found, exact, sizes, terms, strict=True)
        )
        if excess <= 1:
            right[name] = conv
        else:
            watch.leave_out(f"{name} at {problem.size}", f"its result is wrong by {excess:.3g} times the rounding band")
    return right


def _reference(problem: _Problem, channels: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The exact answers of some channels, or with `absolute` those of the sizes of all numbers."""

    def exact(value: Tensor) -> Tensor:
        wide = value.detach().double()
        return wide.abs() if absolute else wide

    copy = _Problem(
        size=problem.size,
        x=exact(problem.x[:, :, channels]).requires_grad_(),
        weight=exact(problem.weight[channels]).requires_grad_(),
        grad=exact(problem.grad[:, :, channels]),
    )
    found = copy.answers(partial(_ours, implementation="reference"))
    # A value that is a sum of nothing has no rounding error at all.
    return tuple(value.clamp_min(1e-300) for value in found) if absolute else found  # type: ignore[return-value]


def _synchronize(device: torch.device) -> Callable[[], None] | None:
    return torch.cuda.synchronize if device.type == "cuda" else None


def _measure(size: ConvSize, device: torch.device, dtype: torch.dtype, rounds: int, watch: Watch) -> list[Row]:
    """Rows of one size: one for each implementation and pass."""
    problem = _Problem.draw(size, device, dtype)
    watch.show(0.0, "checking results")
    ours = _checked(problem, our_convolutions(device), watch)
    others = _checked(problem, peers.convolutions(device, size.kernel, size.dilation), watch)
    sides = {**ours, **others}
    if not sides:
        return []
    products, reads = floors.products(device, dtype), floors.reads(device)
    work = {name: problem.passes(conv) for name, conv in sides.items()}
    rows: list[Row] = []
    for index, kind in enumerate(PASSES):
        part = watch.part(index, len(PASSES), kind)
        times = take_turns(
            {
                **{name: work[name][kind] for name in sides},
                **{name: floor.run for name, floor in {**products, **reads}.items()},
            },
            # The same work goes before each side, so that all find alike caches and clocks.
            prepare=dict.fromkeys(sides, next(iter(products.values())).run),
            rounds=rounds,
            synchronize=_synchronize(device),
            budget_seconds=part.budget_seconds,
            show=part.progress(kind),
        )
        product = floors.rates(products, times)
        read = floors.rates(reads, times)
        rows += [
            {
                "size": asdict(size),
                "pass": kind,
                "implementation": name,
                "faster_than": {other: ratio(times, other, name).to_dict() for other in others if other != name},
                **_shares(size, dtype, kind, times[name], product, read),
            }
            for name in sides
        ]
    return rows


def _shares(
    size: ConvSize, dtype: torch.dtype, kind: str, seconds: Sequence[float], product: list[float], read: list[float]
) -> Row:
    """Rates of one pass, and as shares of the product's rate, the memory's and of the floor, round by round."""
    passes, tensors = PASSES[kind]
    giga_operations = passes * size.flops / 1e9
    giga_bytes = tensors * size.batch * size.time * size.dim * dtype.itemsize / 1e9

    def share(values: Sequence[float]) -> dict[str, float]:
        return quartiles(values).to_dict()

    rounds = list(zip(seconds, product, read, strict=True))
    return {
        "milliseconds": quartiles(1e3 * spent for spent in seconds).to_dict(),
        "gflops": quartiles(giga_operations / spent for spent in seconds).to_dict(),
        "share_of_product": share([giga_operations / spent / rate for spent, rate, _ in rounds]),
        "share_of_read": share([giga_bytes / spent / rate for spent, _, rate in rounds]),
        "share_of_floor": share([(giga_operations / fast + giga_bytes / wide) / spent for spent, fast, wide in rounds]),
        "product_gflops": quartiles(product).to_dict(),
        "read_gigabytes_per_second": quartiles(read).to_dict(),
    }


def bench_kernels(
    display: Display,
    *,
    sizes: Sequence[str] = DEFAULT_SIZES,
    threads: int | None = None,
    rounds: int = 15,
    budget_seconds: float | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Row:
    """Times the depthwise convolution at some sizes; see `collect` for the document.

    Of a row: size, pass (one of `PASSES`), implementation, faster_than (by the peer's name: its time over ours,
    formed round by round), milliseconds, gflops, share_of_product, share_of_read, share_of_floor, and the two rates
    of the machine; each with median, low and high quartile.

    Raises:
        InputError: a size that cannot be read, or no size.
    """
    parsed = [parse_size(size) for size in sizes]
    if not parsed:
        raise InputError(f"there are 0 sizes: give at least one, such as {DEFAULT_SIZES[0]}")
    dtype = getattr(torch, precision)
    cases = [Case(label=str(size), run=partial(_measure, size, torch.device(device), dtype, rounds)) for size in parsed]
    torch.manual_seed(0)
    # All sides take memory that was used before, as a training step does, and not the system's pages.
    with with_threads(threads) as used, freed_memory_kept(torch.device(device)):
        settings = {"sizes": list(map(str, parsed)), "threads": used, "rounds": rounds, "precision": precision}
        return collect("kernels", cases, display, settings=settings, budget_seconds=budget_seconds, device=device)
