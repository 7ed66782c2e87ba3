"""Synthetic tasks that tell mixers apart: rows of words with answers, drawn from a seed."""

from __future__ import annotations

from seqmix.data.synthetic.base import Examples, Task
from seqmix.data.synthetic.registry import TASKS, is_task, parse_task
from seqmix.data.synthetic.store import ExampleStore, ExampleStream, example_batches, open_task

__all__ = [
    "TASKS",
    "ExampleStore",
    "ExampleStream",
    "Examples",
    "Task",
    "example_batches",
    "is_task",
    "open_task",
    "parse_task",
]
