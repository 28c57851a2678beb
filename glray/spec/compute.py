"""Where and how it runs: nothing here changes what is computed, but for the order of float sums."""

from pydantic import Field

from glray.spec.base import Spec


class ComputeSpec(Spec):
    """Workers, storage and the like: execution, never identity."""

    num_workers: int = Field(default=1, ge=1)
    """Data-parallel workers."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores of each worker, and its number of compute threads."""
    use_gpu: bool = False
    """One GPU for each worker."""
    storage: str = "runs"
    """Folder for token blocks and runs; on a cluster, one that every node sees under this path."""
    micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens of a worker's batch that go through the model at once (at least one row)."""
    checkpoint_every_tokens: int = Field(default=50_000_000, ge=1)
    """A checkpoint this often, and at every stage edge."""
    log_every_steps: int = Field(default=10, ge=1)
    """Metrics are brought from the device and written this often."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """Weights & Biases project that is shown the metrics as well; needs ``glray[wandb]``."""
    wait_seconds: int = Field(default=600, ge=0)
    """How long to wait for a joined cluster to have the workers asked for."""
