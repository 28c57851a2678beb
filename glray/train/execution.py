"""What a run's bits and its numbers depend on beyond its identity.

Float sums differ in their last bits with the number of workers, threads and micro-batches, and with
the kernels of a compiler, a device or a version. So all of that is written into ``run.json`` and
compared when the run goes on: where it is the same, the run ends with the same bits as an
undisturbed one; where it is not, the run says so. The environment is the machine that the run's
seconds belong to.
"""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import glray
from glray.machine import usable_cpus, usable_memory_bytes
from glray.run.records import Execution
from glray.spec.compute import ComputeSpec
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext

CPU_MOST_TOKENS = 16_384
"""On a CPU more tokens at once make nothing faster."""
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""With one of these cuBLAS sums in the same order each time
(https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html)."""


def choose_kernels(compute: ComputeSpec, ctx: WorkerContext) -> None:
    """Have PyTorch run deterministic kernels alone in this process, if the spec asks for them on a
    GPU; before the first product there."""
    if not compute.deterministic or ctx.device.type != "cuda":
        return
    os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACES[0])
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if compute.compile:
        import torch._inductor.config as inductor

        inductor.deterministic = True  # picks no kernel by its time


def is_deterministic(device: torch.device) -> bool:
    """Whether the same work gives the same bits each time: on a CPU it does."""
    fixed = os.environ.get(CUBLAS_WORKSPACE) in FIXED_WORKSPACES
    return device.type == "cpu" or (torch.are_deterministic_algorithms_enabled() and fixed)


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
        deterministic=is_deterministic(ctx.device),
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
    """Versions, commit and hardware, as plain values for ``run.json``; of a GPU its memory, and
    CUDA's, cuDNN's and the driver's version too. Ray's is None where Ray is not installed."""
    return {
        "glray": glray.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": _version("ray"),
        "transformers": version("transformers"),
        "processor": _processor(),
        "num_cpus": usable_cpus(),
        "memory_gib": round(usable_memory_bytes() / 2**30, 1),
        **(_gpu(ctx.device) if ctx.device.type == "cuda" else {"gpu": None}),
        "num_workers": ctx.world_size,
        "threads_per_worker": torch.get_num_threads(),
    }


def device_name(ctx: WorkerContext) -> str:
    """The name of this worker's GPU, else of its CPU."""
    return torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else _processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(device: torch.device) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver_version(),
    }


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The NVIDIA driver's, as the kernel tells it; None if it does not."""
    try:
        found = re.search(r"\b\d{3,}(\.\d+)+\b", path.read_text())
    except OSError:
        return None
    return found[0] if found else None


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
