"""Killed at random moments and started again, a run ends as if nothing had happened."""

import random
from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus

from ..killing import kill_runs, killed_spec

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("world_size", "parallelism", "num_kills"),
    [
        (1, "ddp", 100),
        (2, "ddp", 40),
        (3, "ddp", 30),
        (4, "ddp", 20),
        (3, "fsdp", 30),
    ],
)
def test_runs_killed_at_random_moments_end_bit_identical(
    tmp_path: Path, corpus: PreparedCorpus, world_size: int, parallelism: str, num_kills: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    spec = killed_spec(tmp_path, parallelism)
    outcome = kill_runs(spec, corpus, world_size, num_kills, random.Random(seed))
    print(outcome)
    assert outcome.kills == num_kills
    assert outcome.identical == outcome.runs > 0
