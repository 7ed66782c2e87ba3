"""The sections of gpu.py that time: convolution, training, decoding, the loss, and the sizes of our GPU programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import Bench, milliseconds
from torch import Tensor
from torch.nn import functional as F

import seqmix
from seqmix.bench import peers
from seqmix.bench.peak import TrainingSize
from seqmix.bench.timing import quartiles, ratio
from seqmix.bench.train import TrainingStep
from seqmix.generation.cuda_graph import Capture, GraphDecoder
from seqmix.kernels import depthwise_conv
from seqmix.kernels.cross_entropy import linear_cross_entropy
from seqmix.kernels.depthwise_conv import triton as triton_convolution
from seqmix.kernels.depthwise_conv import triton_sizes
from seqmix.kernels.state_space import installed

OURS = "ours"
FORWARD_BYTES, BOTH_BYTES = 2, 5
"""Times that a tensor of the size of x must pass memory: x, y; and x, grad y, grad x for the gradients."""


def our_convolution(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return depthwise_conv(x, weight, dilation=dilation, implementation="triton")[0]


def copy_rate(bench: Bench) -> float:
    """Bytes per second, read and written, of a copy within the device's memory, far beyond its caches."""
    source = torch.empty(bench.size(2**29, 2**16), device=bench.device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    seconds = quartiles(bench.seconds_of({"copy": lambda: target.copy_(source)})["copy"]).median
    return 2 * source.numel() * source.element_size() / seconds


def time_convolution(bench: Bench) -> dict[str, Any]:
    """Ours beside torch's and what is installed, forward and with all gradients, in bfloat16; shares of a copy's rate.

    The large tensors do not fit in the caches; (8, 1024, 512) does.
    """
    rate = copy_rate(bench)
    bench.notes["copy_terabytes_per_second"] = rate / 1e12
    large, small = bench.size((8, 8192, 1024), (2, 6, 4)), bench.size((8, 1024, 512), (1, 5, 3))
    cases = [("K=4", large, 4, 1), ("K=32, dilation 1", large, 32, 1), ("K=32, dilation 8", large, 32, 8)]
    cases += [(f"{name}, (8, 1024, 512)", small, kernel, dilation) for name, _, kernel, dilation in cases]
    for name, shape, kernel, dilation in cases[:: bench.size(1, 3)]:
        kernel = bench.size(kernel, min(kernel, 4))
        bench.notes[name] = _convolution_case(bench, shape, kernel, dilation, rate)
    return {"not installed": [one for one in ("fla", "causal_conv1d") if not peers.is_installed(one)]}


def _convolution_case(
    bench: Bench, shape: tuple[int, int, int], kernel: int, dilation: int, rate: float
) -> dict[str, Any]:
    x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(shape[2], kernel, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn_like(x)
    sides = {OURS: our_convolution, **peers.convolutions(bench.device, kernel, dilation)}
    found: dict[str, Any] = {"shape": list(shape), "left_out": {}}
    for name in list(sides):
        try:
            sides[name](x, weight, dilation)
        except Exception as error:  # noqa: BLE001 - a peer that cannot do it is left out with its reason
            found["left_out"][name] = f"{type(error).__name__}: {str(error)[:200]}"
            del sides[name]

    def forward(convolve: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                convolve(x, weight, dilation)

        return run

    def both(convolve: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(convolve(x, weight, dilation), (x, weight), grad)

    for part, wrap, passes in (("forward", forward, FORWARD_BYTES), ("both", both, BOTH_BYTES)):
        times = bench.seconds_of({name: wrap(side) for name, side in sides.items()})
        moved = passes * x.numel() * x.element_size()
        found[part] = {
            "milliseconds": milliseconds(times),
            "faster_than": {name: ratio(times, name, OURS).median for name in sides if name != OURS},
            "share_of_copy": moved / quartiles(times[OURS]).median / rate,
        }
    return found


def _training_size(bench: Bench, model: str) -> TrainingSize:
    return TrainingSize(
        model=model,
        params=bench.size("130M", "20k"),
        vocab_size=bench.size(32000, 50),
        context=bench.size(8192, 8),
        batch_size=bench.size(4, 1),
        threads=torch.get_num_threads(),
        device=bench.device.type,
        precision="bfloat16",
    )


class _FlaStep:
    """A training step of flash-linear-attention's own Mamba-2 model, as `TrainingStep` does it for ours."""

    def __init__(self, bench: Bench) -> None:
        from fla.models import Mamba2Config, Mamba2ForCausalLM

        size = _training_size(bench, "mamba2")
        config = Mamba2Config(hidden_size=768, num_hidden_layers=24, vocab_size=size.vocab_size)
        self.model = Mamba2ForCausalLM(config).to(bench.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.tokens = torch.randint(size.vocab_size, (size.batch_size, size.context), device=bench.device)

    def __call__(self) -> None:
        with torch.autocast(self.tokens.device.type, torch.bfloat16):
            loss = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _set_up(
    bench: Bench, makers: dict[str, Callable[[], Callable[[], object]]]
) -> tuple[dict[str, Callable[[], object]], dict[str, int], dict[str, str]]:
    """The sides that work, the most memory of two steps of each, and why others were left out."""
    sides: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        bench.tidy()
        before = bench.allocated()
        bench.reset_peak()
        try:
            side = make()
            for _ in range(2):
                side()
            bench.wait()
        except Exception as error:  # noqa: BLE001 - such as a model that has no room
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        sides[name], peaks[name] = side, bench.peak() - before
    return sides, peaks, left_out


def time_training(bench: Bench) -> dict[str, Any]:
    """A training step of models of one size at a long context, in bfloat16: time, and the most memory."""
    names = bench.size(("gated_conv", "convsamba", "mamba2", "hf-llama"), ("gated_conv", "mamba2"))
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        name: lambda name=name: TrainingStep(_training_size(bench, name)) for name in names
    }
    if peers.is_installed("fla"):
        makers["fla Mamba-2"] = lambda: _FlaStep(bench)
    sides, peaks, left_out = _set_up(bench, makers)
    bench.notes.update(peak_memory_bytes=peaks, left_out=left_out)
    if not peers.is_installed("fla"):
        left_out["fla Mamba-2"] = "not installed"
    times = bench.seconds_of(sides, rounds=5)
    size = _training_size(bench, "gated_conv")
    tokens = size.batch_size * size.context
    scans = [name for name in installed.KERNELS if installed.kernel(name) is not None]
    return {
        "tokens_a_step": tokens,
        "scan_of_mamba2": bench.size([*scans, "chunked"][0], "chunked"),
        "milliseconds": milliseconds(times),
        "tokens_per_second": {name: tokens / quartiles(values).median for name, values in times.items()},
        "faster_than": {name: ratio(times, name, "gated_conv").median for name in sides if name != "gated_conv"},
    }


def time_compiled_training(bench: Bench) -> dict[str, Any]:
    """gated_conv with torch.compile beside itself without."""
    plain = TrainingStep(_training_size(bench, "gated_conv"))
    compiled = TrainingStep(_training_size(bench, "gated_conv"))
    if not bench.is_rehearsal:
        compiled.model.forward = torch.compile(compiled.model.forward)  # type: ignore[method-assign]
    times = bench.seconds_of({"plain": plain, "compiled": compiled}, rounds=5)
    return {"milliseconds": milliseconds(times), "compiled_is_faster": ratio(times, "plain", "compiled").median}


@torch.no_grad()
def time_decode(bench: Bench) -> dict[str, Any]:
    """One more token, a single row, in bfloat16: through the CUDA graph, and eager; behind a prompt read before."""
    capture: Capture | None = (lambda function: function) if bench.is_rehearsal else None
    room, prompt = bench.size(8192, 16), bench.size(4096, 6)
    sides: dict[str, Callable[[], object]] = {}
    left_out: dict[str, str] = {}
    for name in bench.size(("gated_conv", "convsamba", "mamba2", "transformer"), ("gated_conv", "mamba2")):
        try:
            with torch.device(bench.device):
                params, vocab = bench.size("130M", "20k"), bench.size(32000, 50)
                model = seqmix.create_model(name, vocab_size=vocab, params=params, context=room).eval().bfloat16()
                tokens = torch.randint(vocab, (1, prompt))
                _, state = model.prefill(tokens, capacity=room)
                decoder = GraphDecoder(model, 1, room, capture=capture)
        except Exception as error:  # noqa: BLE001 - one model's failure must not cost the others
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        token = tokens[:, 0].clone()
        sides[f"{name}, graph"] = _Graph(decoder, token, state)
        sides[f"{name}, eager"] = _Eager(model, token, state)
    left_out["fla Mamba-2"] = "not measured" if peers.is_installed("fla") else "not installed"
    bench.notes["left_out"] = left_out
    times = bench.seconds_of(sides)
    ours = "gated_conv, graph"
    graphs = [name.removesuffix(", graph") for name in sides if name.endswith(", graph")]
    return {
        "prompt": prompt,
        "milliseconds": milliseconds(times),
        "tokens_per_second": {name: 1 / quartiles(values).median for name, values in times.items()},
        "graph_over_eager": {name: ratio(times, f"{name}, eager", f"{name}, graph").median for name in graphs},
        "faster_than": {name: ratio(times, f"{name}, graph", ours).median for name in graphs if name != "gated_conv"},
    }


STEPS = 1024
"""Steps from one state, before decoding begins there again; room must be left for them."""


class _Eager:
    """Steps one after another from a state."""

    def __init__(self, model: Any, token: Tensor, state: Any) -> None:
        self.model, self.token, self.first, self.count = model, token, state.clone(), 0
        self.state = state.clone()

    @torch.no_grad()
    def __call__(self) -> None:
        if self.count == STEPS:
            self.state, self.count = self.first.clone(), 0
        _, self.state = self.model.step(self.token, self.state)
        self.count += 1


class _Graph:
    """The same through a decoder."""

    def __init__(self, decoder: GraphDecoder, token: Tensor, state: Any) -> None:
        self.decoder, self.token, self.first, self.count = decoder, token, state.clone(), 0
        decoder.load_state(self.first)

    def __call__(self) -> None:
        if self.count == STEPS:
            self.decoder.load_state(self.first)
            self.count = 0
        self.decoder.step(self.token)
        self.count += 1


def time_cross_entropy(bench: Bench) -> dict[str, Any]:
    """The loss of a head over a large vocabulary, with its gradients: ours in chunks beside all logits at once."""
    tokens, dim, vocab = bench.size((16384, 1024, 128256), (32, 8, 50))
    hidden = torch.randn(tokens, dim, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocab, dim, device=bench.device, dtype=torch.bfloat16) / dim**0.5).requires_grad_()
    targets = torch.randint(vocab, (tokens,), device=bench.device)

    def whole() -> None:
        loss = F.cross_entropy(F.linear(hidden, weight).float(), targets)
        torch.autograd.grad(loss, (hidden, weight))

    def chunked() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))

    peaks = {}
    for name, run in (("whole", whole), ("chunked", chunked)):
        bench.tidy()
        before = bench.allocated()
        run()
        bench.wait()
        peaks[name] = bench.peak() - before
    times = bench.seconds_of({"whole": whole, "chunked": chunked}, rounds=5)
    return {
        "tokens": tokens,
        "vocabulary": vocab,
        "milliseconds": milliseconds(times),
        "peak_memory_bytes": peaks,
        "chunked_is_faster": ratio(times, "whole", "chunked").median,
    }


def sweep(bench: Bench) -> dict[str, Any]:
    """Other sizes of our GPU programs, for whoever sets those in `triton_sizes.py`: milliseconds, fastest first."""
    shape = bench.size((8, 8192, 1024), (1, 5, 4))
    x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn_like(x)
    kept = {name: getattr(triton_sizes, name) for name in ("SHORT_OUTPUTS", "WIDE_OUTPUTS", "MAX_BLOCK", "GRADIENT")}
    per_warp, per_processor = triton_convolution.CHANNELS_PER_WARP, triton_convolution.PROGRAMS_PER_PROCESSOR
    try:
        for kernel in bench.size((4, 32), (2,)):
            weight = torch.randn(shape[2], kernel, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
            results: dict[str, dict[str, float]] = {"forward": {}, "weight gradient": {}}
            bench.notes[f"K={kernel}"] = results

            def forward(weight: Tensor = weight) -> object:
                return our_convolution(x.detach(), weight.detach(), 1)

            def gradient(weight: Tensor = weight) -> object:
                return torch.autograd.grad(our_convolution(x.detach(), weight, 1), weight, grad)

            outputs = (8, 16, 32) if kernel == 4 else (16, 32)
            forms = itertools.product(outputs, bench.size((64, 128, 256), (64,)), bench.size((256, 512), (256,)))
            for count, channels, block in itertools.islice(forms, bench.size(None, 1)):
                triton_sizes.SHORT_OUTPUTS = triton_sizes.WIDE_OUTPUTS = count
                triton_sizes.MAX_BLOCK, triton_convolution.CHANNELS_PER_WARP = block, channels
                name = f"{count} outputs, {channels} channels a warp, blocks of {block}"
                results["forward"][name] = 1e3 * quartiles(bench.seconds_of({"": forward}, rounds=3)[""]).median
            for name, value in kept.items():
                setattr(triton_sizes, name, value)
            triton_convolution.CHANNELS_PER_WARP = per_warp
            base = 1e3 * quartiles(bench.seconds_of({"": forward}, rounds=3)[""]).median
            gradients = itertools.product((16, 32), (2, 4, 8), (64, 128), (1, 2, 4))
            for count, segments, block, programs in itertools.islice(gradients, bench.size(None, 1)):
                warps = segments * block // triton_sizes.CHANNELS_PER_WARP
                triton_sizes.GRADIENT = triton_sizes.GradientSizes(count, segments, block, warps)
                triton_convolution.PROGRAMS_PER_PROCESSOR = programs
                name = f"{count} positions, {segments} segments, blocks of {block}, {programs} programs a processor"
                taken = 1e3 * quartiles(bench.seconds_of({"": gradient}, rounds=3)[""]).median
                results["weight gradient"][name] = taken - base
            for part in results:
                results[part] = dict(sorted(results[part].items(), key=lambda item: item[1]))
    finally:
        for name, value in kept.items():
            setattr(triton_sizes, name, value)
        triton_convolution.CHANNELS_PER_WARP = per_warp
        triton_convolution.PROGRAMS_PER_PROCESSOR = per_processor
    return {}
