"""The compiled CPU kernels: finds the shared library, loads it, and picks the processor's instruction set.

The library is built with the package (CMakeLists.txt) and is optional: without it every operation has a form in
plain torch. SEQMIX_ISA=avx2 (or baseline) takes a narrower instruction set than the processor's, SEQMIX_NATIVE=0
does without the library, SEQMIX_LIBRARY=PATH takes another build of it, such as one with sanitizers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(os.environ.get("SEQMIX_LIBRARY") or Path(__file__).with_name("_native.so"))
_SOURCES = Path(__file__).with_name("native")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
"""From narrow to wide; on ARM `baseline` is NEON."""

STORAGE = {torch.float32: 0, torch.bfloat16: 1}
"""How the C interface counts the types that an operation may read and write."""


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("SEQMIX_NATIVE") == "0":
        return None, "SEQMIX_NATIVE is 0: unset it to use the compiled CPU kernels"
    if not LIBRARY.exists():
        return None, "the CPU kernels were not compiled: install a C++ compiler, then install seqmix again"
    try:
        # torch is loaded by now, so its OpenMP runtime serves the library too.
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"the CPU kernels cannot be loaded ({error}): install seqmix again on this machine"
    loaded.seqmix_instruction_set.restype = ctypes.c_char_p
    loaded.seqmix_sources.restype = ctypes.c_char_p
    if _SOURCES.is_dir() and loaded.seqmix_sources().decode() != _fingerprint():
        return None, f"the CPU kernels at {LIBRARY} are not made of the sources beside them: run `make native`"
    return loaded, None


def _fingerprint() -> str:
    """Of the sources, as CMakeLists.txt forms it; they are there in a checkout, and not in an installed package."""
    files = sorted(path for path in _SOURCES.iterdir() if path.suffix in {".cpp", ".h"})
    hashes = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256(hashes.encode()).hexdigest()


# Found once and for all: torch.compile sees constants.
_LIBRARY, _REASON = _load()
_IS_AVAILABLE = _LIBRARY is not None


def is_available() -> bool:
    """Whether there are compiled kernels."""
    return _IS_AVAILABLE


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none."""
    return _LIBRARY


def why_missing() -> str | None:
    """One sentence on why there are no compiled kernels and how to get them; None where there are."""
    return _REASON


@functools.cache
def warn_when_missing() -> None:
    """Says once that the compiled kernels are missing."""
    reason = why_missing()
    if reason is not None and os.environ.get("SEQMIX_NATIVE") != "0":
        logging.getLogger("seqmix").warning("convolutions and gates run several times slower: %s", reason)


@functools.cache
def instruction_set() -> str:
    """The instruction set in use, one of INSTRUCTION_SETS.

    Raises:
        ValueError: SEQMIX_ISA names one that is unknown or that the processor lacks.
    """
    loaded = library()
    assert loaded is not None
    widest = loaded.seqmix_instruction_set().decode()
    wanted = os.environ.get("SEQMIX_ISA", widest)
    usable = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(widest) + 1]
    if wanted not in usable:
        raise ValueError(f"SEQMIX_ISA is {wanted!r}: this processor can run {', '.join(usable)}")
    return wanted


@functools.cache
def function(name: str) -> Any:
    """The C function `seqmix_<name>` for the instruction set in use, without a result."""
    loaded = library()
    assert loaded is not None
    found = getattr(loaded, f"seqmix_{name}_{instruction_set()}")
    found.restype = None
    return found


def can_run(*tensors: torch.Tensor | None) -> bool:
    """Whether the compiled kernels take these tensors: on the CPU, float32 or bfloat16."""
    return is_available() and all(
        tensor is None or (tensor.device.type == "cpu" and tensor.dtype in STORAGE) for tensor in tensors
    )
