"""Work in a process of its own, so that its peak memory is its own and its death does not take the rest along.

Processes are forked from a server that has imported the heavy modules once (where the system can fork): an
import of torch and transformers takes seconds, a fork does not. What goes over the pipe is JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from seqmix.errors import InputError, SeqmixError
from seqmix.mixers.user_code import import_all

_PRELOAD = ["seqmix.compare.tasks"]
_STOP_SECONDS = 120.0
_SPINS, _WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"

Report = Callable[[dict[str, Any]], None]


class TaskFailedError(SeqmixError):
    """The process failed or died; the message says how, in one sentence."""


def run_apart(
    task: str, argument: dict[str, Any], log: Path, on_report: Report, *, imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs a function of `seqmix.compare.tasks` in a new process and returns what it returned.

    Ctrl-C is passed on once and the process is given time to stop by itself, then KeyboardInterrupt is raised.

    Args:
        task: the function's name; it takes the argument and a callable that reports progress.
        argument: a JSON document.
        log: a file that gets everything the process prints.
        on_report: is called with each report, and with {} several times a second when there is none.
        imports: the files and modules that the user named, which the process imports first.

    Raises:
        TaskFailedError: the function raised or the process was killed.
    """
    context = _context()
    ours, theirs = context.Pipe()
    given = (theirs, task, json.dumps(argument), str(log), list(imports))
    process = context.Process(target=_child, args=given, daemon=False)
    process.start()
    theirs.close()
    try:
        result = _listen(ours, process, on_report)
        # A process that is left in peace removes what it registered with the system.
        process.join(timeout=10)
        return result
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        # The process ends itself when this end of the pipe is gone.
        ours.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()


def prepare() -> None:
    """Starts the server of processes, so that its imports run beside what the caller does next."""
    _context()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    # OpenMP's threads spin while they wait for each other, by default so long that training crawls where something
    # else wants the cores too. This many turns cost nothing on idle cores, where sleeping at once would double the
    # time of a step. The variable is read when torch is imported.
    is_given = _SPINS in os.environ or _WAIT_POLICY in os.environ
    if not is_given:
        os.environ[_SPINS] = "20000"
    try:
        forkserver.ensure_running()
    finally:
        if not is_given:
            del os.environ[_SPINS]
    return context


def _listen(connection: Connection, process: Any, on_report: Report) -> dict[str, Any]:
    while True:
        if not connection.poll(0.2):
            on_report({})
            continue
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            process.join()
            raise TaskFailedError(_death(process.exitcode)) from None
        if "result" in message:
            return message["result"]
        if "error" in message:
            raise TaskFailedError(message["error"])
        on_report(message["report"])


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"its process ended with exit code {exit_code} before it was done"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    cause = ", probably because memory ran out: try a smaller --batch-size" if name == "SIGKILL" else ""
    return f"its process was killed by signal {-exit_code} ({name}){cause}"


def _stop(process: Any) -> None:
    """Interrupts the process and waits while it saves its work."""
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGINT)
        try:
            process.join(timeout=_STOP_SECONDS)
        except KeyboardInterrupt:
            process.kill()


def _child(connection: Connection, task: str, argument: str, log: str, imports: list[str]) -> None:
    """The life of the process: everything it prints goes to the log, its result or error to the pipe."""
    if os.name == "posix":
        # Ctrl-C in the terminal reaches every process of a session: here only the parent passes it on, once.
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _offer_to_memory_killer()
    with open(log, "a", encoding="utf-8") as file:
        _wait_for_former(file.fileno())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.stdout.write(f"process {os.getpid()}: {task}\n")
    sys.stdout.flush()
    threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(message, allow_nan=False).encode())

    try:
        import_all(imports)
        function = getattr(importlib.import_module("seqmix.compare.tasks"), task)
        send({"result": function(json.loads(argument), lambda report: send({"report": report}))})
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        traceback.print_exc()
        send({"error": explain(error)})
        sys.exit(1)


def _wait_for_former(log: int) -> None:
    """Waits until no other process has this log: one whose parent was killed may need a moment to notice.

    The lock belongs to the open file, which stays open as the standard output until the process ends.
    """
    if os.name == "posix":
        import fcntl

        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(log, fcntl.LOCK_EX)


def _die_with_parent(connection: Connection) -> None:
    """Ends the process at once when the other end of the pipe is closed: nobody waits for its result any more."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)


def _offer_to_memory_killer() -> None:
    """Makes Linux choose this process, not the comparison, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")


def explain(error: BaseException) -> str:
    """An error as one sentence for the list of contenders."""
    words = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, InputError | SeqmixError):
        return words
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "allocate memory" in words:
        return f"it ran out of memory ({words[:200] or kind}): try a smaller --batch-size"
    return f"{kind}: {words[:300] or 'no message'}"
