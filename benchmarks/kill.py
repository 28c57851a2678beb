"""Runs that are killed at random moments: do they end bit-identical to undisturbed ones?

    python benchmarks/kill.py --kills 40

Kills are SIGKILLs from another process at times drawn from a printed seed. A group loses one worker
(the others are then ended, as Ray Train does) or, every third time, all of them at once. The runs,
with 1 to 4 workers and DDP or FSDP2, have two stage boundaries and write checkpoints close
together, so that some kills come while one is being written.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from tests.killing import kill_runs, killed_spec
from tests.tokens import periodic_corpus

GROUPS = ((1, "ddp"), (2, "ddp"), (3, "ddp"), (4, "ddp"), (2, "fsdp"), (3, "fsdp"))
"""Workers and how they hold the model."""


def main() -> None:
    """Kill, compare, print the table and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, help="over all kinds of groups")
    parser.add_argument("--seed", type=int, default=None, help="of the times of the kills")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = periodic_corpus(Path(folder))
        for index, (world_size, parallelism) in enumerate(GROUPS):
            kills = arguments.kills // len(GROUPS) + (index < arguments.kills % len(GROUPS))
            storage = Path(folder) / f"{world_size}-{parallelism}"
            spec = killed_spec(storage, parallelism)
            rng = random.Random(seed + index)
            outcome = kill_runs(spec, corpus, world_size, kills, rng)
            outcomes[f"{world_size} {parallelism}"] = outcome
            print(
                f"{world_size} {parallelism}: {outcome.kills} kills over {outcome.runs} runs of "
                f"two arms, {outcome.identical} ended bit-identical; {dict(outcome.moments)}",
                flush=True,
            )
    totals = {
        name: sum(getattr(outcome, name) for outcome in outcomes.values())
        for name in ("kills", "runs", "identical")
    }
    keep("kill", {"seed": seed, **totals, "groups": {n: vars(o) for n, o in outcomes.items()}})


if __name__ == "__main__":
    main()
