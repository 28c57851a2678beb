"""The Ray Tune boundary: its searcher says what is tried, its scheduler what is stopped.

All candidates are arms of one pipeline, so steps that they share are trained once. Worker groups
like those of ``glray run`` stand ready for the whole search and train one run after another; a
trial of Tune only follows its run's records. What has to outlive a kill is in the storage: the runs
and Optuna's journal.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray.tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import AnyPath, StorePath, matching, remove, write_bytes
from glray.model.config import starting_model
from glray.progress import advance, working
from glray.ray.cluster import Say
from glray.ray.follower import CANDIDATE, POLL_SECONDS, STORE_POLL_SECONDS, follow
from glray.ray.train import WorkerGroups, groups_at_once, train_runs
from glray.run.checkpoint import prune
from glray.run.forks import RunTree
from glray.run.records import Progress, Stopped
from glray.run.run import STOPPED, Run, pipeline_directory, with_calibration
from glray.search.space import (
    Candidate,
    Space,
    candidates,
    open_pipeline,
    ranking_seq_len,
    search_name,
)
from glray.search.stopping import Standing, stop
from glray.search.suggestions import Suggestions
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec
from glray.spec.search import lengths_text
from glray.train.group import WorkerGroup
from glray.train.runs import plan_runs, validate_pipeline

FOLLOWED = 3
"""Trials that Tune follows beyond those that train, so that no worker waits for the next one."""
FOLLOWER_RESOURCES = {"CPU": 0, "memory": 1}
"""What a trial's process asks for: a byte, as Tune rejects an empty request, and a fraction of a
CPU would be missing when the workers ask for all CPUs."""
FOLLOWER_FAILURES = 3
"""How often a trial's process may be lost, for example killed for memory: it only reads, so another
one follows the same run from its start."""


@dataclass(frozen=True)
class Tried:
    """What a search has tried: one pipeline with an arm for each candidate."""

    spec: PipelineSpec
    """With its calibration."""
    candidates: tuple[Candidate, ...]
    runs: tuple[Run, ...]
    """The candidates' runs: finished, diverged or stopped."""
    num_groups: int
    """Worker groups that trained them side by side."""


def search(
    spec: PipelineSpec, corpus: PreparedCorpus, say: Say, halt: threading.Event
) -> Tried | None:
    """Train every candidate of the spec's search, as many at once as there is room for; None if
    ``halt`` was set before the end. Ray is connected, and ``check_search`` was called.

    What is finished is not trained again, so the same call goes on. ``say`` is told how the search
    stands. Raises UserError, also for one that ended a worker.
    """
    assert spec.search is not None
    known, space, left, suggestions = candidates(spec), Space.of(spec), 0, None
    if spec.search.method == "optuna":
        directory = pipeline_directory(spec).with_name(search_name(spec.name))
        suggestions = Suggestions(space, directory)
        left = max(0, spec.search.num_trials - len(suggestions.ended))
        known = list(dict.fromkeys([*known, *suggestions.ended]))
    pipeline = open_pipeline(spec, known)
    start = starting_model(pipeline)  # of the search's seed alone
    validate_pipeline(with_calibration(pipeline), corpus, start)  # before any is trained
    num_trials = len(known) + left
    say(
        f"{num_trials} trials, by {spec.search.method} out of {space.num_candidates:,} schedules "
        f"over {' or '.join(lengths_text(family.seq_lens) for family in space.families)}"
    )
    count = groups_at_once(pipeline, num_trials)
    groups = WorkerGroups(train_runs, pipeline, corpus, count)
    groups.say(f"{num_trials} trials")
    with groups.standing(halt) as (group, training):
        calibrated = _calibrated(pipeline, training)
        if calibrated is None:
            return None
        trials = _Trials(calibrated, corpus, known, say)
        _run_tune(trials, spec, group, training, suggestions, left, count)
    if halt.is_set():
        return None
    runs = trials.runs()
    for run in runs:  # checkpoints were kept for trials that might have come
        prune(run.checkpoints, Run.open(run.directory).kept_steps)
    return Tried(trials.spec, tuple(trials.candidates), tuple(runs), count)


def _calibrated(pipeline: PipelineSpec, training: "Future[None]") -> PipelineSpec | None:
    """The pipeline with its calibration, once its workers have made one; None if they end
    before that."""
    with working("waiting for the worker groups to calibrate"):
        while True:
            known = with_calibration(pipeline)
            if known.calibration is not None or not known.needs_calibration:
                return known
            if training.done():
                return None
            wait([training], timeout=POLL_SECONDS)


@dataclass
class _Trials:
    """The candidates so far, and their runs."""

    spec: PipelineSpec
    corpus: PreparedCorpus
    candidates: list[Candidate]
    say: Say
    _runs: dict[str, Run] = field(default_factory=dict)

    def add(self, candidate: Candidate, arm: ArmSpec) -> None:
        """One more candidate, and the arm that trains it."""
        if candidate not in self.candidates:
            self.candidates.append(candidate)
            self.spec = self.spec.derive(arms=[*self.spec.arms, arm])

    def run(self, name: str) -> Run:
        """The run of a candidate, by its name."""
        if name not in self._runs:
            planned = plan_runs(self.spec, self.corpus, starting_model(self.spec))
            assert planned is not None, "the spec has its calibration"
            self._runs = {run.arm: run for run in planned}
        return self._runs[name]

    def runs(self) -> list[Run]:
        """The runs of all candidates, in order."""
        return [self.run(candidate.name) for candidate in self.candidates]

    def tree(self) -> RunTree:
        """Who forks from whom."""
        return RunTree(self.spec, self.runs())


def _run_tune(
    trials: _Trials,
    searched: PipelineSpec,
    group: WorkerGroup,
    training: "Future[None]",
    suggestions: Suggestions | None,
    num_suggested: int,
    num_groups: int,
) -> None:
    """Let Tune follow the trials until all have ended, or the workers have."""
    assert searched.search is not None
    template = searched.arm(searched.search.arm)
    directory = pipeline_directory(trials.spec)
    over = directory / ".ray-tune" / "over"
    over.parent.mkdir(parents=True, exist_ok=True)
    remove(over)

    def offer(candidate: Candidate) -> None:
        arm = candidate.arm(template)
        trials.add(candidate, arm)
        group.offer(arm)

    order = [branch.trajectory.arm for branch in trials.tree().branches]
    chooser = _Chooser(order, suggestions, num_suggested, offer, training)
    num_trials = len(order) + num_suggested
    seq_len, seed = ranking_seq_len(searched), trials.spec.seeds[0]
    trainable = ray.tune.with_parameters(
        follow, directory=directory, seed=seed, seq_len=seq_len, over=over
    )
    following = _Following(trials, num_trials, seq_len)
    training.add_done_callback(partial(following.end, over))
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, FOLLOWER_RESOURCES),
        tune_config=ray.tune.TuneConfig(
            metric="loss",
            mode="min",
            search_alg=chooser,
            scheduler=_Scheduler(trials, group, searched.search.max_behind),
            num_samples=num_trials,
            max_concurrent_trials=num_groups + FOLLOWED,
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(over.parent),
            failure_config=ray.tune.FailureConfig(max_failures=FOLLOWER_FAILURES),
            verbose=0,
            callbacks=[following],
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with working(f"tune: {num_trials} trials", num_trials):
        results = tuner.fit()
    if results.errors and not training.done():
        raise results.errors[0]


class _InDriver:
    """An object that Tune pickles into its record of the experiment; nothing is restored from
    it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Chooser(_InDriver, Searcher):
    """Chooses what is tried: the candidates known from the start, in the order of their tree, then
    what Optuna suggests."""

    def __init__(
        self,
        names: Sequence[str],
        suggestions: Suggestions | None,
        num_suggested: int,
        offer: Callable[[Candidate], None],
        training: "Future[None]",
    ) -> None:
        super().__init__(metric="loss", mode="min")
        self._names = list(names)
        self._suggestions, self._left = suggestions, num_suggested
        self._offer, self._training = offer, training
        self._asked: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, str] | str:
        """See Searcher."""
        if self._names:
            return {CANDIDATE: self._names.pop(0)}
        if self._suggestions is None or self._left <= 0 or self._training.done():
            return Searcher.FINISHED
        self._left -= 1
        self._asked[trial_id], candidate = self._suggestions.ask()
        self._offer(candidate)
        return {CANDIDATE: candidate.name}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """See Searcher: Optuna is told."""
        was_trained = not self._training.done()
        is_followed = was_trained and not error  # else its run may end well
        if self._suggestions is not None and trial_id in self._asked and is_followed:
            loss = result.get("loss") if result else None
            self._suggestions.tell(self._asked[trial_id], loss)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what counts is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see ``save``."""


class _Scheduler(_InDriver, FIFOScheduler):
    """Stops nothing by default; with ``max_behind``, a trial that is too far behind another one,
    unless others are still to fork from it. See ``glray.search.stopping``."""

    def __init__(self, trials: _Trials, group: WorkerGroup, max_behind: float | None) -> None:
        super().__init__()
        self._trials, self._group, self._max_behind = trials, group, max_behind
        self._standings: list[Standing] = []

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See TrialScheduler."""
        if self._max_behind is None or result["loss"] is not None:
            return TrialScheduler.CONTINUE
        name = trial.config[CANDIDATE]
        run = Run.open(self._trials.run(name).directory)
        evaluation = next((e for e in run.evaluations if e.step == result["step"]), None)
        if evaluation is None or evaluation.step == run.plan.num_steps:
            return TrialScheduler.CONTINUE
        standing = Standing.of(name, run.plan, run.optimizer, evaluation)
        if standing is None:
            return TrialScheduler.CONTINUE
        reason = stop(standing, self._standings, self._max_behind)
        self._standings.append(standing)
        if reason is None or self._trials.tree().needed(run.name):
            return TrialScheduler.CONTINUE
        if run.has_ended or run.stopped is not None:  # by now, or in an earlier call
            return TrialScheduler.CONTINUE
        Stopped(step=evaluation.step, reason=reason.sentence).write(run.directory / STOPPED)
        self._group.withdraw(run.name)
        self._trials.say(f"{name} is stopped: it {reason.sentence}")
        return TrialScheduler.STOP


class _Following(_InDriver, ray.tune.Callback):
    """Follows the trials in the driver: says how each ends, which is the best so far, and how far
    the search is, by what the workers write."""

    def __init__(self, trials: _Trials, num_trials: int, seq_len: int) -> None:
        self._trials, self._num_trials, self._seq_len = trials, num_trials, seq_len
        self._num_done, self._told, self._looks_next = 0, 0.0, 0.0
        self._best: tuple[float, str] | None = None
        self._error: BaseException | None = None

    def end(self, over: AnyPath, training: "Future[None]") -> None:
        """Tell the followers that training has ended, or end Tune's loop without them: from a
        storage that cannot be written they would wait for it forever."""
        try:
            write_bytes(over, b"")
        except (OSError, UserError) as error:
            self._error = training.exception() or error

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """See ray.tune.Callback: in every turn of Tune's loop."""
        if self._error is not None:
            raise self._error

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """See ray.tune.Callback: in every turn of Tune's loop."""
        directory = pipeline_directory(self._trials.spec)
        if isinstance(directory, StorePath) and time.monotonic() < self._looks_next:
            return  # it is called many times a second
        self._looks_next = time.monotonic() + STORE_POLL_SECONDS
        shares = (_trained_share(path) for path in matching(directory, "progress*.json"))
        done = self._num_done + sum(shares)
        advance(max(done - self._told, 0.0), note=self._standing)
        self._told = max(done, self._told)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See ray.tune.Callback."""
        name, loss = trial.config[CANDIDATE], (trial.last_result or {}).get("loss")
        self._num_done += 1
        if loss is not None and (self._best is None or loss < self._best[0]):
            self._best = (loss, name)
        result = f"loss {loss:.4f} at {self._seq_len:,}" if loss is not None else "has no loss"
        self._trials.say(f"{self._num_done} of {self._num_trials} trials: {name}: {result}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See ray.tune.Callback."""
        self._num_done += 1
        name = trial.config[CANDIDATE]
        self._trials.say(f"{name}: Ray Tune's trial that follows it failed; its run trains on")

    @property
    def _standing(self) -> str:
        return f"best {self._best[0]:.4f}" if self._best else ""


def _trained_share(path: AnyPath) -> float:
    """How much of a group's current run is trained, 0 to 1, by the group's progress file."""
    progress = Progress.read(path)
    if progress is None or progress.training is None:
        return 0.0
    done, left = progress.training.last_step.measured_seconds, progress.training.seconds_left
    return done / (done + left)
