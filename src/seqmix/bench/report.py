"""Documents of measurements as tables for people: ratios first, medians with their quartiles, at most 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from seqmix.bench.peers import PEERS
from seqmix.compare import units
from seqmix.models import list_models

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text. left: the headings of columns, besides the first, that are aligned left. notes: lines below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()
    notes: Sequence[str] = field(default=())


def tables(document: Row) -> list[Table]:
    """The tables of a document that one of the measurements returned."""
    return _TABLES[document["bench"]](document)


def footer(document: Row) -> list[str]:
    """Lines about the machine, and what was left out."""
    environment = document["environment"]
    hardware, native = environment["hardware"], environment["native"]
    kernels = f"compiled kernels with {native['instruction_set']}" if native["in_use"] else "no compiled kernels"
    where = f"{hardware.get('gpu') or hardware['processor']}, {_plural(document['settings']['threads'], 'thread')}"
    commit = (environment["commit"] or "unknown")[:12]
    rounds, seconds = document["settings"]["rounds"], units.duration(document["seconds"])
    lines = [
        f"{where}, torch {environment['versions']['torch']}, {kernels}; commit {commit}.",
        f"Medians with quartiles of at most {_plural(rounds, 'round')}; measured in {seconds}.",
    ]
    lines += [f"Left out: {entry['what']}, {entry['reason']}." for entry in document["left_out"]]
    if not document["complete"]:
        lines.append("Interrupted: not everything was measured.")
    return lines


def environment_table(environment: Row) -> Table:
    """What `seqmix bench --env` shows."""
    hardware, native = environment["hardware"], environment["native"]
    rows = [
        ("processor", f"{hardware['processor']}, {_plural(hardware['cores'], 'core')}"),
        ("memory", units.size(hardware["memory_bytes"])),
        ("device", hardware.get("gpu") or hardware["device"]),
        ("threads", str(environment["threads"])),
        ("system", hardware["system"]),
        ("commit", environment["commit"] or "unknown"),
        ("date", environment["date"]),
        ("compiled kernels", f"in use, {native['instruction_set']}" if native["in_use"] else native["reason"]),
        *environment["versions"].items(),
        *((peer.package, f"{peer.version or 'not installed'} ({peer.measured_in})") for peer in PEERS),
    ]
    return Table(title="", columns=["what", "here"], rows=rows, left=["here"])


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def spread(value: Row | None) -> str:
    """A ratio as 12.3 (11.9–12.8)."""
    if value is None:
        return "-"
    return f"{_short(value['median'])} ({_short(value['low'])}–{_short(value['high'])})"


def median(value: Row | None) -> str:
    """The median alone."""
    return "-" if value is None else _short(value["median"])


def percent(value: Row | None) -> str:
    """A median share."""
    return "-" if value is None else f"{100 * value['median']:.0f} %"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _kernels(document: Row) -> list[Table]:
    found = []
    for size, rows in groupby(document["rows"], key=lambda row: row["size"]):
        listed = list(rows)
        others = list(dict.fromkeys(name for row in listed for name in row["faster_than"]))
        found.append(
            Table(
                title=f"x ({size['batch']}, {size['time']}, {size['dim']}), kernel {size['kernel']}, "
                f"dilation {size['dilation']}",
                columns=["pass", "implementation", *(f"× {name}" for name in others), "of product", "of floor", "ms"],
                rows=[
                    (
                        row["pass"],
                        row["implementation"],
                        *(spread(row["faster_than"].get(name)) for name in others),
                        percent(row["share_of_product"]),
                        percent(row["share_of_floor"]),
                        median(row["milliseconds"]),
                    )
                    for row in listed
                ],
                left=["implementation"],
            )
        )
    if found:
        last = document["rows"][-1]
        product, read = median(last["product_gflops"]), median(last["read_gigabytes_per_second"])
        note = (
            f"Of product: of the matrix product's {product} GFLOP/s. Of floor: the time of the arithmetic at that rate "
            f"and of each tensor read or written once at {read} GB/s, over the time taken."
        )
        found[-1] = replace(found[-1], notes=[note])
    return found


def _train(document: Row) -> list[Table]:
    found = []
    for (context, batch), rows in groupby(document["rows"], key=lambda row: (row["context"], row["batch_size"])):
        listed = list(rows)
        others = list(dict.fromkeys(name for row in listed for name in row["memory_over"]))
        of = f"{_plural(batch, 'row')} of {context:,} tokens"
        if any(row["faster_than"] or row["tokens_per_second"] for row in listed):
            found.append(_speeds(f"training steps, {of}", listed, others))
        found.append(
            Table(
                title=f"peak memory of training, {of}",
                columns=["model", *(f"÷ {name}" for name in others), "bytes"],
                rows=[
                    (
                        row["model"],
                        *(_short(row["memory_over"][name]) if name in row["memory_over"] else "-" for name in others),
                        units.size(row["peak_memory_bytes"]),
                    )
                    for row in listed
                ],
            )
        )
    return found


def _speeds(title: str, rows: Sequence[Row], others: Sequence[str]) -> Table:
    """Tokens per second, and how many times faster than the others; the quartiles where there is room for them."""
    show = spread if len(others) <= 3 else median
    return Table(
        title=title,
        # Headings wrap at spaces.
        columns=["model", *(f"× {name}".replace("-", " ") for name in others), "tokens/s"],
        rows=[
            (
                _side(row),
                *(show(row["faster_than"].get(name)) for name in others),
                median(row["tokens_per_second"]),
            )
            for row in rows
        ],
    )


def _side(row: Row) -> str:
    """The model, and the engine where it is one of ours that has several."""
    is_ours = "engine" in row and row["model"] in list_models()
    return f"{row['model']}, {row['engine']}" if is_ours else row["model"]


def _decode(document: Row) -> list[Table]:
    found = []
    words = {"decode": "generating after {:,} tokens, one row", "prefill": "reading a prompt of {:,} tokens"}
    for (kind, context), rows in groupby(document["rows"], key=lambda row: (row["kind"], row["context"])):
        listed = list(rows)
        others = list(dict.fromkeys(name for row in listed for name in row["faster_than"]))
        found.append(_speeds(words[kind].format(context), listed, others))
    return found


def _scaling(document: Row) -> list[Table]:
    found = []
    for kind, rows in groupby(sorted(document["rows"], key=lambda row: row["kind"]), key=lambda row: row["kind"]):
        listed = list(rows)
        places = sorted({int(place) for row in listed for place in row["milliseconds"]})
        last = places[-1]
        found.append(
            Table(
                title=f"{kind}: time and memory as context to the power of",
                columns=[
                    "mixer",
                    "time",
                    "by cost",
                    "memory",
                    "by cost ",
                    f"ms at {last:,}",
                    f"at {last:,}",
                ],
                rows=[
                    (
                        row["mixer"],
                        *_powers(row["time"]),
                        *_powers(row["memory"]),
                        median(row["milliseconds"].get(str(last))),
                        units.size(row["peak_bytes"].get(str(last))),
                    )
                    for row in listed
                ],
                notes=_ranges(listed),
            )
        )
    return found


def _powers(found: Row | None) -> tuple[str, str]:
    """The measured exponent with its standard error, and the expected one."""
    if found is None:
        return "-", "-"
    mark = "" if found["is_clear"] else "*"
    expected = "-" if found["expected"] is None else f"{found['expected']:.2f}"
    return f"{found['value']:.2f} ± {found['error']:.2f}{mark}", expected


def _ranges(rows: Sequence[Row]) -> list[str]:
    """Over which contexts the exponents of time were fitted."""
    ranges: dict[str, list[str]] = {}
    for row in rows:
        if row["time"] is not None:
            ranges.setdefault(f"{row['time']['first']:,} to {row['time']['last']:,}", []).append(row["mixer"])
    fitted = "; ".join(f"{place} ({', '.join(names)})" for place, names in ranges.items())
    by_cost = "By cost: of the FLOPs, and of the growing part of the bytes moved, that the mixer declares."
    lines = [f"Time was fitted over contexts {fitted}.", by_cost]
    if any(found is not None and not found["is_clear"] for row in rows for found in (row["time"], row["memory"])):
        lines.append("*: what does not grow is still more than a quarter there, so the exponent is too low.")
    return lines


_TABLES: dict[str, Callable[[Row], list[Table]]] = {
    "kernels": _kernels,
    "train": _train,
    "decode": _decode,
    "scaling": _scaling,
}
