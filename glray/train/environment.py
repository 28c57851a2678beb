"""The machine and versions that a run's figures belong to."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import glray
from glray.train.context import WorkerContext


def environment(ctx: WorkerContext) -> dict[str, object]:
    """Versions, commit and hardware, as plain values for ``run.json``."""
    gpu = torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else None
    return {
        "glray": glray.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "transformers": version("transformers"),
        "processor": processor(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
        "num_workers": ctx.world_size,
        "threads_per_worker": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the source tree, ``-dirty`` if it has changes; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def processor() -> str:
    """The name of this machine's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
