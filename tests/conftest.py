"""Fixtures that every folder of tests shares."""

import os
import secrets
import signal
from collections.abc import Iterator

import hypothesis
import pytest

import glray.ray  # noqa: F401 (sets Ray's variables, before a test imports Ray)
from glray.data.corpus import PreparedCorpus
from glray.files import AnyPath, StorePath, write_bytes

from .stores import StoreServer, emptied, serving
from .tokens import periodic_corpus

# One thread for each process that computes: small tensors, and two processes on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl-C, and so would every command of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Speed is measured in benchmarks/, never asserted here.
hypothesis.settings.register_profile("glray", deadline=None)
hypothesis.settings.load_profile("glray")


TOGETHER = {
    "test_bucket.py": "ray_local",
    "test_cli.py": "ray_local",
    "test_cluster.py": "ray_local",
    "test_metrics.py": "ray_local",
    "test_mixture.py": "ray_local",
    "test_prepare.py": "ray_local",
    "test_prepare_processes.py": "ray_local",
    "test_ranks.py": "ray_local",
    "test_ray.py": "ray_local",
    "test_groups.py": "ray_local",
    "test_profile.py": "start_group",
    "test_sharded.py": "start_group",
    "test_survival.py": "ray_local",
    "test_waiting.py": "ray_local",
    "test_workers.py": "start_group",
}
"""Files that share one Ray, or one server that forks workers, which first imports for seconds. All
that start Ray, test_job.py apart, run one after another: clusters that start at once on two cores
can miss Ray's own limit of 30 s for a node."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Under ``pytest -n``, files are dealt out whole, and those of ``TOGETHER`` together."""
    from xdist.scheduler import LoadFileScheduling

    class LoadTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file.rpartition("/")[2], file)

    return LoadTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``pytest -n``, the tests that share Ray, which take longest, come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: TOGETHER.get(item.path.name) != "ray_local")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small local Ray for the whole run of tests."""
    import ray

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as in glray's own cluster
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
def server() -> Iterator[StoreServer]:
    """An object store, which is started when a test first asks for it."""
    with serving() as server:
        yield server


@pytest.fixture
def bucket(server: StoreServer) -> StorePath:
    """Its empty bucket."""
    server.requests.clear()
    return emptied()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made but not drawn, which is most of the time that a page takes: for tests of what
    a page says."""

    def save(figure: object, path: AnyPath) -> AnyPath:
        write_bytes(path, b"\x89PNG\r\n\x1a\n")
        return path

    monkeypatch.setattr("glray.report.look.save", save)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    """The small corpus that most tests train on."""
    return periodic_corpus(tmp_path_factory.mktemp("tokens"))
