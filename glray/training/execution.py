"""How a run is executed: what its bits depend on beyond its identity.

Float sums differ in their last bits with the number of workers, threads and micro-batches, and with
the kernels of a compiler, a device or a version. So all of that is written into ``run.json`` and
compared when the run goes on: where it is the same, the run ends with the same bits as an
undisturbed one; where it is not, the run says so.
"""

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import torch

from glray.spec.pipeline import PipelineSpec
from glray.training.context import WorkerContext
from glray.training.environment import processor


@dataclass(frozen=True)
class Execution:
    """What float sums depend on."""

    num_workers: int
    threads_per_worker: int
    parallelism: str
    activation_checkpointing: bool
    compile: bool
    device: str
    """Name of the GPU, else of the CPU: rank 0's."""
    torch: str
    transformers: str
    micro_batch_tokens: dict[str, int]
    """Tokens of a worker's batch that go through the model at once, by sequence length."""

    def rows_at_once(self, seq_len: int) -> int:
        """Windows of a micro-batch at ``seq_len``; a length never trained goes by the least."""
        tokens = self.micro_batch_tokens.get(str(seq_len), min(self.micro_batch_tokens.values()))
        return max(1, tokens // seq_len)

    def at(self, seq_lens: tuple[int, ...]) -> "Execution":
        """Only with the micro-batches of ``seq_lens``: what a run of these lengths depends on."""
        known = {str(n): self.micro_batch_tokens[str(n)] for n in seq_lens}
        return replace(self, micro_batch_tokens=known)

    def differences(self, before: dict[str, object]) -> list[str]:
        """``name before → now`` of what differs from a recorded execution."""
        now = asdict(self)
        return [
            f"{name} {before.get(name)} → {now[name]}"
            for name in now
            if before.get(name) != now[name]
        ]


def execution(
    spec: PipelineSpec, ctx: WorkerContext, micro_batch_tokens: dict[str, int]
) -> Execution:
    """How this worker group executes the spec."""
    compute = spec.compute
    gpu = ctx.device.type == "cuda"
    return Execution(
        num_workers=ctx.world_size,
        threads_per_worker=torch.get_num_threads(),
        parallelism=compute.parallelism if ctx.world_size > 1 else "one worker",
        activation_checkpointing=compute.activation_checkpointing,
        compile=compute.compile,
        device=torch.cuda.get_device_name(ctx.device) if gpu else processor(),
        torch=torch.__version__,
        transformers=version("transformers"),
        micro_batch_tokens=micro_batch_tokens,
    )
