"""What a run's bits and its numbers depend on beyond its identity.

Float sums differ in their last bits with the number of workers, threads and micro-batches, and with
the kernels of a compiler, a device or a version. So all of that is written into ``run.json`` and
compared when the run goes on: where it is the same, the run ends with the same bits as an
undisturbed one; where it is not, the run says so. The environment is the machine that the run's
seconds belong to.
"""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import glray
from glray.machine import usable_cpus, usable_memory_bytes
from glray.run.records import Execution
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext

CPU_MOST_TOKENS = 16_384
"""On a CPU more tokens at once make nothing faster."""


def execution(
    spec: PipelineSpec, ctx: WorkerContext, micro_batch_tokens: dict[str, int] | None = None
) -> Execution:
    """How this worker group executes the spec; its micro-batches as declared unless given."""
    compute = spec.compute
    return Execution(
        num_workers=ctx.world_size,
        threads_per_worker=torch.get_num_threads(),
        parallelism=_parallelism(spec) if ctx.world_size > 1 else "one worker",
        activation_checkpointing=compute.activation_checkpointing,
        compile=compute.compile,
        device=device_name(ctx),
        torch=torch.__version__,
        transformers=version("transformers"),
        micro_batch_tokens=micro_batch_tokens or declared_micro_batches(spec),
    )


def _parallelism(spec: PipelineSpec) -> str:
    """FSDP2 in bfloat16 rounds more than DDP: see ``glray.train.parallel.computing_in``."""
    kind = spec.compute.parallelism
    return "fsdp, bfloat16 throughout" if (kind, spec.precision) == ("fsdp", "bfloat16") else kind


def declared_micro_batches(spec: PipelineSpec) -> dict[str, int]:
    """Tokens of a micro-batch by length, as declared; ``auto`` counts as 16,384."""
    declared = spec.compute.micro_batch_tokens
    most = CPU_MOST_TOKENS if declared == "auto" else declared
    return {str(seq_len): max(seq_len, most) for seq_len in spec.all_seq_lens}


def environment(ctx: WorkerContext) -> dict[str, object]:
    """Versions, commit and hardware, as plain values for ``run.json``."""
    return {
        "glray": glray.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "transformers": version("transformers"),
        "processor": _processor(),
        "num_cpus": usable_cpus(),
        "memory_gib": round(usable_memory_bytes() / 2**30, 1),
        "gpu": device_name(ctx) if ctx.device.type == "cuda" else None,
        "num_workers": ctx.world_size,
        "threads_per_worker": torch.get_num_threads(),
    }


def device_name(ctx: WorkerContext) -> str:
    """The name of this worker's GPU, else of its CPU."""
    return torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else _processor()


def _commit() -> str | None:
    """The commit of the source tree, ``-dirty`` if it has changes; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
