"""Runs several trainings in one torchrun: `torchrun ... distributed_training.py FOLDER JOBS`, the jobs a JSON list.

A job is {"name", "values", "resume", "stop_at", "copy_from", "only_here"}; each process leaves FOLDER/NAME.RANK.json
with what became of it. A job with "build" builds a sharded model and leaves its weights and memory instead.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from seqmix.errors import SeqmixError
from seqmix.models import create_model
from seqmix.training import loop, settings_from, sharded_snapshot, train
from seqmix.training.distributed import FullySharded, Place
from seqmix.training.memory import PeakMemory
from seqmix.training.random_state import seed_everything
from seqmix.training.weights import weight_tensors


def main(folder: Path, jobs: list[dict[str, Any]]) -> None:
    loop._SECONDS_BETWEEN_REPORTS = 0.0
    sharded_snapshot.FILE_BYTES = 8192  # several files for each process
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for job in jobs:
        out = folder / job["name"]
        if "copy_from" in job and rank == 0:
            shutil.copytree(job["copy_from"], out)
        dist.barrier()
        outcome = build(job["build"], out) if "build" in job else run(job, out, rank)
        (folder / f"{job['name']}.{rank}.json").write_text(json.dumps(outcome))
        dist.barrier()
    dist.destroy_process_group()


def run(job: dict[str, Any], out: Path, rank: int) -> dict[str, Any]:
    stop_at = job.get("stop_at")
    said: list[str] = []
    sent: list[int] = []

    def reporter(*, step: int, tokens: int, seconds: float, loss: float, time_left: float) -> None:
        if step == stop_at and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)

    values = {**job["values"], "out": str(out), **job.get("only_here", {}).get(str(rank), {})}
    try:
        result = train(settings_from(values), resume=job.get("resume", False), reporter=reporter, message=said.append)
    except SeqmixError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except SystemExit as error:
        return {"error": "SystemExit", "text": str(error.code)}
    return {"result": result.to_dict(), "said": said}


def build(options: dict[str, Any], out: Path) -> dict[str, Any]:
    device = torch.device("cpu")
    group = FullySharded(Place.from_environment(), device, "float32")
    seed_everything(3)
    memory = PeakMemory(device)
    model = group.build(lambda: create_model(**options), lambda model: None, device)
    peak = memory.peak()
    held = sum(tensor.to_local().nbytes for tensor in model.parameters())
    whole = group.whole(model)
    if whole is not None:
        save_file({name: tensor.contiguous() for name, tensor in weight_tensors(whole).items()}, out)
    return {"peak": peak, "held": held, "is_tied": model.lm_head.weight is model.model.embed_tokens.weight}


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
