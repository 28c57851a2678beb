"""What this process may use: masks, control groups as files, Slurm's variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glray import machine
from glray.machine import free_memory_bytes, unsupported, usable_cpus, usable_memory_bytes

GIB = 2**30
SLURM = ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")

VERSION_2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
CPU_1 = "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
MEMORY_1 = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def a_node_of_eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


def tree(root: Path, mounts: list[str], own: str, files: dict[str, str]) -> Path:
    """A file system whose control groups have these files."""
    written = files | {"proc/self/mountinfo": "\n".join(mounts), "proc/self/cgroup": own}
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_without_control_groups_the_mask_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8
    assert 0 < free_memory_bytes(tmp_path) == usable_memory_bytes(tmp_path)


@pytest.mark.parametrize(
    ("own", "above", "cpus"),
    [
        ("max 100000", "max 100000", 8),
        ("400000 100000", "max 100000", 4),
        ("max 100000", "300000 100000", 3),  # a limit holds for all below it
        ("250000 100000", "max 100000", 2),
        ("50000 100000", "max 100000", 1),
        ("9900000 100000", "max 100000", 8),
    ],
)
def test_a_quota_of_version_2_counts_wherever_it_is(
    tmp_path: Path, own: str, above: str, cpus: int
) -> None:
    files = {
        "sys/fs/cgroup/system.slice/cpu.max": above,
        "sys/fs/cgroup/system.slice/job_7/cpu.max": own,
    }
    root = tree(tmp_path, [VERSION_2], "0::/system.slice/job_7", files)
    assert usable_cpus(root) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("200000", 2), ("20000", 1)])
def test_a_quota_of_version_1(tmp_path: Path, quota: str, cpus: int) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/slurm/uid_5/job_7"
    files = {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "100000"}
    mounts = [CPU_1.format(shown="/"), MEMORY_1.format(shown="/")]
    own = "5:cpuset:/\n4:cpu,cpuacct:/slurm/uid_5/job_7\n3:memory:/elsewhere"
    assert usable_cpus(tree(tmp_path, mounts, own, files)) == cpus


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
    }
    shown = "/docker/0123"
    mounts = [CPU_1.format(shown=shown), MEMORY_1.format(shown="/docker/other")]
    own = f"4:cpu,cpuacct:{shown}\n3:memory:{shown}"
    root = tree(tmp_path, mounts, own, files)
    assert usable_cpus(root) == 3
    assert usable_memory_bytes(root) == GIB


def test_cached_files_are_free_in_version_2(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/job"
    files = {
        f"{group}/memory.max": str(GIB),
        f"{group}/memory.current": str(GIB - 1000),
        f"{group}/memory.stat": "anon 500\ninactive_anon 7\nactive_file 30000\n"
        "inactive_file 200000",
        "proc/meminfo": f"MemTotal: {GIB} kB\nMemAvailable: {GIB} kB",
    }
    root = tree(tmp_path, [VERSION_2], "0::/job", files)
    assert usable_memory_bytes(root) == GIB
    assert free_memory_bytes(root) == 1000 + 200_000 + 30_000


def test_a_group_above_may_have_less_left(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/job/memory.max": str(2 * GIB),
        "sys/fs/cgroup/job/memory.current": "0",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.high": str(GIB),
        "sys/fs/cgroup/memory.current": str(GIB - 4096),
    }
    root = tree(tmp_path, [VERSION_2], "0::/job", files)
    assert usable_memory_bytes(root) == GIB
    assert free_memory_bytes(root) == 4096


def test_cached_files_are_free_in_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/slurm/job_7"
    files = {
        f"{group}/memory.limit_in_bytes": str(GIB),
        f"{group}/memory.usage_in_bytes": str(GIB),
        f"{group}/memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 4000\n"
        "total_active_file 500",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # none
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(50 * GIB),
    }
    root = tree(tmp_path, [MEMORY_1.format(shown="/")], "4:memory:/slurm/job_7", files)
    assert free_memory_bytes(root) == 4500


def test_what_the_system_has_left_is_a_bound_too(tmp_path: Path) -> None:
    root = tree(tmp_path, [], "", {"proc/meminfo": "MemFree: 1 kB\nMemAvailable:   100 kB"})
    assert free_memory_bytes(root) == 100 * 1024


def test_slurm_that_enforces_nothing_has_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert usable_cpus(tmp_path) == 2
    whole = usable_memory_bytes(tmp_path)
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "64")
    assert usable_memory_bytes(tmp_path) == free_memory_bytes(tmp_path) == 128 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert usable_memory_bytes(tmp_path) == 100 * 2**20
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert usable_memory_bytes(tmp_path) == whole
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    assert usable_cpus(tmp_path) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system without masks")
def test_taskset_counts() -> None:
    cpu = min(json.loads(seen("import os; print(list(os.sched_getaffinity(0)))")))
    code = "from glray.machine import usable_cpus; print(usable_cpus())"
    assert seen(code, "taskset", "-c", str(cpu)) == "1\n"


def seen(code: str, *before: str) -> str:
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_windows_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert refused(capsys) == (
        "error: glray does not run on Windows itself: install it in the Windows Subsystem for "
        "Linux (wsl --install), as on Linux\n"
    )


def test_a_python_that_ray_has_no_package_for_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    said = refused(capsys)
    assert said.startswith("error: Ray is not installed for this Python (CPython 3.")
    assert said.count("\n") == 1
    assert "3.11 to 3.14" in said


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on stderr when it ends before it has looked at its arguments."""
    from glray.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_this_machine_is_supported() -> None:
    assert unsupported() is None
