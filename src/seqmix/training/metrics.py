"""metrics.jsonl: what happened in a run, one JSON object a line, and nothing that did not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from seqmix.files import disk_errors


class MetricsLog:
    """Appends records to metrics.jsonl. What lies beyond `length` bytes is cut off first.

    A checkpoint holds the length the file had; resuming cuts what was written after it, since those
    steps are taken again. So each step stands in the file once.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        with disk_errors(path):
            # Unbuffered: a full disk shows at the record it hits.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - held open for the whole run
            self.missing = max(0, length - os.path.getsize(path))
            self._file.truncate(min(length, os.path.getsize(path)))
            self._file.seek(0, os.SEEK_END)

    def append(self, *records: dict[str, Any]) -> None:
        """Writes records, each on a line of its own, in one piece."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with disk_errors(self.path):
            self._file.write(lines.encode())

    def sync(self) -> int:
        """Returns the length in bytes, once that much is on the disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, of one kind or all. A last line that was cut short is left out."""
    with open(path, "rb") as file:
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    records = [json.loads(line) for line in lines]
    return [record for record in records if kind is None or record["kind"] == kind]
