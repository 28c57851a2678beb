"""The loop's tests run on one thread each, and share what is trained without a break."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glray.data.corpus import PreparedCorpus
from glray.run.run import Run
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.measuring import measure_briefly
from tests.planned import planned

from ..tiny import tiny_spec


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: threads would only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage() -> None:
    """Each run ends with a collection, 0.2 s if it goes through all that was imported."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def measured_briefly() -> None:
    """Each call measures the machine's peak, and some a calibration."""
    measure_briefly()


@pytest.fixture(scope="session")
def trained_storage(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> Path:
    """Where both arms of the tiny pipeline were trained without a break. Not to be written to."""
    torch.set_num_threads(1)
    storage = tmp_path_factory.mktemp("trained")
    train_all(tiny_spec(storage), corpus, WorkerContext())
    return storage


@pytest.fixture
def finished(trained_storage: Path, tmp_path: Path, corpus: PreparedCorpus) -> list[Run]:
    """Both arms trained without a break, in a copy that is the test's own."""
    storage = tmp_path / "undisturbed"
    shutil.copytree(trained_storage, storage)
    return planned(tiny_spec(storage), corpus)
