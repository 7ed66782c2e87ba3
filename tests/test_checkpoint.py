"""Checkpoints: the newest whole one is found, a damaged one is named and skipped, a full disk costs nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from seqmix import files
from seqmix.errors import InputError, SeqmixError
from seqmix.training.checkpoint import MANIFEST, CheckpointStore, find_fault
from seqmix.training.metrics import MetricsLog, read_metrics


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def fill(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"x": torch.full((100,), value)}, folder / "model.safetensors")
        (folder / "state.json").write_text(f"{value}")

    return write


def newest(store: CheckpointStore) -> tuple[str | None, list[str]]:
    said: list[str] = []
    found = store.newest(said.append)
    return (None if found is None else found.name), said


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_the_newest_is_found_and_two_are_kept(store: CheckpointStore) -> None:
    assert newest(store) == (None, [])
    for step in (3, 20, 100):
        store.save(step, fill(step))
    assert newest(store) == ("step-00000100", [])
    assert names(store) == ["step-00000020", "step-00000100"]


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 7)


def alter(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose(path: Path) -> None:
    (path / "state.json").unlink()


def lose_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def cut_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, 20)


def other_format(path: Path) -> None:
    manifest = path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncate, "model.safetensors is truncated or altered"),
        (alter, "model.safetensors is truncated or altered"),
        (lose, "state.json is missing"),
        (lose_manifest, "manifest.json is missing"),
        (cut_manifest, "manifest.json cannot be read"),
        (other_format, "it has format 99, this version reads format 1"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    store: CheckpointStore, damage: Callable[[Path], None], words: str
) -> None:
    store.save(10, fill(1))
    damage(store.save(20, fill(2)))
    found, said = newest(store)
    assert found == "step-00000010"
    assert len(said) == 1
    assert "step-00000020" in said[0]
    assert words in said[0]


def test_a_damaged_one_does_not_crowd_out_good_ones(store: CheckpointStore) -> None:
    store.save(10, fill(1))
    truncate(store.save(40, fill(4)))
    store.save(20, fill(2))
    assert names(store) == ["step-00000010", "step-00000020"]


def test_a_step_that_is_there_already_is_replaced(store: CheckpointStore) -> None:
    truncate(store.save(10, fill(1)))
    assert find_fault(store.save(10, fill(2))) is None
    assert (store.folder / "step-00000010" / "state.json").read_text() == "2"


def test_leftovers_of_a_killed_process_are_no_checkpoints(store: CheckpointStore) -> None:
    store.save(10, fill(1))
    for name in (".step-00000020.123.tmp", ".step-00000005.123.old"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.safetensors").write_text("half")
    assert newest(store) == ("step-00000010", [])
    assert names(store) == ["step-00000010"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_older_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    store.save(10, fill(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, function, full)
    with pytest.raises(SeqmixError, match="is full: free some space, then give the command again"):
        store.save(20, fill(2))
    monkeypatch.undo()
    assert names(store) == ["step-00000010"]
    assert newest(store) == ("step-00000010", [])


def test_a_full_disk_under_safetensors_is_the_same_sentence(store: CheckpointStore) -> None:
    def write(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(SeqmixError, match="is full"):
        store.save(10, write)
    assert names(store) == []


def test_no_permission_is_bad_input(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\): change its permissions"):
        store.save(10, fill(1))


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    files.write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SeqmixError, match="is full"):
        files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings.json"]


def test_metrics_are_cut_back_to_what_a_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"kind": "step", "step": 1}, {"kind": "step", "step": 2})
    length = log.sync()
    log.append({"kind": "step", "step": 3}, {"kind": "evaluation", "step": 3})
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"kind": "st')
    assert [record["step"] for record in read_metrics(path, "step")] == [1, 2, 3]

    log = MetricsLog(path, length)
    assert log.missing == 0
    log.append({"kind": "step", "step": 3})
    log.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    assert path.read_bytes()[:length].endswith(b"\n")


def test_metrics_that_lost_lines_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n')
    log = MetricsLog(path, 1000)
    log.close()
    assert log.missing == 1000 - path.stat().st_size
    assert len(read_metrics(path)) == 1
