"""What a stage boundary does to the held-out loss: scored before it, on it and just after it.

``evaluations/step-*.json`` has every length at the end of each stage, and in between where the spec
says so. ``boundaries/step-*.json`` has the lengths before and after each stage boundary: with the
old RoPE and the new one under the same weights, and again some steps later.
"""

import math
import time
from collections.abc import Iterable

import numpy as np

from glray.plan import StageBoundary
from glray.progress import working
from glray.run.records import BoundaryLoss, BoundaryRecord, Evaluation, Jump
from glray.train.context import as_rank_zero_sees, from_rank_zero
from glray.train.evaluation import Scored, Windows, far_windows, score_far
from glray.train.session import RunSession


def evaluate(session: RunSession) -> None:
    """Score the held-out targets at the state's step, unless an earlier start has. A run
    diverges where its loss is not finite at a length up to that of its stage."""
    run, plan, step = session.run, session.run.plan, session.state.step
    boundary = next((boundary for boundary in plan.boundaries if boundary.step == step), None)
    paths = [run.evaluation_path(step)] + ([run.boundary_path(step)] if boundary else [])
    if as_rank_zero_sees(session.ctx, lambda: all(path.is_file() for path in paths)):
        return
    stage = plan.stage_index(step - 1)
    session.enter(stage)
    trained = plan.stages[stage].seq_len
    seq_lens, is_last = sorted(run.spec.evaluation.seq_lens), step == plan.num_steps
    record = far = None
    start = time.perf_counter()
    with working(
        f"evaluating after seq_len {trained}", _tokens_to_score(session, boundary, is_last)
    ):
        scored = {seq_len: session.score(seq_len) for seq_len in seq_lens}
        if not all(math.isfinite(scored[n].loss) for n in seq_lens if n <= trained):
            session.diverge("held-out loss")
            return
        if boundary:
            record = _boundary_record(session, boundary, scored)
        if is_last:
            far = score_far(session.targets, run.longest_seq_len, session.score_windows)
    seconds = time.perf_counter() - start
    session.state.eval_seconds += seconds
    lengths = tuple(scores.record() for scores in scored.values())
    if session.ctx.rank == 0:
        if record:
            record.write(run.boundary_path(step))
        Evaluation(
            step=step,
            tokens=plan.tokens_after(step),
            calibrated_seconds=plan.calibrated_seconds(step),
            measured_seconds=session.state.measured_seconds,
            trained_seq_len=trained,
            eval_seconds=seconds,
            targets_sha256=session.targets.sha256,
            num_documents=session.targets.num_documents,
            document_tokens=np.array(session.targets.document_tokens),
            num_target_tokens=session.targets.num_targets,
            lengths=lengths,
            far_context=far,
        ).write(run.evaluation_path(step))
    session.track({f"heldout/loss/{length.seq_len}": length.loss for length in lengths})
    shown = next((length for length in lengths if length.seq_len == trained), lengths[-1])
    ends = f" ends seq_len {trained}" if step in plan.stage_ends else ""
    session.announcer.event(
        f"{run.name}: step {step:,}{ends}; held-out loss {shown.loss:.3f} at {shown.seq_len}"
    )


def rescore(session: RunSession) -> None:
    """Score both lengths of the boundary that is due again at the state's step."""
    run, step = session.run, session.state.step
    for boundary in run.plan.boundaries:
        if boundary.rescore_step != step:
            continue
        path = run.boundary_path(boundary.step)
        record = BoundaryRecord.read(path) if session.ctx.rank == 0 else None
        # The targets are others if the evaluation has been changed since.
        same = record is not None and record.targets_sha256 == session.targets.sha256
        if not from_rank_zero(session.ctx, int(same)):
            continue
        seq_lens = _scorable(session, boundary)
        start = time.perf_counter()
        with working("evaluating after a stage boundary", _tokens_of(session, seq_lens)):
            after = _losses({n: session.score(n) for n in seq_lens})
        session.state.eval_seconds += time.perf_counter() - start
        if record is not None:
            record.model_copy(update={"after": after}).write(path)


def _boundary_record(
    session: RunSession, boundary: StageBoundary, scored: dict[int, Scored]
) -> BoundaryRecord:
    """The record of the boundary that the state stands on; ``after`` is still to come.

    ``scored`` has whole windows with the stage before's RoPE, which is in force on return too.
    """
    rope = session.run.manifest.rope_parameters
    stage = session.run.plan.stage_index(boundary.step - 1)
    lengths, longest = _scorable(session, boundary), session.targets.longest
    before = {n: scored[n] if n in scored else session.score(n) for n in lengths}
    sliding = None
    if len(lengths) == 2 and boundary.to_seq_len > boundary.from_seq_len:
        sliding = session.score_windows(Windows.by_half(longest, boundary.from_seq_len))
    switched = before
    if rope[stage + 1] != rope[stage]:
        session.enter(stage + 1)
        switched = {n: session.score(n) for n in lengths}
        session.enter(stage)
    jump = None
    if sliding is not None:
        old, new = before[boundary.from_seq_len], switched[boundary.to_seq_len]
        jump = split_jump(boundary, old, sliding, new)
    return BoundaryRecord(
        **boundary.model_dump(),
        before=_losses(before),
        switched=_losses(switched),
        jump=jump,
        targets_sha256=session.targets.sha256,
        document_tokens=np.array(session.targets.document_tokens),
    )


def split_jump(boundary: StageBoundary, old: Scored, sliding: Scored, new: Scored) -> Jump:
    """What the held-out loss does from the old length to the new one with the same weights, in nats
    per token, in three parts that sum to it. The targets are the same in each.

    ``old`` and ``new`` are whole windows before and after the boundary, ``sliding`` windows of
    the old length that move by half of it, under the old positions. A target at a position of the
    new window that the old one has too has the same context in both: it changes by its positions
    alone, where RoPE is scaled (``rescaled_positions``). One beyond gains by the context
    that it now has: half an old window or more, which ``sliding`` gives it at positions that were
    trained (``longer_context``). What the new window makes of it on top, with still more context
    and at positions that were not, is ``unseen_positions``.
    """
    beyond = np.arange(len(old.by_place)) % boundary.to_seq_len >= boundary.from_seq_len
    num_targets = old.targets.num_targets

    def mean(losses: np.ndarray) -> float:
        return float(losses.sum() / num_targets)

    return Jump(
        jump=mean(new.by_place - old.by_place),
        rescaled_positions=mean((new.by_place - old.by_place)[~beyond]),
        longer_context=mean((sliding.by_place - old.by_place)[beyond]),
        unseen_positions=mean((new.by_place - sliding.by_place)[beyond]),
    )


def _scorable(session: RunSession, boundary: StageBoundary) -> list[int]:
    """The boundary's lengths that divide a sequence of the held-out targets."""
    lengths = sorted({boundary.from_seq_len, boundary.to_seq_len})
    return [n for n in lengths if session.targets.longest % n == 0]


def _tokens_to_score(session: RunSession, boundary: StageBoundary | None, is_last: bool) -> int:
    """Tokens that go through the model in an evaluation, for the time that it still takes."""
    run, longest = session.run, session.targets.longest
    lengths, halves = list(run.spec.evaluation.seq_lens), []
    if boundary is not None:
        both, rope = _scorable(session, boundary), run.manifest.rope_parameters
        stage = run.plan.stage_index(boundary.step - 1)
        lengths += [n for n in both if n not in lengths]
        lengths += both if rope[stage + 1] != rope[stage] else []
        grows = len(both) == 2 and boundary.to_seq_len > boundary.from_seq_len
        halves += [boundary.from_seq_len] if grows else []
    if is_last:
        halves += far_windows(longest, run.longest_seq_len)[1]
    return _tokens_of(session, lengths, halves)


def _tokens_of(session: RunSession, lengths: Iterable[int], halves: Iterable[int] = ()) -> int:
    """Tokens that go through the model in whole windows, and in those that move by half."""
    longest = session.targets.longest
    windows = [Windows.over(longest, n) for n in lengths]
    windows += [Windows.by_half(longest, n) for n in halves]
    return sum(each.num_tokens for each in windows) * len(session.targets.tokens)


def _losses(scored: dict[int, Scored]) -> dict[int, BoundaryLoss]:
    return {
        n: BoundaryLoss(seq_len=n, loss=s.loss, document_losses=s.document_losses)
        for n, s in scored.items()
    }
