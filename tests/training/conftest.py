"""The loop's tests run on one thread each."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads would only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
