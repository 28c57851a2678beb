"""What the machine can do at most: the denominator of MFU, measured, and as its maker states it."""

import time
from dataclasses import dataclass

import torch

from glray.train.context import WorkerContext, device_clock, least_over_ranks
from glray.train.execution import device_name

SMALLEST, LARGEST = 1024, 8192
"""Rows of the products that are tried. Of 256 rows one was seen to take 16 ms instead of 0.3 beside
other processes on the same two cores, as its threads wait for each other; 8192 are 400 MB."""
ENOUGH_SECONDS, MIN_PRODUCTS = 0.3, 5
"""For how long products are tried, and how many at least."""
WARM_SECONDS = 0.2
"""For how long a GPU computes products that do not count: idle, its clock is a fraction of what it
is under load, and the first product of all creates the device's context and cuBLAS's handle."""

# FLOP/s of dense matrix products, by PyTorch's name of the device, whole (a MIG slice is less and
# has another name). NVIDIA's data sheets; where they give bfloat16 with sparsity, half of it:
#   https://www.nvidia.com/en-us/data-center/h200/  https://www.nvidia.com/en-us/data-center/h100/
#   https://www.nvidia.com/en-us/data-center/a100/  https://www.nvidia.com/en-us/data-center/l4/
#   https://www.nvidia.com/en-us/data-center/l40s/
_H100_SXM = {"bfloat16": 989e12, "float32": 67e12}
_H100_NVL = {"bfloat16": 835e12, "float32": 60e12}
_A100 = {"bfloat16": 312e12, "float32": 19.5e12}
NOMINAL = {
    "NVIDIA H200": _H100_SXM,
    "NVIDIA H200 NVL": _H100_NVL,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 51e12},
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": {"bfloat16": 362e12, "float32": 91.6e12},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 30.3e12},
}


@dataclass(frozen=True)
class MatmulPeak:
    """FLOP/s of one worker's matrix products."""

    measured: float
    """Of the slowest rank."""
    nominal: float | None
    """As the maker states it; None if unknown."""


def matmul_peak(ctx: WorkerContext, precision: str) -> MatmulPeak:
    """Measure in the training precision. Every rank calls it: they measure at the same time, as
    they train."""
    measured = least_over_ranks(ctx, round(measured_peak(ctx.device, getattr(torch, precision))))
    return MatmulPeak(measured, nominal_peak(device_name(ctx), precision))


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square matrix products in ``dtype``, threads as they are.

    The size doubles while the next one can be repeated within ``ENOUGH_SECONDS``, once a GPU is
    warm. What else the machine does slows some of the products, hence the fastest; on one that is
    busy all the while the peak is too low, and MFU against it too high. A GPU that lowers its clock
    in a long training does not do so here: then MFU is too low, which flatters nobody.
    """
    if device.type == "cuda":
        _warm_up(device, dtype)
    start, best, size = time.perf_counter(), 0.0, SMALLEST
    operands = _operands(size, device, dtype)
    products = 0
    while products < MIN_PRODUCTS or time.perf_counter() - start < ENOUGH_SECONDS:
        seconds = _product_seconds(*operands)
        products += 1
        best = max(best, 2 * size**3 / seconds)
        if size < LARGEST and 3 * 8 * seconds < ENOUGH_SECONDS:
            size *= 2
            operands = _operands(size, device, dtype)
            _product_seconds(*operands)  # the first one chooses a kernel
    return best


def _warm_up(device: torch.device, dtype: torch.dtype) -> None:
    operands = _operands(LARGEST, device, dtype)
    _product_seconds(*operands)
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_SECONDS:
        _product_seconds(*operands)


def nominal_peak(device_name: str, precision: str) -> float | None:
    """FLOP/s of dense matrix products that the maker states for a device; None if unknown."""
    return NOMINAL.get(device_name, {}).get(precision)


def _operands(size: int, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    # Random, as constants draw less power and let a GPU clock higher; by a generator of their own.
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(size, size, dtype=dtype, device=device, generator=generator) for _ in range(3)
    ]


def _product_seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    start = device_clock(out.device)
    torch.mm(left, right, out=out)
    return device_clock(out.device) - start
