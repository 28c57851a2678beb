"""A checkpoint's weights for tests, whole, however many workers wrote it."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from glray.run.checkpoint import TENSORS, committed_checkpoints
from glray.run.run import Run


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """The weights and moments of the run's latest committed checkpoint, by name."""
    return tensors_of(committed_checkpoints(run.checkpoints)[-1])


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the random state."""
    reader = HuggingFaceStorageReader(str(checkpoint / TENSORS))
    tensors = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if not name.startswith("random"):
            assert isinstance(entry, TensorStorageMetadata)
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def same_weights(run: Run, expected: Run) -> bool:
    """Whether two runs end bit-identical, optimizer included."""
    ours, theirs = weights_of(run), weights_of(expected)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
