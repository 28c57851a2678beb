"""The loop's tests run on one thread each."""

import gc

import pytest
import torch

from glray.train.probe import peak


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors: threads would only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage():
    """Each run ends with a collection, 0.2 s if it goes through all that was imported."""
    gc.freeze()


@pytest.fixture(autouse=True)
def short_peak(monkeypatch):
    """The machine's peak is measured for each call: not as long as for a run that counts."""
    monkeypatch.setattr(peak, "ENOUGH_SECONDS", 0.02)
