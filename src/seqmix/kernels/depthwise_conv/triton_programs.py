"""The GPU programs of the depthwise convolution, in Triton; `triton.py` is what calls them.

Outputs that stand one dilation apart share all but one of their inputs. So a program that makes R of them for a
block of channels reads R + K - 1 inputs once each, keeps them in registers and multiplies R * K times:

    out[t0 + i d] = sum_k w[k] * source[t0 + i d + shift + k d]        i = 0 ... R - 1

Channels lie side by side in memory, so that whole lines are read whatever the dilation is. Sums are float32 (float64
for float64) and run over the taps in order, whatever R is. Positions are counted in 32 bits, places in memory in 64.

A row of the table is a block of channels: the first of them, the first and the end of its group of equal dilation,
that dilation, and where the group begins in a row of the past. A row of the past holds rings: the input of position p
of the document in slot p mod (K - 1) * dilation of its group.

Shapes: B batch, T time, D channels, K taps, R outputs of a program, S segments of time side by side.
"""
# Triton compiles this text itself: it is not Python that a type checker knows, and tuples grow by addition alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_block(table, block, K: tl.constexpr, ALIGNMENT: tl.constexpr, BD: tl.constexpr):
    """What the table says of a block: its channels, the first and the end of the group, dilation, length, offset."""
    row = table + block * 5
    begin, first, last = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    dilation, offset = tl.load(row + 3).to(tl.int32), tl.load(row + 4)
    channels = tl.multiple_of(begin.to(tl.int32), ALIGNMENT) + tl.arange(0, BD)
    last = tl.multiple_of(last.to(tl.int32), ALIGNMENT)
    return channels, first.to(tl.int32), last, dilation, (K - 1) * dilation, offset


@triton.jit
def _steps_until(distance, dilation):
    """The fewest steps of one dilation that cover a distance."""
    return (tl.maximum(distance, 0) + dilation - 1) // dilation


@triton.jit
def _outputs(
    source,
    past,
    weight,
    bias,
    runs,
    out,
    t0,
    shift,
    dilation,
    position,
    time,
    end,
    length,
    dim,
    stride_source,
    stride_out,
    channels,
    first,
    last,
    K: tl.constexpr,
    KC: tl.constexpr,
    R: tl.constexpr,
    TASK: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PACKED: tl.constexpr,
    WHOLE: tl.constexpr,
    SUM: tl.constexpr,
):
    """R outputs of a block of channels; the pointers stand at the row, and at the group in the past.

    WHOLE: all that is read and written lies inside the piece.
    """
    offset = tl.zeros(channels.shape, SUM)
    if HAS_BIAS:
        offset += tl.load(bias + channels, mask=channels < last, other=0.0).to(SUM)
    sums = ()
    for _ in tl.static_range(R):
        sums = sums + (offset,)
    for chunk in range((K + KC - 1) // KC):
        taps = ()
        for k in tl.static_range(KC):
            tap = chunk * KC + k + t0 * 0
            at = K - 1 - tap if TASK != 0 else tap
            inside = channels < tl.where(tap < K, last, 0)
            taps = taps + (tl.load(weight + at.to(tl.int64) * dim + channels, mask=inside, other=0.0).to(SUM),)
        begin = t0 + shift + chunk * KC * dilation
        low, high = _steps_until(-begin, dilation), _steps_until(time - begin, dilation)
        at_source = source + begin.to(tl.int64) * stride_source + channels
        step = dilation.to(tl.int64) * stride_source
        inputs = ()
        documents = ()
        updated = ()
        for j in tl.static_range(R + KC - 1):
            inside = channels < (last if WHOLE else tl.where((j >= low) & (j < high), last, 0))
            one = tl.load(at_source + j * step, mask=inside, other=0.0).to(SUM)
            if HAS_PAST:
                at = begin + j * dilation
                before = channels < tl.where((at < 0) & (at >= -length), last, 0)
                slot = (position + at + length) % tl.maximum(length, 1)
                one += tl.load(past + slot * (last - first) + channels, mask=before, other=0.0).to(SUM)
            inputs = inputs + (one,)
            if PACKED:
                at = begin + j * dilation
                documents = documents + (tl.load(runs + at, mask=(j >= low) & (j < high), other=0),)
            if j >= KC - 1:
                total = sums[j - KC + 1]
                if PACKED:
                    at = t0 + (j - KC + 1) * dilation
                    own = tl.load(runs + at, mask=at < time, other=0)
                for k in tl.static_range(KC):
                    value = inputs[j - KC + 1 + k]
                    if PACKED:
                        value = tl.where(documents[j - KC + 1 + k] == own, value, 0.0)
                    total = tl.fma(taps[k], value, total)
                updated = updated + (total,)
        sums = updated
    high = _steps_until(end - t0, dilation)
    at_out = out + t0.to(tl.int64) * stride_out + channels
    step = dilation.to(tl.int64) * stride_out
    for i in tl.static_range(R):
        inside = channels < (last if WHOLE else tl.where(i < high, last, 0))
        if TASK == 2:
            slot = (position + t0 + i * dilation) % tl.maximum(length, 1)
            tl.store(out + slot * (last - first) + channels, sums[i].to(out.dtype.element_ty), mask=inside)
        else:
            tl.store(at_out + i * step, sums[i].to(out.dtype.element_ty), mask=inside)


@triton.jit
def convolve(
    source,
    past,
    position,
    weight,
    bias,
    runs,
    out,
    table,
    blocks,
    columns,
    time,
    dim,
    stride_row,
    stride_time,
    past_size,
    stride_row_out,
    stride_time_out,
    K: tl.constexpr,
    KC: tl.constexpr,
    R: tl.constexpr,
    PART: tl.constexpr,
    BD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CAUSAL: tl.constexpr,
    TASK: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PACKED: tl.constexpr,
    SUM: tl.constexpr,
):
    """The convolution (TASK 0), the gradient of its input (1), or of the past (2; `out` is laid out as the past).

    source (batch, time, dim) is the input or the output's gradient, past (batch, past_size), position (batch,),
    weight (K, dim), bias (dim,), runs (batch, time). At borders of sequences and documents a program goes through its
    outputs PART by PART.
    """
    program = tl.program_id(0)
    block, column = program % blocks, program // blocks % columns
    row = (program // blocks // columns).to(tl.int64)
    channels, first, last, dilation, length, offset = place_block(table, block, K, ALIGNMENT, BD)
    left = length if CAUSAL else length // 2
    end = length if TASK == 2 else dilation * 0 + time
    residues = tl.maximum(tl.minimum(dilation, end), 1)
    t0 = column % residues + column // residues * R * dilation
    if t0 < end:
        source += row * stride_row
        runs += row * time
        own_position = row * 0
        if HAS_PAST or TASK == 2:
            own_position = tl.load(position + row)
        if HAS_PAST:
            past += row * past_size + offset - first
        if TASK == 2:
            out += row * past_size + offset - first
            shift = -length
        else:
            out += row * stride_row_out
            shift = left - length if TASK == 1 else -left
        earliest = t0 + shift
        latest = earliest + (R - 1 + (K + KC - 1) // KC * KC - 1) * dilation
        whole = (earliest >= 0) & (latest < time) & (t0 + (R - 1) * dilation < end)
        if PACKED:
            # Documents are counted from the first to the last, so that equal ends mean no border between.
            begin, until = tl.maximum(tl.minimum(earliest, t0), 0), tl.minimum(tl.maximum(latest, t0), time - 1)
            whole = whole & (tl.load(runs + begin) == tl.load(runs + until))
        if whole:
            _outputs(
                source, past, weight, bias, runs, out, t0, shift, dilation, own_position, time, end, length, dim,
                stride_time, stride_time_out, channels, first, last, K, KC, R, TASK, False, HAS_BIAS, False, True, SUM
            )  # fmt: skip
        else:
            for part in range(R // PART):
                _outputs(
                    source, past, weight, bias, runs, out, t0 + part * PART * dilation, shift, dilation, own_position,
                    time, end, length, dim, stride_time, stride_time_out, channels, first, last, K, KC, PART, TASK,
                    HAS_PAST, HAS_BIAS, PACKED, False, SUM
                )  # fmt: skip


@triton.jit
def _products(
    sums,
    at_source,
    at_past,
    at_grad,
    runs,
    row,
    begin,
    t0,
    low,
    high,
    targets,
    dilation,
    position,
    time,
    length,
    width,
    stride_time,
    stride_time_grad,
    is_channel,
    KC: tl.constexpr,
    R: tl.constexpr,
    HAS_PAST: tl.constexpr,
    PACKED: tl.constexpr,
    WHOLE: tl.constexpr,
    SUM: tl.constexpr,
):
    """The sums of KC taps with the products of R positions of each segment added; WHOLE as in `_outputs`."""
    step, step_grad = dilation.to(tl.int64) * stride_time, dilation.to(tl.int64) * stride_time_grad
    inputs = ()
    documents = ()
    for j in tl.static_range(R + KC - 1):
        is_in = (j >= low) & (j < high)
        mask = is_channel if WHOLE else is_in[:, None] & is_channel
        one = tl.load(at_source + j * step, mask=mask, other=0.0).to(SUM)
        if HAS_PAST:
            at = begin + j * dilation
            mask = ((targets > 0) & (at < 0) & (at >= -length))[:, None] & is_channel
            slot = (position + at + length) % tl.maximum(length, 1) * width
            one += tl.load(at_past + slot[:, None], mask=mask, other=0.0).to(SUM)
        inputs = inputs + (one,)
        if PACKED:
            documents = documents + (tl.load(runs + row * time + begin + j * dilation, mask=is_in, other=0),)
        if j >= KC - 1:
            is_target = j - KC + 1 < targets
            mask = is_channel if WHOLE else is_target[:, None] & is_channel
            g = tl.load(at_grad + (j - KC + 1) * step_grad, mask=mask, other=0.0).to(SUM)
            if PACKED:
                at = row * time + t0 + (j - KC + 1) * dilation
                own = tl.load(runs + at, mask=is_target, other=0)
            updated = ()
            for k in tl.static_range(KC):
                value = inputs[j - KC + 1 + k]
                if PACKED:
                    value = tl.where((documents[j - KC + 1 + k] == own)[:, None], value, 0.0)
                updated = updated + (tl.fma(g, value, sums[k]),)
            sums = updated
    return sums


@triton.jit
def weight_gradient(
    source,
    past,
    position,
    grad,
    runs,
    parts,
    table,
    blocks,
    rows,
    splits,
    rounds,
    time,
    dim,
    stride_row,
    stride_time,
    past_size,
    stride_row_grad,
    stride_time_grad,
    K: tl.constexpr,
    KC: tl.constexpr,
    R: tl.constexpr,
    PART: tl.constexpr,
    S: tl.constexpr,
    BD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_PAST: tl.constexpr,
    PACKED: tl.constexpr,
    SUM: tl.constexpr,
):
    """parts[split, k, c]: the sum over every `splits`-th bundle of S segments of R positions; the caller adds them up.

    Which positions go together does not depend on the order in which programs run, so the result is the same always.
    """
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    chunk = tl.program_id(1)
    channels, first, last, dilation, length, offset = place_block(table, block, K, ALIGNMENT, BD)
    left = length if CAUSAL else length // 2
    residues = tl.minimum(dilation, time)
    columns = residues * ((time + R * dilation - 1) // (R * dilation))
    is_channel = (channels < last)[None, :]
    sums = ()
    for _ in tl.static_range(KC):
        sums = sums + (tl.zeros((S, BD), SUM),)
    for number in range(rounds):
        segment = (split + number * splits) * S + tl.arange(0, S)
        row, column = (segment // columns).to(tl.int64), segment % columns
        t0 = column % residues + column // residues * R * dilation
        is_row = row < rows
        begin = t0 - left + chunk * KC * dilation
        low, high = _steps_until(-begin, dilation), _steps_until(time - begin, dilation)
        high = tl.where(is_row, high, 0)
        targets = tl.where(is_row, _steps_until(time - t0, dilation), 0)
        at_grad = grad + (row * stride_row_grad + t0.to(tl.int64) * stride_time_grad)[:, None] + channels[None, :]
        at_source = source + (row * stride_row + begin.to(tl.int64) * stride_time)[:, None] + channels[None, :]
        at_past, own_position = past, row
        if HAS_PAST:
            at_past = past + (row * past_size + offset - first)[:, None] + channels[None, :]
            own_position = tl.load(position + row, mask=is_row, other=0)
        whole = (low <= 0) & (high >= R + KC - 1) & (targets >= R)
        if PACKED:
            until = begin + (R + KC - 2) * dilation
            first_run = tl.load(runs + row * time + tl.minimum(begin, t0), mask=whole, other=0)
            last_run = tl.load(runs + row * time + tl.maximum(until, t0 + (R - 1) * dilation), mask=whole, other=0)
            whole = whole & (first_run == last_run)
        if tl.min(whole.to(tl.int32), 0) == 1:
            sums = _products(
                sums, at_source, at_past, at_grad, runs, row, begin, t0, low, high, targets, dilation, own_position,
                time, length, last - first, stride_time, stride_time_grad, is_channel, KC, R, False, False, True, SUM
            )  # fmt: skip
        else:
            for part in range(R // PART):
                ahead = part * PART
                sums = _products(
                    sums, at_source + ahead * dilation.to(tl.int64) * stride_time, at_past,
                    at_grad + ahead * dilation.to(tl.int64) * stride_time_grad, runs, row, begin + ahead * dilation,
                    t0 + ahead * dilation, low - ahead, high - ahead, targets - ahead, dilation, own_position,
                    time, length, last - first, stride_time, stride_time_grad, is_channel, KC, PART, HAS_PAST, PACKED,
                    False, SUM
                )  # fmt: skip
    for k in tl.static_range(KC):
        tap = chunk * KC + k + split * 0
        inside = channels < tl.where(tap < K, last, 0)
        tl.store(parts + (split.to(tl.int64) * K + tap) * dim + channels, tl.sum(sums[k], 0), mask=inside)
