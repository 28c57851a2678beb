"""What this process may use of its machine: a share of the CPUs and of the memory, not all of them.

A share is given by an affinity mask (``taskset``, Slurm, cpusets), by the limits of the process's
control group and of those above it, version 1 or 2 (containers, Slurm, systemd), or, where Slurm
enforces neither, by its variables alone.
"""

import os
import platform
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path("/")
"""Where ``/proc`` and the control groups are looked up; tests give another."""
NICENESS = 10
"""Of a thread that yields to others: beside one that computes it gets a tenth of a core. At 19 it
would get a hundredth, at 0 half."""

_MOUNT = re.compile(
    r"(?:\S+ ){3}(?P<shown>\S+) (?P<at>\S+) .*- (?P<kind>cgroup2?) \S+ (?P<options>\S+)"
)
"""A line of ``/proc/self/mountinfo``: ``at`` shows the tree of groups from ``shown`` down."""


def usable_cpus(root: Path = ROOT) -> int:
    """CPUs that this process may use at once, at least 1. Of a quota counts what is whole."""
    has_mask = hasattr(os, "sched_getaffinity")  # macOS has none
    cpus: float = len(os.sched_getaffinity(0)) if has_mask else os.cpu_count() or 1
    quotas = [_quota(group) for group in _groups("cpu", root)]
    return max(1, int(min(cpus, *quotas, _slurm("SLURM_CPUS_ON_NODE") or cpus)))


def usable_memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process may take together with all that its control groups hold."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for group in _groups("memory", root) for limit in _limits(group)]
    return min(total, *limits, _slurm_memory_bytes() or total)


def free_memory_bytes(root: Path = ROOT) -> int:
    """What of the usable memory is free; cached files count as free, as the system drops them
    first. All of it where the system (other than Linux) does not say."""
    free = [usable_memory_bytes(root)]
    if available := re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo")):
        free.append(int(available[1]) * 1024)
    for group in _groups("memory", root):
        free += [limit - _used_bytes(group) for limit in _limits(group)]
    return max(0, min(free))


def yield_to_other_threads() -> None:
    """Let this process's other threads go before this one, where a thread has a priority of its
    own, which is on Linux."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        with suppress(OSError):  # a sandbox may not allow it
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


# ---- control groups


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's group under a controller and of the groups above it, as far as
    they can be seen: each limits all below it."""
    own = [line.split(":", 2)[1:] for line in _text(root / "proc/self/cgroup").splitlines()]
    for mount in map(_MOUNT.match, _text(root / "proc/self/mountinfo").splitlines()):
        if mount is None:
            continue
        names = (
            {""} if mount["kind"] == "cgroup2" else {controller} & {*mount["options"].split(",")}
        )
        top = root / mount["at"].lstrip("/")
        for path in (path for controllers, path in own if names & {*controllers.split(",")}):
            below = os.path.relpath(path, mount["shown"])
            # A container may see its own group as the top, under a path from outside.
            group = top if below.startswith("..") else top / below
            yield group
            yield from (above for above in group.parents if above.is_relative_to(top))


def _quota(group: Path) -> float:
    """CPUs that the group may use at once; infinite without a quota (``max``, -1)."""
    quota = _text(group / "cpu.max") or " ".join(
        _text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    numbers = re.fullmatch(r"(\d+) (\d+)", quota)
    return int(numbers[1]) / int(numbers[2]) if numbers else float("inf")


def _limits(group: Path) -> list[int]:
    """In bytes; above ``memory.high`` the group is slowed down, not ended."""
    texts = [_text(group / f"memory.{name}") for name in ("max", "high", "limit_in_bytes")]
    return [int(text) for text in texts if text.isdigit()]


def _used_bytes(group: Path) -> int:
    """What the group and those below it use, but for cached files."""
    used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes") or "0"
    statistics = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    prefix = "total_" if "total_inactive_file" in statistics else ""  # version 1: with those below
    cached = [int(statistics.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active")]
    return int(used) - sum(cached)


def _text(path: Path) -> str:
    """A file's text without the space around it; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# ---- Slurm


def _slurm(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else None  # 0 for memory: all of the node's


def _slurm_memory_bytes() -> int | None:
    """What the job may take of this node; None outside of a job or without a limit."""
    whole, of_cpu = _slurm("SLURM_MEM_PER_NODE"), _slurm("SLURM_MEM_PER_CPU")
    mebibytes = whole or (of_cpu or 0) * (_slurm("SLURM_CPUS_ON_NODE") or 0)
    return mebibytes * 2**20 or None


# ---- what glray runs on


def unsupported() -> str | None:
    """Why glray cannot run here, in one line with the remedy; None where it can."""
    if sys.platform == "win32":
        return (
            "glray does not run on Windows itself: install it in the Windows Subsystem for Linux "
            "(wsl --install), as on Linux"
        )
    if find_spec("ray") is None:
        own = f"{platform.python_implementation()} {platform.python_version()}"
        return (
            f"Ray is not installed for this Python ({own}, {sysconfig.get_platform()}): it has "
            "packages for CPython 3.11 to 3.14, on Linux with glibc and macOS on arm64; make an "
            "environment with one of these and install glray there"
        )
    return None
