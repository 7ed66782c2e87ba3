"""The most memory that training a model holds, measured in a process of its own.

    python -m seqmix.bench.peak '{"model": "convsamba", "params": "10M", ...}'

prints {"peak": bytes}, or {"reason": sentence} where the machine has no room for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

SHARE_OF_MEMORY = 0.9
"""Of the memory that is free, so that the machine does not have to end some process."""

FIRST_CONTEXT = 64
STEPS = 2
"""In the first one the optimizer makes its moments."""


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """One model's training, at one context."""

    model: str
    params: str
    vocab_size: int
    context: int
    batch_size: int
    threads: int
    device: str = "cpu"
    precision: str = "float32"


def training_peak(size: TrainingSize) -> int | str:
    """Bytes at most in two training steps; or a sentence on why they cannot be done."""
    command = [sys.executable, "-m", "seqmix.bench.peak", json.dumps(asdict(size))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return f"its process ended with status {done.returncode}: {lines[-1] if lines else 'no message'}"
    return answer.get("peak") or answer["reason"]


def _limit_memory() -> None:
    """Lets allocations fail instead of leaving the choice of what to end to the system; Linux counts mappings too."""
    import torch

    from seqmix.evaluation.memory import available_bytes

    available = available_bytes(torch.device("cpu"))
    if sys.platform == "linux" and available is not None:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(SHARE_OF_MEMORY * available), hard))


def _measure(size: TrainingSize) -> dict[str, int | str]:
    import torch

    from seqmix.bench.train import TrainingStep
    from seqmix.evaluation.memory import is_out_of_memory
    from seqmix.training.memory import PeakMemory

    torch.set_num_threads(size.threads)
    device = torch.device(size.device)
    if device.type == "cpu":
        _limit_memory()
    # What libraries load and keep at their first use is not the model's.
    TrainingStep(replace(size, batch_size=1, context=min(size.context, FIRST_CONTEXT)))()
    memory = PeakMemory(device)
    try:
        step = TrainingStep(size)
        for _ in range(STEPS):
            step()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"reason": f"there is no room for a batch of {size.batch_size} x {size.context} tokens"}
    return {"peak": memory.peak()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(TrainingSize(**json.loads(sys.argv[1])))) + "\n")
