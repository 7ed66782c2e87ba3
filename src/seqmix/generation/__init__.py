"""Text out of one trained model: engines, sampling, and the stream of characters."""

from __future__ import annotations

import torch
from torch import nn

from seqmix.errors import InputError, unknown_name
from seqmix.export import CannotLowerError
from seqmix.generation.engine import CannotRunError, Engine, TorchEngine
from seqmix.generation.generate import Generated, generate
from seqmix.generation.sampling import Sampler, SamplingConfig
from seqmix.generation.states import RING_TYPES
from seqmix.generation.text import text_stream
from seqmix.generation.weights import WEIGHT_TYPES, WeightType, check_weight_type
from seqmix.models import SeqmixForCausalLM

ENGINES = ("torch", "onnx", "native")
"""Engines for any machine."""

GPU_ENGINES = ("cuda_graph",)
"""Engines that need a CUDA device; the model is moved there."""


def fastest_engine(model: SeqmixForCausalLM, *, weights: str = "f32", threads: int | None = None) -> Engine:
    """The fastest engine that runs the model where it is: on a CPU the native one if it can, else torch."""
    if model.device.type == "cpu":
        try:
            return create_engine("native", model, weights=weights, threads=threads)
        except (CannotRunError, CannotLowerError):
            pass
    return create_engine("torch", model, weights=weights, threads=threads)


def create_engine(
    name: str, model: SeqmixForCausalLM, *, weights: str = "f32", threads: int | None = None, rings: str = "f32"
) -> Engine:
    """The engine of a name for a model in evaluation mode.

    Args:
        weights: "f32", "bf16" or "int8".
        threads: of the engine; None takes torch's number.
        rings: "f32", or "bf16" for convolutions whose past takes half the memory; for the engines onnx and native.

    Raises:
        InputError: an unknown name or weight type, or an engine that cannot run the model or has no device here.
    """
    kind = check_weight_type(weights)
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")
    if rings != "f32" and name not in ("onnx", "native"):
        raise InputError(f"rings {rings!r} cannot be had with the engine {name}: choose the engine native or onnx")
    if name == "torch":
        return TorchEngine(model, kind)
    if name == "onnx":
        try:
            from seqmix.generation.onnx_engine import OnnxEngine
        except ModuleNotFoundError as error:
            raise InputError(
                f"the engine onnx needs the package {error.name!r}: pip install 'seqmix[export]', or choose torch"
            ) from error
        return OnnxEngine(model, kind, threads=threads, ring_type=rings)
    if name == "native":
        from seqmix.generation.native_engine import NativeEngine

        return NativeEngine(model, kind, threads=threads, ring_type=rings)
    if name == "cuda_graph":
        from seqmix.generation.cuda_graph import CudaGraphEngine

        if not torch.cuda.is_available():
            raise InputError("the engine cuda_graph needs a CUDA device and there is none here: choose torch or native")
        if model.device.type != "cuda":
            model = nn.Module.cuda(model)
        return CudaGraphEngine(model, kind)
    raise unknown_name("engine", name, (*ENGINES, *GPU_ENGINES))


__all__ = [
    "ENGINES",
    "GPU_ENGINES",
    "RING_TYPES",
    "WEIGHT_TYPES",
    "CannotRunError",
    "Engine",
    "Generated",
    "Sampler",
    "SamplingConfig",
    "TorchEngine",
    "WeightType",
    "create_engine",
    "fastest_engine",
    "generate",
    "text_stream",
]
