"""How a run is executed: what its bits depend on beyond its identity.

Float sums differ in their last bits with the number of workers, threads and micro-batches, and with
the kernels of a compiler, a device or a version. So all of that is written into ``run.json`` and
compared when the run goes on: where it is the same, the run ends with the same bits as an
undisturbed one; where it is not, the run says so.
"""

from importlib.metadata import version

import torch

from glray.run.records import Execution
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.environment import processor


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
