"""A trial of Ray Tune: it follows one run, which standing worker groups train, and reports what
the run records. Its process imports no model code."""

import time
from math import isfinite

import ray.tune

from glray.files import AnyPath, StorePath, matching
from glray.run.records import Evaluation
from glray.run.run import ENDS, RESULT, STOPPED
from glray.tree import run_name

POLL_SECONDS = 0.5
STORE_POLL_SECONDS = 10.0
"""The same where each look takes several requests to a store."""
CANDIDATE = "candidate"
"""A trial's one parameter: the candidate's name, which is its arm's."""


def follow(
    config: dict[str, str], directory: AnyPath, seed: int, seq_len: int, over: AnyPath
) -> None:
    """Report the run's step at each evaluation and, once it is finished, its held-out loss at
    ``seq_len``: None if it diverged, was stopped, or if the file ``over`` appears, which says that
    training has ended."""
    run, reported = directory / run_name(config[CANDIDATE], seed), set[str]()
    while True:
        is_over = over.is_file() or any((run / end).is_file() for end in (*ENDS, STOPPED))
        evaluations = matching(run, "evaluations/step-*.json")
        for path in evaluations:
            if path.name in reported or (evaluation := Evaluation.read(path)) is None:
                continue  # a run that was resumed scores again
            ray.tune.report({"step": evaluation.step, "loss": None})
            reported.add(path.name)
        if is_over:
            break
        time.sleep(STORE_POLL_SECONDS if isinstance(run, StorePath) else POLL_SECONDS)
    loss = None
    if (run / RESULT).exists() and evaluations:
        last = Evaluation.read(evaluations[-1])
        score = last.at(seq_len) if last else None
        loss = score.loss if score and isfinite(score.loss) else None
    ray.tune.report({"step": len(reported), "loss": loss})  # JSON has no NaN
