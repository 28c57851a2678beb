"""Tensors of all ranks in one folder: a safetensors file of each rank, written beside training.

Who saves what and who loads what of it is planned by ``torch.distributed.checkpoint``, and the
files are of the form that its ``HuggingFaceStorageReader`` reads
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). They are written here because
its own writer first makes one ``bytes`` of all tensors, copied twice, and hashes nothing.
"""

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from glray.files import naming
from glray.run.checkpoint import CommittedFile

DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
"""The tensors of a checkpoint (weights and moments; random states), in safetensors' words."""
CHUNK_BYTES = 8 * 2**20
"""Written and hashed at once."""
REST = 9.0
"""Seconds that the writing thread rests for each second that it computes: then it takes a tenth of
a core. All threads of a step wait for the slowest, so one that loses half of its core for a second
costs a second."""


class HostMemory:
    """Where the tensors of this rank's checkpoints are copied to: as many bytes as the largest has,
    allocated once; pinned if they come from a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, num_bytes: int) -> torch.Tensor:
        """uint8[num_bytes], overwritten by the next call."""
        if len(self._bytes) < num_bytes:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # freed first
            pinned = self.device.type == "cuda"
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        return self._bytes[:num_bytes]


@dataclass(frozen=True)
class RankFile:
    """The file of one rank in memory, apart from the tensors, which may change."""

    path: Path
    content: torch.Tensor
    """uint8[bytes of the file]."""

    def write(self, is_dropped: threading.Event, is_awaited: threading.Event) -> CommittedFile:
        """Write, hash and sync it, slowly as long as nobody waits for it. Raises OSError where the
        storage is full; returns early if it is dropped."""
        digest = hashlib.sha256()
        with naming(self.path), self.path.open("wb") as file:
            for chunk in self.content.split(CHUNK_BYTES):
                if is_dropped.is_set():
                    break
                start = time.thread_time()
                data = memoryview(chunk.numpy())
                file.write(data)
                digest.update(data)
                is_awaited.wait(REST * (time.thread_time() - start))
            else:
                file.flush()
                os.fsync(file.fileno())
        return CommittedFile(bytes=len(self.content), sha256=digest.hexdigest())


def copy_tensors(
    directory: Path, tensors: dict[str, torch.Tensor], memory: HostMemory, *, no_dist: bool
) -> RankFile | None:
    """Copy this rank's share of ``tensors`` to ``memory``; returns the file to write in
    ``directory``, which is made, or None if others have all of it.

    Every rank calls it with its own tensors, whole or shards, and may change them afterwards.
    Raises OSError where the storage is full.
    """
    copier = _Copier(directory, memory)
    with _own_errors():
        dcp.save(tensors, storage_writer=copier, no_dist=no_dist)
    return copier.file


def file_name(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def read_tensors(directory: Path, tensors: dict[str, torch.Tensor], *, no_dist: bool) -> None:
    """Fill ``tensors``, whole or shards, from a folder that any number of ranks wrote."""
    with _own_errors():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=no_dist)


def written_names(directory: Path) -> set[str]:
    """The names of the tensors in a folder."""
    return set(HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata)


class _Copier(StorageWriter):
    """Takes what ``torch.distributed.checkpoint`` deals to this rank, and writes nothing yet."""

    def __init__(self, directory: Path, memory: HostMemory) -> None:
        self.directory, self.memory = directory, memory
        self.file: RankFile | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See StorageWriter: nothing is kept from one save to another."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See StorageWriter: all ranks are alike."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See StorageWriter: called by every rank, which so finds the folder."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """See StorageWriter: each rank's file by its number."""
        return [replace(plan, storage_data=file_name(rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See StorageWriter: this rank's tensors, copied."""
        tensors, offsets = {}, {}
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            assert item.tensor_data is not None
            tensors[item.index.fqn] = tensor.detach()
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        if tensors:
            metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"}
            content = _laid_out(tensors, metadata, self.memory)
            self.file = RankFile(self.directory / plan.storage_data, content)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, plan.storage_data) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See StorageWriter: what is written is known later."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """See StorageWriter: the folder is given to the constructor."""
        return True


def _laid_out(
    tensors: Mapping[str, torch.Tensor], metadata: dict[str, str], memory: HostMemory
) -> torch.Tensor:
    """The safetensors file of ``tensors``, uint8[bytes]: the length of the header in 8 bytes, the
    header, the tensors without gaps, those of wider numbers first so that all are aligned
    (https://huggingface.co/docs/safetensors, "Format")."""
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in ordered:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype, shape = DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    content = memory.reserve(start + end)
    head = len(text).to_bytes(8, "little") + text
    content[:start] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    for name in ordered:
        tensor = tensors[name]
        begin, stop = header[name]["data_offsets"]
        place = content[start + begin : start + stop].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor, non_blocking=True)
    if memory.device.type == "cuda":
        torch.cuda.synchronize(memory.device)
    return content


@contextmanager
def _own_errors() -> Iterator[None]:
    """Unwrap an OSError of the storage from PyTorch's error, which says less."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except dcp.CheckpointException as error:
            for failure, _ in error.failures.values():
                if isinstance(failure, OSError):
                    raise failure from None
            raise
