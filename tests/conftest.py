"""Fixtures that every folder of tests shares."""

import os
import secrets
from collections.abc import Iterator

import hypothesis
import pytest

from glray.data.corpus import PreparedCorpus

from .tokens import periodic_corpus

# Speed is measured in benchmarks/, never asserted here.
hypothesis.settings.register_profile("glray", deadline=None)
hypothesis.settings.load_profile("glray")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small local Ray for the whole run of tests."""
    import ray

    from glray.ray.cluster import _DEFAULTS, on_loopback

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
    """The small corpus that most tests train on."""
    return periodic_corpus(tmp_path_factory.mktemp("tokens"))
