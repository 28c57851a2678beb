"""Tensors of all ranks in one folder: a safetensors file of each rank, written beside training.

Who saves what and who loads what of it is planned by ``torch.distributed.checkpoint``, and the
files are of the form that its ``HuggingFaceStorageReader`` reads
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). They are written here because
its own writer first makes one ``bytes`` of all tensors, copied twice, and hashes nothing.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from glray.files import AnyPath, StorePath, chunks, naming, read_range, write_chunks
from glray.run.checkpoint import TENSORS, CommittedFile, tensor_files

DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
"""The tensors of a checkpoint (weights and moments; random states), in safetensors' words."""
CHUNK_BYTES = 8 * 2**20
"""Written and hashed at once."""
HEAD_BYTES = 2**20
"""Read of a file at once for its header."""
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

    path: AnyPath
    content: torch.Tensor
    """uint8[bytes of the file]."""

    def write(self, is_dropped: threading.Event, is_awaited: threading.Event) -> CommittedFile:
        """Write, hash and sync it, slowly as long as nobody waits for it. Raises OSError where the
        storage is full, and if it is dropped."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[memoryview]:
            for chunk in self.content.split(CHUNK_BYTES):
                if is_dropped.is_set():
                    raise InterruptedError
                start = time.thread_time()
                data = memoryview(chunk.numpy())
                yield data
                digest.update(data)
                is_awaited.wait(REST * (time.thread_time() - start))

        with naming(self.path):
            write_chunks(self.path, chunks(), len(self.content))
        return CommittedFile(bytes=len(self.content), sha256=digest.hexdigest())


def copy_tensors(
    directory: AnyPath,
    tensors: dict[str, torch.Tensor],
    memory: HostMemory,
    *,
    attempt: str = "",
    no_dist: bool,
) -> RankFile | None:
    """Copy this rank's share of ``tensors`` to ``memory``; returns the file to write in
    ``directory``, which is made, or None if others have all of it. Its name has the ``attempt``.

    Every rank calls it with its own tensors, whole or shards, and may change them afterwards.
    Raises OSError where the storage is full.
    """
    copier = _Copier(directory, memory, attempt)
    with _own_errors():
        dcp.save(tensors, storage_writer=copier, no_dist=no_dist)
    return copier.file


def file_name(rank: int, attempt: str = "") -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}{attempt}.safetensors"


@contextmanager
def tensor_reader(path: AnyPath) -> Iterator[HuggingFaceStorageReader]:
    """A reader of a committed checkpoint's tensors, which any number of ranks wrote."""
    directory = path / TENSORS
    if isinstance(directory, StorePath):
        with tempfile.TemporaryDirectory(prefix="glray-") as copy:
            yield _StoreReader(directory, tensor_files(path), Path(copy))
    else:
        yield HuggingFaceStorageReader(str(directory))


def read_tensors(
    reader: HuggingFaceStorageReader, tensors: dict[str, torch.Tensor], *, no_dist: bool
) -> None:
    """Fill ``tensors``, whole or shards, each rank with what it needs."""
    with _own_errors():
        dcp.load(tensors, storage_reader=reader, no_dist=no_dist)


def written_names(reader: HuggingFaceStorageReader) -> set[str]:
    """The names of the tensors."""
    return set(reader.read_metadata().state_dict_metadata)


class _StoreReader(HuggingFaceStorageReader):
    """Reads from sparse copies on this machine, which have the files' headers and, of their
    tensors, those that this rank loads."""

    def __init__(self, directory: StorePath, names: list[str], copy: Path) -> None:
        self._directory, self._copy = directory, copy
        self._starts: dict[str, int] = {}
        """Where the tensors begin in each file."""
        self._headers: dict[str, dict[str, Any]] = {}
        for name in names:
            head = read_range(directory / name, 0, HEAD_BYTES)
            start = 8 + int.from_bytes(head[:8], "little")
            if len(head) < start:
                head += read_range(directory / name, len(head), start - len(head))
            self._starts[name], self._headers[name] = start, json.loads(head[8:start])
            with (copy / name).open("wb") as file:
                file.write(head[:start])
                file.truncate((directory / name).stat().st_size)
        super().__init__(str(copy))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """See StorageReader: after what is asked for has been copied."""
        wanted: dict[str, set[str]] = {}
        for item in plan.items:
            path = Path(self.storage_data[item.storage_index].relative_path)
            wanted.setdefault(path.name, set()).add(item.storage_index.fqn)
        for name, tensors in wanted.items():
            with (self._copy / name).open("r+b") as file:
                for begin, end in _joined(
                    self._headers[name][tensor]["data_offsets"] for tensor in tensors
                ):
                    start = self._starts[name]
                    file.seek(start + begin)
                    for data in chunks(self._directory / name, start + begin, start + end):
                        file.write(data)
        return super().read_data(plan, planner)


def _joined(ranges: Iterable[list[int]]) -> Iterator[tuple[int, int]]:
    """The same bytes in as few ranges as possible, ascending."""
    first = last = None
    for begin, end in sorted(ranges):
        if first is None or last is None:
            first, last = begin, end
        elif begin == last:
            last = end
        else:
            yield first, last
            first, last = begin, end
    if first is not None and last is not None:
        yield first, last


class _Copier(StorageWriter):
    """Takes what ``torch.distributed.checkpoint`` deals to this rank, and writes nothing yet."""

    def __init__(self, directory: AnyPath, memory: HostMemory, attempt: str) -> None:
        self.directory, self.memory, self.attempt = directory, memory, attempt
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
        names = (file_name(rank, self.attempt) for rank in range(len(plans)))
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

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
