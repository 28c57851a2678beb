"""Fixtures that every folder of tests shares."""

import os
import secrets
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

from glray.data.corpus import PreparedCorpus, PreparedSource

from .tokens import write_tokens

# Speed is measured in benchmarks/, never asserted here.
hypothesis.settings.register_profile("glray", deadline=None)
hypothesis.settings.load_profile("glray")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small local Ray for the whole run of tests."""
    import ray

    from glray.cluster import _DEFAULTS, on_loopback

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in _DEFAULTS.items():  # as in the cluster that glray starts
        os.environ.setdefault(name, value)
    with on_loopback():
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=500 * 2**20,
            log_to_driver=False,
            logging_level="warning",
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> PreparedCorpus:
    """One source: 5,003 tokens of a 300-entry vocabulary and three held-out documents."""
    rng = np.random.default_rng(0)
    # Runs of a few patterns: something that a small model learns within a few steps.
    patterns = rng.integers(1, 300, size=(4, 10))
    stream = np.concatenate([patterns[i] for i in rng.integers(0, 4, size=501)])[:5003]
    heldout = [patterns[i : i + 2].ravel().repeat(4) for i in range(3)]
    blocks = write_tokens(tmp_path_factory.mktemp("tokens"), stream, heldout)
    return PreparedCorpus((PreparedSource("stdlib", 1, blocks),))
