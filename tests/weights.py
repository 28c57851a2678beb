"""A checkpoint's weights for tests, whole, however many workers wrote it."""

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from glray.files import AnyPath
from glray.run.checkpoint import committed_checkpoints
from glray.run.run import Run
from glray.train.tensor_files import tensor_reader


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """The weights and moments of the run's latest committed checkpoint, by name."""
    return tensors_of(committed_checkpoints(run.checkpoints)[-1])


def tensors_of(checkpoint: AnyPath) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the random state."""
    with tensor_reader(checkpoint) as reader:
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
