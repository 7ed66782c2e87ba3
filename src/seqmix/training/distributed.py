"""Training with many processes: torchrun's environment, and the two ways to share the work.

    ddp    every process holds the whole model; gradients are averaged (DistributedDataParallel)
    fsdp   every process holds a shard of each parameter, its gradient and its optimizer state; each block is gathered
           when it is needed (FSDP2, `fully_shard`; ZeRO stage 3, arXiv 1910.02054)

Both read the same rows as one process would: a piece of a batch is cut into equal parts, one for each process. Every
row of the training stream has `context` targets, so a mean of the parts' means is the mean over all targets.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from seqmix.errors import InputError, SeqmixError
from seqmix.models.contenders import LanguageModel, layers_of, make_model
from seqmix.training.checkpoint import CheckpointStore
from seqmix.training.processes import OneProcess, Processes
from seqmix.training.progress import Progress
from seqmix.training.settings import TrainSettings
from seqmix.training.sharded_snapshot import read_sharded_snapshot, write_shards
from seqmix.training.snapshot import write_counters
from seqmix.training.weights import weight_tensors

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in the midst of a step. One that ends is noticed at once, here and below."""

MEETING_TIMEOUT = timedelta(minutes=30)
"""How long it waits between steps, where the first may be writing a checkpoint."""

DATA_TIMEOUT = timedelta(hours=12)
"""How long it waits while the first process of a machine prepares the data."""


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands: `rank` of `count`, and `local_rank` among the `local_count` of its machine."""

    rank: int
    count: int
    local_rank: int
    local_count: int

    @classmethod
    def from_environment(cls) -> Place:
        """As torchrun says; alone where nothing does."""
        values = [int(os.environ.get(name, default)) for name, default in _VARIABLES.items()]
        return cls(rank=values[0], count=values[1], local_rank=values[2], local_count=values[3])


def own_device(device: torch.device) -> torch.device:
    """This process's own device of a kind: its GPU among those of the machine."""
    place = Place.from_environment()
    if device.type != "cuda" or place.count == 1:
        return device
    if device.index is not None:
        raise InputError(f"device '{device}' is one GPU, for {place.count} processes: use --device cuda, one for each")
    if place.local_count > torch.cuda.device_count():
        raise InputError(
            f"torchrun started {place.local_count} processes on a machine with {torch.cuda.device_count()} GPUs: "
            "use --nproc-per-node gpu"
        )
    return torch.device("cuda", place.local_rank)


@contextmanager
def join_processes(settings: TrainSettings, device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, as the settings let them work together; or a single one.

    Raises:
        InputError: the settings do not fit their number.
        SeqmixError: another process ended in the midst of the work.
    """
    place = Place.from_environment()
    if place.count == 1:
        yield OneProcess()
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
    kind = FullySharded if settings.parallel == "fsdp" else DataParallel
    try:
        processes = kind(place, device, settings.precision)
        with processes.together():
            _check(settings, place.count)
        with warnings.catch_warnings():
            # It is about states, which training never writes to.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
            yield processes
    except (RuntimeError, dist.DistError) as error:
        # Gloo's errors have no class of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise SeqmixError(
            f"process {place.rank} lost the other {place.count - 1}: one of them has ended or hangs, see its message; "
            "then continue with --resume"
        ) from error
    if is_ours:
        dist.destroy_process_group()


def _check(settings: TrainSettings, count: int) -> None:
    if settings.parallel == "none":
        raise InputError(f"parallel is 'none' and torchrun started {count} processes: use ddp or fsdp, or one process")
    rows = settings.batch_size // settings.accumulate
    if rows % count:
        raise InputError(
            f"a batch_size of {settings.batch_size} in accumulate={settings.accumulate} pieces cannot be shared "
            f"equally by {count} processes: choose a multiple of {count * settings.accumulate}"
        )


class _Group:
    """What both ways have in common. Control messages take a CPU group of their own, so that no GPU waits for them."""

    def __init__(self, place: Place, device: torch.device, precision: str) -> None:
        self.place = place
        self.device = device
        self.precision = precision
        self.rank = place.rank
        self.count = place.count
        self.writes_files = place.rank == 0
        self._control = dist.new_group(backend="gloo", timeout=MEETING_TIMEOUT)
        self._patient = dist.new_group(backend="gloo", timeout=DATA_TIMEOUT)

    @contextmanager
    def together(self) -> Iterator[None]:
        """The first process raises the error, its own or another's; the others leave quietly, so it is told once."""
        fault: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is raised again, here or in the first process
            fault = error
        faults = self._exchange(
            None if fault is None else [isinstance(fault, InputError), isinstance(fault, SeqmixError), str(fault)]
        )
        if not any(faults):
            return
        if fault is not None and (self.writes_files or not (faults[0] or isinstance(fault, SeqmixError))):
            raise fault
        rank, (is_input, is_known, text) = next((rank, one) for rank, one in enumerate(faults) if one)
        if not self.writes_files:
            raise SystemExit(2 if is_input else 1)
        words = f"process {rank} failed: {text}"
        raise InputError(words) if is_input else SeqmixError(words if is_known else f"{words}; see its own message")

    def _exchange(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in their order."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._control)
        longest = max(int(size) for size in sizes)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
        dist.all_gather(texts, torch.nn.functional.pad(data, (0, longest - len(data))), group=self._control)
        return [json.loads(bytes(text[: int(size)].tolist()).decode()) for text, size in zip(texts, sizes, strict=True)]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.place.local_rank:
            dist.barrier(self._patient)
        try:
            yield
        finally:
            if not self.place.local_rank:
                dist.barrier(self._patient)

    def rows(self, first: int, count: int) -> tuple[int, int]:
        part = count // self.count
        return first + self.rank * part, part

    def mean(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=self._control)
        return total

    def agree(self, *values: float) -> tuple[float, ...]:
        greatest = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self._control)
        return tuple(greatest.tolist())

    def newest(self, store: CheckpointStore, message: Callable[[str], None]) -> Path | None:
        step = -1
        with self.together():
            if self.writes_files and (found := store.newest(message)) is not None:
                step = int(found.name.rpartition("-")[2])
        (chosen,) = self.agree(step)
        if chosen < 0:
            return None
        path = store.path_of(int(chosen))
        with self.together():
            if not path.is_dir():
                raise InputError(f"the checkpoint {str(path)!r} is not seen: --out must be a folder of all machines")
        return path


class DataParallel(_Group):
    """Every process holds the whole model, and the first writes checkpoints as a single process does."""

    def build(
        self,
        create: Callable[[], LanguageModel],
        initialise: Callable[[LanguageModel], None],
        device: torch.device,
    ) -> LanguageModel:
        with self.together():
            return OneProcess().build(create, initialise, device)

    def wrap(self, model: LanguageModel) -> nn.Module:
        # The constructor copies the first process's weights to the others.
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        assert isinstance(module, DistributedDataParallel)
        return nullcontext() if last else module.no_sync()

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return OneProcess().norm(gradients)

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        return OneProcess().clip(parameters, limit)

    def save(
        self,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        metrics_length: int,
    ) -> None:
        # The others wait: the first one's checkpoint must be whole before any of them ends.
        with self.together():
            if self.writes_files:
                OneProcess().save(store, model, optimizer, progress, metrics_length)

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        return OneProcess().load(folder, model, optimizer)

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        return model if self.writes_files else None


class FullySharded(_Group):
    """Every process holds a shard of each parameter; the blocks are gathered one by one, the rest is the root's group.

    In bfloat16 parameters are gathered and used in it, while shards, optimizer and the sum of gradients stay float32.
    """

    def build(
        self,
        create: Callable[[], LanguageModel],
        initialise: Callable[[LanguageModel], None],
        device: torch.device,
    ) -> LanguageModel:
        """The first process draws the whole model in its CPU memory and hands it on, a tensor at a time.

        The others never hold more than their shards and one tensor, so weights are those that one process draws.
        """
        drawn: LanguageModel | None = None
        with self.together():
            if self.writes_files:
                drawn = create()
                initialise(drawn)
            with torch.device("meta"):
                model = create()
        self._shard(model)
        model.to_empty(device=device)
        model.tie_weights()
        set_model_state_dict(
            model,
            {} if drawn is None else drawn.state_dict(),
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
        )
        # What is not in the state dict has to come over too.
        buffers = {} if drawn is None else dict(drawn.named_buffers())
        for name, buffer in model.named_buffers():
            if self.writes_files:
                buffer.copy_(buffers[name])
            dist.broadcast(buffer, 0)
        return model

    def _shard(self, model: LanguageModel) -> None:
        mesh = init_device_mesh(self.device.type, (self.count,))
        low = torch.bfloat16 if self.precision == "bfloat16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        for block in layers_of(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # Embedding and head may be one tensor, so they have to stay in one group.
        fully_shard(model, mesh=mesh, mp_policy=policy)

    def wrap(self, model: LanguageModel) -> nn.Module:
        return model

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        # Every piece's gradients are shared at once: kept whole until the last, they would need the room of a model.
        return nullcontext()

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return _full(torch.nn.utils.get_total_norm(gradients))

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        return _full(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))

    def save(
        self,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        metrics_length: int,
    ) -> None:
        def fill(folder: Path | None) -> dict[str, str]:
            """Tells the others where the shards go, or is told; then all write theirs. Returns all their hashes."""
            place = self._exchange(str(folder.resolve()) if folder else None)[0]
            if not isinstance(place, str):
                # The first process failed before it had a folder, and this is its report of that.
                raise SystemExit(2 if place[0] else 1)
            if not all(self._exchange(Path(place).is_dir())):
                raise InputError(f"{place!r} is not seen by every process: --out must be a folder of all machines")
            hashes = self._exchange(write_shards(Path(place), model, optimizer))
            if folder:
                write_counters(folder, progress, metrics_length)
            return {name: value for one in hashes for name, value in one.items()}

        with self.together():
            if self.writes_files:
                store.save(progress.step, fill)
            else:
                fill(None)

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        return read_sharded_snapshot(folder, model, optimizer, alone=False)

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        tensors: dict[str, Tensor] = {}
        for name, tensor in weight_tensors(model).items():
            full = _full(tensor)
            if self.writes_files:
                tensors[name] = full.cpu()
        if not self.writes_files:
            return None
        with torch.device("meta"):
            gathered = make_model(model.config)
        gathered.load_state_dict(tensors, strict=False, assign=True)
        gathered.tie_weights()
        return gathered


def _full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is in shards; all processes call this at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
