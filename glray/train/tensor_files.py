"""Tensors of all ranks in one folder: a safetensors file of each rank, hashed as it is written.

Who saves what and who loads what of it is planned by ``torch.distributed.checkpoint``, and the
files are of the form that its ``HuggingFaceStorageReader`` reads
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). They are written here because
its own writer first makes one ``bytes`` of all tensors, copied twice, and hashes nothing: a
checkpoint takes twice the seconds.
"""

import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from glray.files import naming, sha256_of
from glray.run.checkpoint import CommittedFile


def write_tensors(
    directory: Path, tensors: dict[str, torch.Tensor], *, no_dist: bool
) -> dict[str, CommittedFile]:
    """Write ``tensors`` to a new folder; every rank calls it with its own, whole or shards.

    The files are returned by name, on rank 0 alone. Raises OSError where the storage is full.
    """
    writer = _RankFiles(directory)
    with _own_errors():
        dcp.save(tensors, storage_writer=writer, no_dist=no_dist)
    return writer.files


def read_tensors(directory: Path, tensors: dict[str, torch.Tensor], *, no_dist: bool) -> None:
    """Fill ``tensors``, whole or shards, from a folder that any number of ranks wrote."""
    with _own_errors():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=no_dist)


def written_names(directory: Path) -> set[str]:
    """The names of the tensors in a folder."""
    return set(HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata)


class _RankFiles(StorageWriter):
    """One file a rank; its hash travels to rank 0 with what the rank has written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, CommittedFile] = {}

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
        return [
            replace(plan, storage_data=f"rank-{rank:05d}.safetensors")
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See StorageWriter: this rank's file, hashed while it goes to the disk."""
        results = []
        if plan.items:
            tensors, offsets = {}, {}
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, torch.Tensor)
                assert item.tensor_data is not None
                tensors[item.index.fqn] = tensor.cpu()
                offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            file = self.directory / plan.storage_data
            metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"}
            with naming(file):
                save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata)
            with ThreadPoolExecutor(max_workers=1) as pool:
                synced = pool.submit(_sync, file)
                written = CommittedFile(bytes=file.stat().st_size, sha256=sha256_of(file))
                synced.result()
            results = [
                WriteResult(item.index, tensors[item.index.fqn].nbytes, (file.name, written))
                for item in plan.items
            ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See StorageWriter: rank 0 learns of all files."""
        self.files = dict(of_rank[0].storage_data for of_rank in results if of_rank)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """See StorageWriter: the folder is given to the constructor."""
        return True


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


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
