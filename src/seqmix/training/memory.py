"""Peak memory of a run, and running out of it in one sentence."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from seqmix.errors import SeqmixError


class PeakMemory:
    """The most memory that training held at once, over what the process held when this object was made.

    On a GPU: what torch's allocator gave out. On Linux's CPU: resident memory, whose high-water mark is
    set back at the start (so a run is not charged for an earlier one); elsewhere the high-water mark of the
    whole process, which an earlier and larger run can hide. Resident memory includes weights, gradients,
    optimizer, activations, and the pages of the token file that were read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        gc.collect()
        if sys.platform == "linux" and device.type == "cpu":
            # Memory that was freed but not handed back would make room for the run unseen.
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        self._reset()
        self._start = torch.cuda.memory_allocated(device) if device.type == "cuda" else self._resident("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        is_gpu = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) if is_gpu else self._resident("VmHWM")
        return max(0, self._before, most - self._start)

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Leaves out what a block needs for itself."""
        self._before = self.peak()
        try:
            yield
        finally:
            self._reset()

    def _reset(self) -> None:
        """Sets the high-water mark back to what is held now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def _resident(self, what: str) -> int:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
        except (OSError, StopIteration):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
"""Parameters of glibc's mallopt."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Lets the process keep the CPU memory that tensors free, for the next ones.

    Otherwise glibc returns that of large tensors to the system and takes it again, page by page and filled with
    zeros: up to a tenth of a training step. Elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
        if libc is None or not libc.mallopt(_MMAP_MAX, 0):
            libc = None
    except (OSError, AttributeError):
        libc = None
    if libc is None:
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # glibc's own values.
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


@contextmanager
def memory_errors(batch_size: int, context: int) -> Iterator[None]:
    """Turns running out of memory into a sentence with the remedy."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(batch_size, context) from error
    except RuntimeError as error:
        # The CPU's allocator has no exception class of its own.
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _out_of_memory(batch_size, context) from error


def _out_of_memory(batch_size: int, context: int) -> SeqmixError:
    return SeqmixError(
        f"out of memory with batch_size {batch_size} and context {context}: use a smaller --batch-size or --context, "
        "or compute a batch in pieces with --accumulate"
    )
