"""What a stage boundary does to the held-out loss: scored before it, on it and just after it.

``evaluations/step-*.json`` has every length at the end of each stage, and between where the spec
says so. ``boundaries/step-*.json`` has
each boundary between two stages at the length before and the length after it: under the old
positions and the new ones with the same weights, and again some steps later.
"""

import time
from typing import Any

import numpy as np

from glray.files import read_record, write_json
from glray.plan import StageBoundary
from glray.train.context import from_rank_zero
from glray.train.evaluation import Scored
from glray.train.session import RunSession


def score_stage(session: RunSession) -> None:
    """Score the held-out targets, if the state stands where they are to be and are not yet."""
    run, plan, step = session.run, session.run.plan, session.state.step
    boundary = next((boundary for boundary in plan.boundaries if boundary.step == step), None)
    paths = [run.evaluation_path(step)] + ([run.boundary_path(step)] if boundary else [])
    done = all(path.exists() for path in paths)
    due = step > 0 and plan.is_scored(step, run.spec.evaluation.every_tokens)
    if not due or from_rank_zero(session.ctx, int(done)):
        return
    stage = plan.stage_index(step - 1)
    session.enter_stage(stage)
    trained = plan.stages[stage].seq_len
    session.announcer.progress(run=run.name, phase=f"evaluating after seq_len {trained}")
    start = time.perf_counter()
    lengths = sorted(run.spec.evaluation.seq_lens)
    scored = {seq_len: session.score(seq_len) for seq_len in lengths}
    crossing = _crossing(session, boundary, scored) if boundary else None
    seconds = time.perf_counter() - start
    session.state.eval_seconds += seconds
    records = [scored[seq_len].record() for seq_len in lengths]
    if session.ctx.rank == 0:
        if crossing:
            write_json(run.boundary_path(step), crossing)
        write_json(
            run.evaluation_path(step),
            session.standing()
            | {
                "trained_seq_len": trained,
                "eval_seconds": seconds,
                "targets_sha256": session.targets.sha256,
                "num_documents": session.targets.num_documents,
                "document_tokens": session.targets.document_tokens,
                "num_target_tokens": session.targets.num_targets,
                "lengths": records,
            },
        )
    session.track({f"heldout/loss/{entry['seq_len']}": entry["loss"] for entry in records})
    shown = next((entry for entry in records if entry["seq_len"] == trained), records[-1])
    ends = f" ends seq_len {trained}" if step in plan.stage_ends else ""
    session.announcer.event(
        f"{run.name}: step {step:,}{ends}; held-out loss {shown['loss']:.3f} at {shown['seq_len']}"
    )


def rescore_boundary(session: RunSession) -> None:
    """Score both lengths of the boundary that settles at the state's step, if there is one."""
    run, step = session.run, session.state.step
    for boundary in run.plan.boundaries:
        if boundary.rescore_step != step or not _same_targets(session, boundary):
            continue
        start = time.perf_counter()
        after = _entries({n: session.score(n) for n in _scorable(session, boundary)})
        session.state.eval_seconds += time.perf_counter() - start
        if session.ctx.rank == 0:
            path = run.boundary_path(boundary.step)
            write_json(path, read_record(path) | {"after": after})


def _same_targets(session: RunSession, boundary: StageBoundary) -> bool:
    """Whether the boundary was scored on what the session scores; ``evaluation`` may have
    changed."""
    record = (
        read_record(session.run.boundary_path(boundary.step)) if session.ctx.rank == 0 else None
    )
    same = record is not None and record.get("targets_sha256") == session.targets.sha256
    return bool(from_rank_zero(session.ctx, int(same)))


def _crossing(
    session: RunSession, boundary: StageBoundary, scored: dict[int, Scored]
) -> dict[str, Any]:
    """The record of a boundary that the state stands on; ``after`` is still to come.

    ``scored`` has whole windows under the old positions, which are in force on return too.
    """
    run = session.run
    stage = run.plan.stage_index(boundary.step - 1)
    lengths = _scorable(session, boundary)
    before = {n: scored[n] if n in scored else session.score(n) for n in lengths}
    grows = len(lengths) == 2 and boundary.to_seq_len > boundary.from_seq_len
    sliding = None
    if grows:
        half = max(1, boundary.from_seq_len // 2)
        sliding = session.score(boundary.from_seq_len, stride=half)
    switched = before
    if run.rope_parameters(stage + 1) != run.rope_parameters(stage):
        session.enter_stage(stage + 1)
        switched = {n: session.score(n) for n in lengths}
        session.enter_stage(stage)
    jump = None
    if sliding is not None:
        jump = split_jump(
            boundary, before[boundary.from_seq_len], sliding, switched[boundary.to_seq_len]
        )
    return {
        "step": boundary.step,
        "from_seq_len": boundary.from_seq_len,
        "to_seq_len": boundary.to_seq_len,
        "before": _entries(before),
        "switched": _entries(switched),
        "jump": jump,
        "rescore_step": boundary.rescore_step,
        "after": None,
        "targets_sha256": session.targets.sha256,
        "document_tokens": session.targets.document_tokens,
    }


def split_jump(
    boundary: StageBoundary, old: Scored, sliding: Scored, new: Scored
) -> dict[str, float]:
    """What the held-out loss does from the old length to the new one with the same weights, in nats
    per token, in three parts that sum to it. The targets are the same in each.

    ``old`` and ``new`` are whole windows before and after the boundary, ``sliding`` windows of
    the old length that move by half of it, under the old positions. A target at a position of the
    new window that the old one has too has the same context in both: it changes by its positions
    alone, where they are placed anew (``rescaled_positions``). One beyond gains by the context
    that it now has: half an old window or more, which ``sliding`` gives it at positions that were
    trained (``longer_context``). What the new window makes of it on top, with still more context
    and at positions that were not, is ``unseen_positions``.
    """
    beyond = np.arange(len(old.by_place)) % boundary.to_seq_len >= boundary.from_seq_len
    num_targets = old.targets.num_targets

    def mean(losses: np.ndarray) -> float:
        return float(losses.sum() / num_targets)

    return {
        "jump": mean(new.by_place - old.by_place),
        "rescaled_positions": mean((new.by_place - old.by_place)[~beyond]),
        "longer_context": mean((sliding.by_place - old.by_place)[beyond]),
        "unseen_positions": mean((new.by_place - sliding.by_place)[beyond]),
    }


def _scorable(session: RunSession, boundary: StageBoundary) -> list[int]:
    """The boundary's lengths that divide a sequence of the held-out targets."""
    lengths = sorted({boundary.from_seq_len, boundary.to_seq_len})
    return [n for n in lengths if session.targets.longest % n == 0]


def _entries(scored: dict[int, Scored]) -> list[dict[str, Any]]:
    return [
        {"seq_len": n, "loss": s.loss, "document_losses": s.document_losses.tolist()}
        for n, s in scored.items()
    ]
