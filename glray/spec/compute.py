"""Where and how it runs. Nothing here changes what is computed, except the order of float sums and,
under FSDP2, what bfloat16 rounds."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from glray.spec.base import Count, Integer, Spec


def _without_last_slash(folder: str) -> str:
    return re.sub(r"(?<=[^/:])/+$", "", folder)


class ComputeSpec(Spec):
    """Workers, storage and the like: execution, never identity."""

    num_workers: Count | tuple[Count, Count] = 1
    """Data-parallel workers. (fewest, most): as many as there is room for, fewer after a node is
    lost, more again when one joins."""
    groups: Count | None = None
    """Most worker groups that train at once, each one run. None: as many as there is room for."""
    cpus_per_worker: Count = 1
    """CPU cores, and compute threads, of each worker."""
    use_gpu: bool = False
    """One GPU for each worker."""
    storage: Annotated[str, AfterValidator(_without_last_slash)] = "runs"
    """Folder for token blocks and runs; on a cluster, one that every node sees under this path. Or
    a place in an object store: ``s3://bucket/folder``, ``gs://``, ``az://``."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Each worker holds the whole model and optimizer (DDP) or a shard of them (FSDP2)."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the decoder blocks with ``torch.compile``, for every length before step 0."""
    deterministic: bool = False
    """On a GPU, run only kernels that give the same bits each time, which are slower; a CPU's do
    anyway."""
    micro_batch_tokens: Count | Literal["auto"] = 16_384
    """Tokens of a worker's batch that go through the model at once (at least one row). ``auto``:
    the most that fits in memory, found for each length before step 0."""
    checkpoint_every_seconds: float = Field(default=300, gt=0)
    """Wall seconds after a checkpoint until the next, at a logging boundary; every stage ends with
    one too."""
    checkpoint_every_tokens: Count | None = None
    """Tokens between further checkpoints, at the same steps whenever the run is trained."""
    keep_checkpoints: Literal["stages", "all"] | None = None
    """Checkpoints that stay beside the latest two: those at the ends of stages, or all, so that
    other pipelines can go on from there (``start``). None: an older one stays only as long as an
    arm of the pipeline is still to fork from it."""
    calibrate: bool = False
    """Measure what a step costs at each length even where nothing is declared in seconds: then
    claims about seconds are judged by that."""
    log_every_steps: Count = 10
    """Steps between metrics, which are then copied from the device and written."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """Weights & Biases project that also receives the metrics; needs ``glray[wandb]``."""
    wait_seconds: Integer = Field(default=600, ge=0)
    """How long to wait until a joined cluster has room for the workers."""

    @property
    def least_workers(self) -> int:
        """The fewest workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The most workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def model_post_init(self, context: Any) -> None:
        if self.least_workers > self.most_workers:
            raise ValueError(
                f"compute.num_workers {self.num_workers} is (fewest, most): put the smaller first"
            )
        if self.calibrate and self.least_workers != self.most_workers:
            raise ValueError(
                f"compute.calibrate measures what a step costs one number of workers, but "
                f"compute.num_workers is {self.num_workers}, and any of them may train: set one "
                "number, or calibrate=false"
            )
