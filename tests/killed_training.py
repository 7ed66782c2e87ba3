"""Trains under SIGKILL: python killed_training.py SETTINGS_JSON KILLS SEED prints what became of it, as JSON.

One process imports everything, then forks a child for each attempt and kills it after a random time; the last kill's
time begins with the first checkpoint, since a busy machine may not have come that far before.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from seqmix.training import settings_from, train


def attempt(
    values: dict[str, Any], *, resume: bool, kill_after: float | None, wait_for_checkpoint: bool = False
) -> bool:
    """Trains in a child; returns whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(settings_from(values), resume=resume)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if wait_for_checkpoint:
        checkpoints = Path(values["out"]) / "checkpoints"
        while not any(checkpoints.glob("[!.]*")):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return succeeded(status)
            time.sleep(0.002)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return succeeded(status)


def succeeded(status: int) -> bool:
    """Whether a child that has ended was not killed; one that failed ends this process."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed: see stderr")
    return os.WIFEXITED(status)


def main() -> None:
    values, kills, seed = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    draw = random.Random(seed)
    whole, killed = {**values, "out": f"{values['out']}/whole"}, {**values, "out": f"{values['out']}/killed"}
    start = time.perf_counter()
    attempt(whole, resume=False, kill_after=None)
    duration = time.perf_counter() - start
    survived = 0
    for number in range(1, kills + 1):
        survived += attempt(
            killed, resume=True, kill_after=draw.uniform(0, 0.6 * duration), wait_for_checkpoint=number == kills
        )
    attempt(killed, resume=True, kill_after=None)
    json.dump({"duration": duration, "survived": survived}, sys.stdout)


if __name__ == "__main__":
    main()
