"""Which run a worker group trains next, among groups that train the same pipeline side by side."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from glray.data.corpus import PreparedCorpus
from glray.files import StorePath, sole_writer
from glray.model.config import Start
from glray.progress import working
from glray.run.forks import RunTree, begin
from glray.run.parent import Parents
from glray.run.records import ForkRecord, ParentRecord
from glray.run.run import Run
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec
from glray.train.context import WorkerContext, as_rank_zero_sees, from_rank_zero
from glray.train.runs import plan_runs

ORPHAN_SECONDS = 120.0
"""How long to wait for a run that a group whose driver was killed still trains: its workers were
seen to go on for some seconds, and two groups would write the same files."""
POLL_SECONDS = 1.0
"""How often a group that has to wait looks again."""
STORE_POLL_SECONDS = 5.0
"""The same where a look takes some requests to a store for each run."""
WAIT, DONE = -1, -2
"""Instead of a run's place in the tree: no run is ready yet; no run is left."""


class Agenda:
    """The runs of a launch in the order of the tree: those of the pipeline's arms and, in a search,
    of the arms that are offered while it lasts. Every rank of a group makes the same calls."""

    def __init__(
        self, spec: PipelineSpec, corpus: PreparedCorpus, start: Start, ctx: WorkerContext
    ) -> None:
        """``spec`` has its calibration, if it needs one."""
        self._spec, self._corpus, self._start, self._ctx = spec, corpus, start, ctx
        self._num_offered: int | None = None
        self._tried: set[str] = set()
        self._look()

    @property
    def runs(self) -> list[Run]:
        """All runs so far, in order."""
        return self._tree.runs

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train, and nothing more will be offered."""
        return not self._is_open and all(map(_has_ended, self.runs))

    def in_turn(self) -> Iterator[Run]:
        """The runs that are this group's to train; nobody else writes a run until the next one is
        asked for. Waits for other groups while they train what the runs left fork from, and while
        more arms may be offered."""
        ctx = self._ctx
        while (index := as_rank_zero_sees(ctx, self._next)) != DONE:
            if index == WAIT:
                if from_rank_zero(ctx, int(ctx.stop_requested())):
                    return
                with working("waiting for other worker groups, or for the next trial"):
                    is_remote = isinstance(self.runs[0].directory, StorePath)
                    time.sleep(STORE_POLL_SECONDS if is_remote else POLL_SECONDS)
                self._look()
                continue
            run = self.runs[index]
            self._tried.add(run.name)
            with self._held(run) as is_ours:
                if is_ours:
                    yield run
            self._look()

    def begin(self, run: Run) -> ForkRecord | ParentRecord | None:
        """Let a run that has not begun begin with what another run of the pipeline or its parent
        has trained; None if there is nothing. On rank 0."""
        fork = self._tree.fork(run)
        if fork is None and isinstance(self._start, Parents):
            return begin(run, self._start.by_seed[run.seed])
        return fork

    def needed(self, run: Run) -> Mapping[int, Sequence[str]]:
        """The steps whose checkpoints others are still to fork from, and the names of these
        runs."""
        return self._tree.needed(run.name)

    def is_withdrawn(self, run: Run) -> bool:
        """Whether a stopped run was stopped alone, rather than the whole launch; the same on every
        rank."""
        group = self._ctx.group
        return bool(as_rank_zero_sees(self._ctx, lambda: group.is_withdrawn(run.name)))

    def _look(self) -> None:
        """Take up the arms that are offered by now, as rank 0 is told."""
        offered, self._is_open = as_rank_zero_sees(self._ctx, self._ask_for_arms)
        if self._num_offered is None or len(offered) > self._num_offered:
            self._num_offered = len(offered)
            spec = _with_arms(self._spec, [ArmSpec.model_validate(arm) for arm in offered])
            runs = plan_runs(spec, self._corpus, self._start)
            assert runs is not None, "the spec has its calibration"
            self._tree = RunTree(spec, runs)
        self._tree.may_grow = self._is_open

    def _ask_for_arms(self) -> tuple[list[dict[str, Any]], bool]:
        """The arms that are offered, as JSON, and whether there may be more; on rank 0."""
        arms, is_open = self._ctx.group.offered()
        return [arm.model_dump(mode="json") for arm in arms], is_open

    def _next(self) -> int:
        """Which run of the tree this group has claimed, ``WAIT`` or ``DONE``; on rank 0."""
        group, waiting = self._ctx.group, set[str]()
        for index, run in enumerate(self.runs):
            if run.name in self._tried or _has_ended(run) or group.is_withdrawn(run.name):
                continue
            trunk = self._tree.trunk(run)
            is_coming = trunk is not None and (trunk in waiting or group.is_held(trunk))
            if is_coming and not self._tree.is_ready(run):
                waiting.add(run.name)
            elif group.claims(run.name):
                return index
        return WAIT if waiting or self._is_open else DONE

    @contextmanager
    def _held(self, run: Run) -> Iterator[bool]:
        """Whether a run that the group has claimed is to be trained; then nobody else writes it
        within the block. A group whose driver was killed may still train it, and is waited for."""
        ctx = self._ctx
        with ExitStack() as held:
            is_ours = False
            if ctx.rank == 0:
                held.callback(ctx.group.release, run.name)
                writer = sole_writer(
                    run.directory,
                    wait_seconds=ORPHAN_SECONDS,
                    seconds_seen=partial(ctx.group.seconds_seen, run.name),
                )
                held.enter_context(writer)
                is_ours = not _has_ended(run)
            yield bool(from_rank_zero(ctx, int(is_ours)))


def _with_arms(spec: PipelineSpec, offered: Sequence[ArmSpec]) -> PipelineSpec:
    """The pipeline with the arms that were offered, which are trained too."""
    names = {arm.name for arm in spec.arms}
    further = [arm for arm in offered if arm.name not in names]
    if not further:
        return spec
    called = [arm.name for arm in (*spec.trained_arms, *further)]
    return spec.derive(arms=[*spec.arms, *further], only=called)


def _has_ended(run: Run) -> bool:
    """Whether nothing of a run is left to train, or a search has stopped it."""
    return run.has_ended or run.stopped is not None
