"""How much memory some work takes, and what does not fit.

On a GPU that is tried in this process. On a CPU a process that asks for too much would be ended by
the system, perhaps after others: it is measured with little, or in a process of its own that may
not take more than a given budget.
"""

import multiprocessing
import os
import re
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from glray.train.parallel import release_models

GPU_SHARE = 0.92
"""Of a GPU's memory that may be reserved: the rest is for what varies."""
MAX_TEMPORARY_BYTES = 70
"""Of the path of temporary files: 31 more make that of a socket, which has at most 103 on macOS."""

_OUT_OF_MEMORY = ("out of memory", "_status_alloc_failed", "can't allocate memory")
"""In lower case, what errors say that are not PyTorch's own: of CUDA and Triton, of NCCL (a
``DistBackendError`` with CUDA's text), of cuBLAS and cuDNN (a handle or a workspace), of a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, whichever library found out.

    Near a full GPU it is not always the allocator of PyTorch: cuBLAS makes its workspace, Triton
    loads a kernel and NCCL its buffers outside of it. (Triton's "out of resource" is of a block's
    shared memory, which no smaller batch changes.)
    """
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(said in text for said in _OUT_OF_MEMORY)
    )


def gpu_budget_bytes(device: torch.device) -> int:
    """What of a GPU's memory may be reserved."""
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_SHARE)


def gpu_peak_bytes(work: Callable[[], None], device: torch.device, budget: int) -> int | None:
    """What is allocated at the peak of ``work``; None if it needs more than ``budget`` or the GPU
    has not enough.

    During the work this process gets no more than the budget, so that all ranks with the same
    budget fail at the same byte, and with room left for what libraries allocate by themselves.
    """
    release_models()  # of the try before
    torch.cuda.reset_peak_memory_stats(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device)
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return torch.cuda.max_memory_allocated(device)


def halved_until_it_fits(rows: int, peak: Callable[[int], int | None]) -> tuple[int, int | None]:
    """Rows and their ``peak``, the first that fits of ``rows``, half of them and so on down to one;
    None if not even that does."""
    while (taken := peak(rows)) is None and rows > 1:
        rows = -(-rows // 2)
    return rows, taken


def peak_bytes(work: Callable[[], None]) -> int | None:
    """How far this process's memory rises above what it has now while ``work`` is done; None where
    the system (other than Linux) does not count that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    except OSError:
        return None
    before = _counted_bytes("VmRSS")
    work()
    peak = _counted_bytes("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def _counted_bytes(name: str) -> int | None:
    path = Path("/proc/self/status")
    found = path.exists() and re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def peak_bytes_in_a_process(work: Callable[[], None], budget: int) -> int | None:
    """``peak_bytes`` of ``work`` in a process of its own; None if it takes more than ``budget``, or
    the system ends it. What else it raises, this raises."""
    context = _process_context()
    with ProcessPoolExecutor(1, context) as pool:
        try:
            peak = pool.submit(_peak_bytes_within, budget, work).result()
        except BrokenProcessPool:
            return None
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return None
            raise
    return peak if peak is None or peak <= budget else None


def _process_context() -> BaseContext:
    """A server that has imported the model's code forks the processes, unless its socket's path
    would be too long below a long ``TMPDIR``: then each imports it again."""
    if len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_BYTES:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glray.train.probe.profile"])
    return context


def _peak_bytes_within(budget: int, work: Callable[[], None]) -> int | None:
    """From here on this process gets no more than so many bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + budget
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return peak_bytes(work)
