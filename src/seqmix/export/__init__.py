"""One model in forms that run without it: the program of its step, and that as an ONNX graph."""

from __future__ import annotations

from seqmix.export.lowering import CannotLowerError, lower
from seqmix.export.program import Program

__all__ = ["CannotLowerError", "Program", "lower"]
