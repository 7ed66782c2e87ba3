"""The tasks by name, and how `--data NAME:key=value,...` is read."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from seqmix.data.synthetic.agreement import Agreement
from seqmix.data.synthetic.base import Task
from seqmix.data.synthetic.copying import Copying
from seqmix.data.synthetic.induction import InductionHeads
from seqmix.data.synthetic.listops import ListOps
from seqmix.data.synthetic.majority import Majority
from seqmix.data.synthetic.mqar import MQAR
from seqmix.data.synthetic.parity import Parity
from seqmix.data.synthetic.recall import InContextRecall
from seqmix.data.synthetic.selective_copying import SelectiveCopying
from seqmix.errors import InputError, unknown_name

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Agreement,
        Copying,
        InContextRecall,
        InductionHeads,
        ListOps,
        MQAR,
        Majority,
        Parity,
        SelectiveCopying,
    )
}


def is_task(spec: str) -> bool:
    """Whether `--data` names a task: its name alone, or with options behind a colon."""
    return spec.partition(":")[0] in TASKS


def parse_task(spec: str) -> Task:
    """The task of NAME or NAME:key=value,...

    Raises:
        InputError: an unknown name or key, or a value that the task cannot have.
    """
    name, _, text = spec.partition(":")
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    known = get_type_hints(TASKS[name])
    fields = {one.name: known[one.name] for one in dataclasses.fields(TASKS[name])}
    options: dict[str, Any] = {}
    for assignment in filter(None, text.split(",")):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{name}: {assignment!r} has no value: write {name}:key=value,key=value")
        if key not in fields:
            raise unknown_name(f"option of {name}", key, fields)
        if key in options:
            raise InputError(f"{name}: {key} is given twice: give it once")
        options[key] = _value(name, key, value, fields[key])
    return TASKS[name](**options)


def _value(name: str, key: str, text: str, hint: Any) -> Any:
    if hint is str:
        return text
    kind, word = (float, "a number") if hint is float else (int, "a whole number")
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{name}: {key} is {text!r}, and it must be {word}") from None
