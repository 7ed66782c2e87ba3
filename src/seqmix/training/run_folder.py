"""A run is a folder: what is in it, who may write to it, and when it is finished.

settings.json       format, settings, environment, corpus and model; written when training starts
metrics.jsonl       what happened, the source of truth
checkpoints/        the state from which --resume goes on
config.json, model.safetensors, tokenizer.json, ...     the trained model, as Hugging Face reads it
result.json         what came out; written last, so its presence means that the run is finished
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqmix.errors import InputError, SeqmixError
from seqmix.files import disk_errors, remove_leftovers, sync_file, sync_folder, write_json
from seqmix.training.checkpoint import CheckpointStore
from seqmix.training.settings import TrainSettings, first_difference

FORMAT = 1


class RunFolder:
    """The places of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoints = CheckpointStore(self.path / "checkpoints")

    @property
    def is_started(self) -> bool:
        """Whether a run has written its settings here."""
        return self.settings.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the result is there."""
        return self.result.is_file()

    def read_settings(self) -> dict[str, Any]:
        """settings.json.

        Raises:
            InputError: it cannot be read, or another version of seqmix wrote it in another format.
        """
        return _read_document(self.settings)

    def read_result(self) -> dict[str, Any]:
        """result.json; errors as `read_settings`."""
        return _read_document(self.result)

    def write_settings(self, document: dict[str, Any]) -> None:
        """Writes settings.json with the format."""
        write_json(self.settings, {"format": FORMAT, **document})

    def finish(self, save_model: Callable[[Path], None], result: dict[str, Any]) -> None:
        """Puts the files that `save_model` writes into a folder in place, and result.json after them."""
        temporary = self.path / f".model.{os.getpid()}.tmp"
        with disk_errors(self.path):
            try:
                temporary.mkdir()
                save_model(temporary)
                files = sorted(temporary.iterdir())
                for file in files:
                    # Safetensors are written for their owner alone; a run is as open as its folder.
                    shutil.copymode(self.settings, file)
                    sync_file(file)
                for file in files:
                    os.replace(file, self.path / file.name)
                sync_folder(self.path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        write_json(self.result, {"format": FORMAT, **result})


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        written = document["format"]
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}): give the folder of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} was not written by seqmix or is damaged: give the folder of a run") from error
    if written != FORMAT:
        raise InputError(
            f"{str(path.parent)!r} has run format {written!r} and this version of seqmix reads format {FORMAT}: "
            "use the version that wrote it, or another --out"
        )
    return document


@contextmanager
def open_run(settings: TrainSettings, *, resume: bool) -> Iterator[RunFolder]:
    """The run folder of the settings, held by this process alone.

    Raises:
        InputError: the folder holds a run and `resume` is not given, or one of other settings or another
            format, or other things; or another process trains in it.
    """
    run = RunFolder(settings.out)
    is_new = not run.path.exists()
    _check_content(run, settings, resume)
    with disk_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    try:
        with _hold(run.path):
            with disk_errors(run.path):
                remove_leftovers(run.path)
            yield run
    finally:
        if is_new:
            # A run that failed before it wrote anything leaves no trace.
            with contextlib.suppress(OSError):
                run.path.rmdir()


def _check_content(run: RunFolder, settings: TrainSettings, resume: bool) -> None:
    out = str(run.path)
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{out!r} is a file: choose another --out")
    if run.is_started:
        if not resume:
            raise InputError(f"{out!r} holds a run already: continue it with --resume, or choose another --out")
        difference = first_difference(run.read_settings()["settings"], settings)
        if difference is not None:
            name, stored, new = difference
            raise InputError(
                f"the run in {out!r} was started with {name} {stored!r}, not {new!r}: "
                "resume it with the same settings, or choose another --out"
            )
        return
    with disk_errors(run.path):
        others = run.path.exists() and any(not entry.name.startswith(".") for entry in run.path.iterdir())
    if others:
        raise InputError(f"{out!r} holds files that are not a run: choose an empty or new folder for --out")


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; a killed process lets go by itself."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SeqmixError(
                f"another process is training in {str(folder)!r}: wait for it, or choose another --out"
            ) from error
        except OSError:
            # Some network file systems have no locks; one writer is then up to the user.
            pass
        yield
    finally:
        os.close(descriptor)
