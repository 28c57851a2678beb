"""A run in an object store on a cluster of several machines, each in namespaces of its own, loses
one thing after another; it ends as one that nothing has disturbed."""

import random
from collections.abc import Iterator

import pytest

from glray.run.run import Run

from .. import losing
from ..losing import Cluster, Job, Lose
from ..nodes import missing

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with losing.losing_cluster() as cluster:
        yield cluster


SAYS: dict[Lose, str] = {
    losing.worker: "has died",
    losing.raylet: "has died",
    losing.node: "has died",
    losing.drained_node: "has lost a node that was taken away",
}
"""What ``events.log`` says of what the driver outlives."""

expected: list[Run] = []
"""The undisturbed run, once it is trained."""


@pytest.mark.parametrize("lose", losing.LOSSES, ids=lambda lose: lose.__name__)
def test_nothing_is_lost(cluster: Cluster, lose: Lose) -> None:
    job = Job(cluster, f"lost-{lose.__name__}")
    assert job.wait_for_checkpoint()
    loss = job.lose(lose, random.Random(0))
    print(loss)
    job.wait_until(lambda: False)  # it is over

    if lose not in losing.PASSING:
        assert loss.resumed_step is not None
    if loss.resumed_step is not None:
        assert loss.resumed_step >= loss.committed_step
        assert loss.repeated_steps <= losing.EVERY_STEPS + (loss.begun_step - loss.committed_step)
    assert SAYS.get(lose, "") in "\n".join(loss.said)
    assert loss.submissions == 0 or lose in (losing.driver, losing.head, losing.heads_network)

    run = losing.ended_run(job)
    expected[:] = expected or [losing.undisturbed_run(run)]
    assert losing.is_same(run, expected[0])
