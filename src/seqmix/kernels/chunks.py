"""Time cut into chunks of equal length, for recurrences that handle a chunk at once.

Shapes: B batch, T time, H heads, J chunks, Q positions in a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def chunks_of(time: int, chunk: int) -> tuple[int, int]:
    """(number of chunks, positions in each): as few as `chunk` allows, and as equal as can be."""
    count = -(-time // chunk)
    return count, -(-time // count)


def split(tensor_BTHN: Tensor, count: int, length: int) -> Tensor:
    """(batch, time, heads, n) to (chunks, batch * heads, positions, n); positions after the end are zero."""
    fill = count * length - tensor_BTHN.shape[1]
    padded = F.pad(tensor_BTHN, (0, 0, 0, 0, 0, fill)) if fill else tensor_BTHN
    return padded.unflatten(1, (count, length)).permute(1, 0, 3, 2, 4).flatten(1, 2)


def join(tensor: Tensor, batch: int, time: int) -> Tensor:
    """What `split` took apart, without the positions after the end."""
    return tensor.unflatten(1, (batch, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :time]


class Borders(NamedTuple):
    """Where the documents of each chunk begin and end; bool, (chunks, batch * heads, ...).

    within: (..., positions, positions), pairs of one document. from_start: (..., positions, 1), positions of the
    document that the state before the chunk is of. to_end: likewise, of the chunk's last one. whole: (..., 1, 1), both.
    """

    within: Tensor
    from_start: Tensor
    to_end: Tensor
    whole: Tensor


def borders_of(runs_BT: Tensor, count: int, length: int, heads: int) -> Borders:
    """The borders of the runs of a `Placement`."""
    fill = count * length - runs_BT.shape[1]
    padded = torch.cat([runs_BT, runs_BT[:, -1:].expand(-1, fill)], dim=1)
    runs = padded.unflatten(1, (count, length)).transpose(0, 1).repeat_interleave(heads, dim=1)[..., None]
    last = runs[:, :, -1:]
    carried = torch.cat([torch.zeros_like(last[:1]), last[:-1]])
    return Borders(runs == runs.transpose(2, 3), runs == carried, runs == last, last == carried)
