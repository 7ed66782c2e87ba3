"""The sections of gpu.py that build and check: every result against the reference in float64, on the device."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench
from torch import Tensor

import seqmix
from seqmix.conformance import check_mixer
from seqmix.conformance.subject import Subject, rounding
from seqmix.generation.cuda_graph import Capture, GraphDecoder
from seqmix.kernels import library
from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv, group_channels
from seqmix.mixer import Mixer, SharingMixer, State
from seqmix.mixers import mixer_class
from seqmix.training.optimizer import make_optimizer

HOME = Path(__file__).resolve().parents[1]

KIT = (
    "forward_equals_steps",
    "pieces_equal_whole",
    "matrix_reproduces_forward",
    "causality",
    "packed_equals_separate",
    "batch_invariance",
    "odd_sizes",
    "low_precision",
)
"""The checks of the kit in which a device can make a difference; `compare_gradients` is beside them."""


def build(bench: Bench) -> dict[str, Any]:
    """Compiles the C++ library where it is missing, and the Triton programs of the benchmarks' kernels."""
    found: dict[str, Any] = {"native": "compiled before"}
    if library.why_missing() is not None:
        begin = time.perf_counter()
        found["native"] = _build_native()
        found["native_seconds"] = round(time.perf_counter() - begin, 1)
    for kernel, kind in itertools.product((4, 32), (torch.bfloat16,)):
        kernel = bench.size(kernel, min(kernel, 5))
        begin = time.perf_counter()
        x = torch.randn(1, bench.size(4096, 6), bench.size(512, 4), device=bench.device, dtype=kind, requires_grad=True)
        weight = torch.randn(x.shape[2], kernel, device=bench.device, dtype=kind, requires_grad=True)
        y, _ = depthwise_conv(x, weight, dilation=1, implementation="triton")
        y.backward(torch.ones_like(y))
        bench.wait()
        found[f"triton_seconds, K={kernel}"] = round(time.perf_counter() - begin, 1)
        bench.notes.update(found)
    return found


def _build_native() -> str:
    """How the build of the C++ library ended. A new process sees it; this one goes on without."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        return f"not built: {' and '.join(missing)} not found"
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            ["cmake", "-S", str(HOME), "-B", folder],
            ["cmake", "--build", folder, "--parallel", "8"],
            ["cmake", "--install", folder],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"not built: {' '.join(command[:2])}: {(done.stdout + done.stderr)[-500:]}"
    return "built"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionCase:
    """One call of the convolution: several groups of dilations, from a state or not, with documents or not."""

    kernel: int
    dilations: tuple[int, ...] = (1,)
    dim: int = 96
    batch: int = 3
    time: int = 300
    causal: bool = True
    packed: bool = False
    continued: bool = False
    bias: bool = True
    kind: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(self).items())


def convolution_cases(*, is_small: bool) -> list[ConvolutionCase]:
    """Kernels, dilations, types, documents and states; few where each is slow."""
    case = ConvolutionCase
    if is_small:
        small: dict[str, Any] = {"dim": 3, "batch": 2, "time": 5}
        return [
            case(kernel=3, dilations=(1, 2), packed=True, **small),
            case(kernel=2, continued=True, kind=torch.float32, **small),
            case(kernel=2, causal=False, kind=torch.float16, **small),
        ]
    kinds = (torch.bfloat16, torch.float32, torch.float16)
    return [
        *(case(kernel=4, kind=kind) for kind in kinds),
        case(kernel=4, packed=True),
        case(kernel=4, continued=True),
        case(kernel=4, packed=True, continued=True, kind=torch.float32, dilations=(1, 5)),
        case(kernel=4, causal=False, dilations=(1, 2)),
        case(kernel=3, dilations=(1, 2, 64, 500), dim=101),
        case(kernel=1, dim=7, time=1),
        case(kernel=32, dilations=(1, 8), time=1500),
        case(kernel=32, dilations=(1, 8), time=1500, packed=True),
        case(kernel=40, dilations=(1,), kind=torch.float32),
    ]


def compare_convolution(case: ConvolutionCase, device: torch.device) -> float:
    """The largest error of values and gradients, as a share of what the rounding of such sums explains."""
    draw = torch.Generator().manual_seed(case.kernel)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(case.kind).to(device)

    per_group = -(-case.dim // len(case.dilations))
    per_channel = [dilation for dilation in case.dilations for _ in range(per_group)][: case.dim]
    dilations = group_channels(per_channel, case.dim, case.kernel)
    # The channels of a wider tensor: rows are not contiguous.
    x, grad = normal(case.batch, case.time, case.dim + 8)[:, :, 8:], normal(case.batch, case.time, case.dim)
    weight, bias = normal(case.dim, case.kernel), normal(case.dim) if case.bias else None
    ids = None
    if case.packed:
        ids = (torch.rand(case.batch, case.time, generator=draw) < 0.02).cumsum(1).to(device)
    position = past = None
    if case.continued:
        position = (dilations.span + torch.randint(0, 9, (case.batch,), generator=draw)).to(device)
        past = normal(case.batch, dilations.past_size)

    def run(implementation: str, kind: torch.dtype, *, absolute: bool = False) -> list[Tensor]:
        given = [x, weight, bias, past]
        leaves = [None if one is None else (one.abs() if absolute else one).detach().to(kind) for one in given]
        for leaf in leaves:
            if leaf is not None:
                leaf.requires_grad_()
        state = None
        if leaves[3] is not None:
            assert position is not None
            state = DepthwiseConvState(leaves[3], position, torch.zeros_like(position))
        y, _ = depthwise_conv(
            leaves[0],
            leaves[1],
            leaves[2],
            dilation=dilations,
            causal=case.causal,
            state=state,
            document_ids=ids,
            implementation=implementation,
        )
        slope = (grad.abs() if absolute else grad).to(kind)
        wanted = [leaf for leaf in leaves if leaf is not None]
        return [y.detach(), *torch.autograd.grad(y, wanted, slope)]

    terms = [case.kernel + 1, case.kernel + 1, *[case.batch * case.time] * (1 + case.bias), case.kernel + 1]
    sums = torch.finfo(torch.promote_types(case.kind, torch.float32)).eps
    worst = 0.0
    everything = zip(
        run("triton", case.kind),
        run("reference", torch.float64),
        run("reference", torch.float64, absolute=True),
        terms,
        strict=False,
    )
    for found, wanted, size, count in everything:
        band = (2 * torch.finfo(case.kind).eps + sums * (count + 1)) * size
        error = (found.double() - wanted).abs()
        if not bool(torch.isfinite(found).all()):
            return float("inf")
        worst = max(worst, float((error / band.clamp(min=1e-30)).max()))
    return worst


def check_convolution(bench: Bench) -> dict[str, Any]:
    """Every case within the rounding band (a share of at most 1), and a tensor of more than 2^31 elements."""
    cases: dict[str, float] = {}
    failures: list[str] = []
    bench.notes.update(error_over_band=cases, failures=failures)
    for case in convolution_cases(is_small=bench.is_rehearsal):
        cases[str(case)] = round(compare_convolution(case, bench.device), 3)
        if not cases[str(case)] <= 1:
            failures.append(f"{case}: off by {cases[str(case)]} times the rounding band")
    failures += _check_beyond_32_bits(bench)
    return {}


@torch.no_grad()
def _check_beyond_32_bits(bench: Bench) -> list[str]:
    """The end of a sequence whose elements 32 bits cannot count, against a convolution of that end alone."""
    dim, end = bench.size(1024, 4), bench.size(64, 4)
    time_ = 2**31 // dim + 1000 if not bench.is_rehearsal else 12
    x = torch.empty(1, time_, dim, device=bench.device, dtype=torch.bfloat16).normal_()
    weight = torch.randn(dim, 4, device=bench.device, dtype=torch.bfloat16)
    y, _ = depthwise_conv(x, weight, dilation=2, implementation="triton")
    alone, _ = depthwise_conv(x[:, -end - 6 :].clone(), weight, dilation=2, implementation="triton")
    same = torch.equal(y[:, -end:], alone[:, -end:])
    return [] if same else [f"{x.numel()} elements: the end differs from a convolution of the end alone"]


def moved(kind: type[Mixer], device: torch.device) -> type[Mixer]:
    """The mixer class on a device, with inputs and outputs on the CPU, where the kit has its tensors."""

    def to(value: Any, where: torch.device | str) -> Any:
        if isinstance(value, Tensor | State):
            return value.to(where)
        if isinstance(value, Mapping):
            return {key: to(part, where) for key, part in value.items()}
        if isinstance(value, tuple) and type(value) is not tuple:
            return type(value)(*(to(part, where) for part in value))
        return type(value)(to(part, where) for part in value) if isinstance(value, list | tuple) else value

    def wrapped(name: str) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            own = getattr(super(there, self), name)
            if self.is_inside:
                return own(*args, **options)
            self.is_inside = True
            try:
                return to(own(*to(args, device), **to(options, device)), "cpu")
            finally:
                self.is_inside = False

        return call

    def create(self: Any, dim: int, config: Any = None) -> None:
        super(there, self).__init__(dim, config)
        self.is_inside = False
        self.to(device)

    names = ["forward", "step", "mixing", "readout", "links"]
    if issubclass(kind, SharingMixer):
        names += ["forward_sharing", "step_sharing"]
    there = type(kind.__name__, (kind,), {"__init__": create, **{name: wrapped(name) for name in names}})
    return there


def compare_gradients(kind: type[Mixer], dim: int, options: Mapping[str, Any], device: torch.device) -> str | None:
    """What is wrong with the float32 gradients on the device, beside those of the kit's oracle; None for nothing."""
    subject = Subject(kind, dim, options)
    if not subject.is_plain:
        return None
    own, results = copy.deepcopy(subject.mixer).to(device), []
    for module, where, precision in ((subject.oracle, "cpu", torch.float64), (own, device, torch.float32)):
        x = subject.x(2, 33).to(precision).to(where).requires_grad_()
        y = module(x).y
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y)
        results.append(torch.autograd.grad(y, [x, *module.parameters()], slope, allow_unused=True))
    largest = max(float(wanted.abs().max()) for wanted in results[0] if wanted is not None)
    names = ["x", *(name for name, _ in own.named_parameters())]
    for name, wanted, found in zip(names, *results, strict=True):
        if wanted is None or found is None:
            if wanted is not found:
                return f"only one of the two devices has a gradient of {name}"
            continue
        error = float((found.cpu().double() - wanted).abs().max())
        # A gradient passes all stages twice, and sums over both rows.
        if not error <= 4 * rounding(torch.float32, subject.reduction(66)) * largest:
            return f"the gradient of {name} is off by {error:.2g} where the largest is {largest:.2g}"
    return None


def check_mixers(bench: Bench) -> dict[str, Any]:
    """The conformance kit on the device for every mixer; on each mixer's first example only, in a rehearsal."""
    results: dict[str, dict[str, str]] = {}
    failures: list[str] = []
    bench.notes.update(mixers=results, failures=failures)
    names = bench.size(seqmix.list_mixers(), ["gated_conv"])
    for name in names:
        kind = mixer_class(name)
        examples = list(kind.examples())[: bench.size(None, 1)]
        problems = [compare_gradients(kind, *example, bench.device) for example in examples]
        failures += [f"gradients of {name}: {problem}" for problem in problems if problem is not None]
        results[name] = {"gradients": "failed" if any(problems) else "passed"}
        for check in bench.size(KIT, KIT[:3]):
            for result in check_mixer(moved(kind, bench.device), examples=examples, checks=[check]):
                if results[name].get(check) != "failed":
                    results[name][check] = result.status
                if result.status == "failed":
                    failures.append(f"{check} of {name} ({result.example}): {result.message}")
    return {}


def check_training(bench: Bench) -> dict[str, Any]:
    """A tiny model of each kind learns a sequence that repeats; and the command `seqmix train` runs on the device."""
    steps, failures = bench.size(150, 3), []
    bench.notes.update(failures=failures)
    found: dict[str, Any] = {}
    for name in bench.size(("convsamba", "gated_conv", "mamba2", "transformer"), ("gated_conv",)):
        with torch.device(bench.device):
            model = seqmix.create_model(name, vocab_size=17, params=bench.size("200k", "20k"), context=64)
        optimizer = make_optimizer(model, weight_decay=0.0, betas=(0.9, 0.95))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        tokens = (torch.arange(65, device=bench.device) * 3 % 17).expand(4, -1)
        losses = []
        for _ in range(steps):
            with torch.autocast(bench.device.type, dtype=torch.bfloat16):
                loss = model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:].contiguous(), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        first, last = float(losses[0]), float(losses[-1])
        found[name] = {"first_loss": round(first, 3), "last_loss": round(last, 4)}
        if not last < bench.size(0.2, 1.0) * first:
            failures.append(f"{name}: the loss went from {first:.3f} to {last:.3f} in {steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--data": "python-stdlib",
            "--model": "convsamba",
            "--params": "50k",
            "--context": "64",
            "--batch-size": "4",
            "--tokens": bench.size("100k", "2k"),
            "--precision": bench.size("bfloat16", "float32"),
            "--device": bench.device.type,
            "--out": f"{folder}/run",
        }
        limits = [f"evaluate_tokens={bench.size(20000, 500)}", f"final_evaluate_tokens={bench.size(20000, 500)}"]
        command = [sys.executable, "-m", "seqmix", "train", "--json", *itertools.chain.from_iterable(options.items())]
        command += itertools.chain.from_iterable(("--set", limit) for limit in limits)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, bench.seconds_left), check=False
        )
    found["seqmix train"] = "done" if done.returncode == 0 else "failed"
    if done.returncode:
        failures.append(f"seqmix train: {(done.stdout + done.stderr)[-500:]}")
    return found


def check_decode(bench: Bench) -> dict[str, Any]:
    """The CUDA graph gives the logits of eager steps, for every preset; a plain call stands in for it on a CPU."""
    failures: list[str] = []
    found: dict[str, float] = {}
    bench.notes.update(largest_difference=found, failures=failures)
    capture: Capture | None = (lambda function: function) if bench.is_rehearsal else None
    for name in bench.size(seqmix.list_models(), ["convsamba", "transformer"]):
        with torch.device(bench.device), torch.no_grad():
            model = seqmix.create_model(name, vocab_size=31, params="50k", context=64).eval()
            tokens = torch.randint(31, (12, 2))
            decoder, state = GraphDecoder(model, 2, 16, capture=capture), model.init_state(2)
            worst = 0.0
            for token in tokens:
                expected, state = model.step(token, state)
                worst = max(worst, float((decoder.step(token) - expected).abs().max() / expected.abs().max()))
        found[name] = worst
        # Eight sums in a row, each of at most as many terms as the feed-forward is wide.
        if not worst <= 8 * 1024 * torch.finfo(torch.float32).eps:
            failures.append(f"{name}: the graph is off by {worst:.2g} of the largest logit")
    return {}
