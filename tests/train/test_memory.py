"""What does not fit a GPU is known as such, whoever says so, and at the same byte on every rank."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.probe import calibration
from glray.train.probe.memory import gpu_peak_bytes, is_out_of_memory
from glray.train.trainee import Trainee

from ..tiny import tiny_spec

GPU = torch.device("cuda", 0)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.07 GiB."),
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_kind_of_out_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_another_error_is_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of a GPU of 1,000 bytes that this process was limited to, in turn."""
    shares: list[float] = []
    replaced = {
        "get_device_properties": lambda device: SimpleNamespace(total_memory=1000),
        "set_per_process_memory_fraction": lambda share, device: shares.append(share),
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: 700,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return shares


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_within_a_try_no_more_than_the_budget_can_be_reserved(
    limits: list[float], error: Exception
) -> None:
    assert gpu_peak_bytes(lambda: None, GPU, budget=920) == 700
    assert limits == [0.92, 1.0]
    assert gpu_peak_bytes(lambda: raising(error), GPU, budget=500) is None
    assert limits[2:] == [0.5, 1.0]


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_another_error_ends_the_try_and_its_limit(limits: list[float], error: Exception) -> None:
    with pytest.raises(type(error)):
        gpu_peak_bytes(lambda: raising(error), GPU, budget=5000)
    assert limits == [1.0, 1.0]


def test_a_length_that_does_not_fit_is_one_line_before_step_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`\nmore")
    trainee = object.__new__(Trainee)
    trainee.execution = SimpleNamespace(rows_at_once=lambda seq_len: 2, device="a GPU")  # type: ignore[assignment]
    trainee.ctx = WorkerContext()
    monkeypatch.setattr(Trainee, "gradients", lambda self, batch: raising(error))
    batch = SimpleNamespace(seq_len=32, tokens_per_batch=64)
    with pytest.raises(UserError, match=r"64 tokens at seq_len 32 do not fit .*ALLOC_FAILED"):
        trainee.warm_up([batch])  # type: ignore[list-item]


def test_no_repetition_of_the_calibration_holds_the_model_of_another(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the collector frees a model that refers to itself, as a compiled one does."""
    made: list[weakref.ref[Trainee]] = []
    scratch = Trainee.scratch

    def refers_to_itself(*arguments: Any) -> Trainee:
        assert not any(each() for each in made)
        trainee = scratch(*arguments)
        trainee.itself = trainee  # type: ignore[attr-defined]
        made.append(weakref.ref(trainee))
        return trainee

    monkeypatch.setattr(Trainee, "scratch", refers_to_itself)
    monkeypatch.setattr(calibration, "ENOUGH_SECONDS", 0.0)
    spec, ctx = tiny_spec(tmp_path), WorkerContext()
    gc.disable()  # it might come by itself
    try:
        repetitions = calibration.calibrate(spec, corpus, ctx, execution(spec, ctx))
    finally:
        gc.enable()
    assert len(made) == len(repetitions) == calibration.REPETITIONS
    assert not any(each() for each in made)
