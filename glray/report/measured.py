"""What a claim compares of the runs' records: losses by seed and document, on the same targets."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from glray.report.arms import Arm, latest_loss
from glray.report.far_context import far_contexts
from glray.report.long_losses import WHOLE, LongLosses, long_record
from glray.run.statistics import Estimate, crossed
from glray.spec.comparison import ClaimSpec


@dataclass(frozen=True)
class Losses:
    """One arm's losses by seed and document."""

    values: np.ndarray
    """float64[seeds, documents], nats per token."""
    document_tokens: np.ndarray
    """int64[documents]."""
    targets: Hashable
    """Identifies the targets; losses are comparable only on the same ones."""

    @property
    def mean(self) -> float:
        """Nats per token."""
        return crossed(self.values, self.document_tokens).mean


def difference(ours: Losses, theirs: Losses) -> Estimate:
    """The first less the second, paired by seed and document."""
    return crossed(ours.values - theirs.values, ours.document_tokens)


def measured(claim: ClaimSpec, arm: Arm, long_losses: LongLosses) -> Losses | str:
    """What the claim compares of one arm, or why there is nothing: a run that is unfinished, was
    not scored so, has diverged, or is scored on other targets than the arm's others."""
    if arm.unfinished:
        return arm.unfinished
    if claim.measure == "jump":
        found = _jumps(arm)
    elif claim.measure == "long_loss":
        assert claim.at is not None, "the spec has checked it"
        found = _long(arm, claim.at, long_losses)
    elif claim.at is None:
        found = _far(arm)
    else:
        found = heldout(arm, claim.at)
    if isinstance(found, Losses) and not np.isfinite([*found.values.flat, found.mean]).all():
        return f"diverged: {arm.label}"
    return found


def heldout(arm: Arm, seq_len: int) -> Losses | str:
    """The arm's latest losses in whole windows of one length, or why there are none."""
    scores = [latest_loss(run, seq_len) for run in arm.runs]
    found = [score.document_losses for score in scores if score is not None]
    if len(found) < len(scores):
        return f"not scored at {seq_len:,} tokens: {arm.label}"
    last = [run.evaluations[-1] for run in arm.runs]
    return _losses(arm, found, last[0].document_tokens, [each.targets_sha256 for each in last])


def _far(arm: Arm) -> Losses | str:
    contexts = far_contexts(arm)
    if not contexts:
        return f"far context is not scored: {arm.label}"
    last = [run.evaluations[-1] for run in arm.runs]
    scored = [
        (each.targets_sha256, context.tokens_before)
        for each, context in zip(last, contexts, strict=True)
    ]
    own = [context.losses[-1].document_losses for context in contexts]
    return _losses(arm, own, contexts[0].document_tokens, scored)


def _long(arm: Arm, seq_len: int, long_losses: LongLosses) -> Losses | str:
    records = [long_record(long_losses, run, seq_len) for run in arm.runs]
    found = [np.array(record["document_losses"], float) for record in records if record]
    if len(found) < len(records):
        return f"not scored at {seq_len:,} tokens of the long documents: {arm.label}"
    whole = [long_losses[run.directory, WHOLE] for run in arm.runs]
    tokens = np.array(whole[0]["document_tokens"])
    return _losses(arm, found, tokens, [each["targets_sha256"] for each in whole])


def _jumps(arm: Arm) -> Losses | str:
    jumps = [[b.jump.jump for b in run.boundaries if b.jump] for run in arm.runs]
    if not all(jumps):
        return f"no stage boundary is scored on both sides: {arm.label}"
    highest = [np.array([np.max(each)]) for each in jumps]  # one that is NaN makes all NaN
    return _losses(
        arm, highest, np.array([1]), [run.boundaries[0].targets_sha256 for run in arm.runs]
    )


def _losses(
    arm: Arm, by_seed: Sequence[np.ndarray], tokens: np.ndarray, targets: Sequence[Hashable]
) -> Losses | str:
    if len(set(targets)) > 1 or any(len(losses) != len(tokens) for losses in by_seed):
        return f"its seeds are not scored on the same targets: {arm.label}"
    return Losses(np.array(by_seed, float), tokens, (targets[0], tuple(tokens.tolist())))
