"""The losses of rows of logits and their gradient, in place, in C++ (`native/cross_entropy.cpp`)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from seqmix.kernels.library import STORAGE, function


class _Call(ctypes.Structure):
    """SeqmixCrossEntropy of native/cross_entropy.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "vocabulary", "storage", "threads", "ignored")),
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "factor", "losses")),
        ("bad_row", ctypes.c_int64),
    )


def losses_in_place(logits_CV: Tensor, targets_C: Tensor, ignore_index: int, factor_C: Tensor | None) -> Tensor:
    """The losses (C,) in float32; 0 where the target is left out.

    With a factor (C,) the contiguous logits become the factor times the gradient of their loss.

    Raises:
        IndexError: a target outside the vocabulary.
    """
    losses = torch.empty(len(logits_CV))
    targets_C = targets_C.to(torch.int64).contiguous()
    factor_C = None if factor_C is None else factor_C.float().contiguous()
    call = _Call(
        *logits_CV.shape,
        STORAGE[logits_CV.dtype],
        torch.get_num_threads(),
        ignore_index,
        logits_CV.data_ptr(),
        targets_C.data_ptr(),
        None if factor_C is None else factor_C.data_ptr(),
        losses.data_ptr(),
    )
    function("cross_entropy")(ctypes.byref(call))
    if call.bad_row >= 0:
        target, size = int(targets_C[call.bad_row]), logits_CV.shape[1]
        raise IndexError(
            f"target {target} is out of the vocabulary: it must be {ignore_index}, or from 0 to {size - 1}"
        )
    return losses
