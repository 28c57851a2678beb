"""What a comparison is about: held-out loss at the longest trained length while the arms train, and
how far apart they end."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glray.report import look
from glray.report.comparison import (
    ArmScore,
    compare,
    longest_fixed,
    paired_difference,
    share_targets,
)
from glray.run.records import Evaluation
from glray.run.run import Run

LEAST_EVALUATIONS = 3
"""Of a run: with fewer there is no curve."""
EARLY_SHARE = 0.25
"""Share of the x axis whose (much higher) losses do not set the y axis."""


def has_curves(runs: Sequence[Run]) -> bool:
    """Whether every finished run was evaluated often enough, and there are arms to compare."""
    compared = compare(runs) if share_targets(runs) else []
    enough = all(
        len(_scored(run, arm.seq_len)) >= LEAST_EVALUATIONS for arm in compared for run in arm.runs
    )
    return enough and len(compared) > 1 and longest_fixed(compared) is not None


@look.styled
def heldout_over_time(runs: Sequence[Run]) -> Figure:
    """Held-out loss of each evaluation at the longest trained length, means over seeds: open where
    the arm has not trained at that length yet. Beside it each arm's difference from the longest
    fixed one at the end, with its 95% interval: what makes a document hard for both cancels.

    The runs satisfy ``has_curves``.
    """
    compared = compare(runs)
    base = longest_fixed(compared)
    assert base is not None, "has_curves has looked"
    clock = "calibrated"
    if any(e.calibrated_seconds is None for arm in compared for e in arm.runs[0].evaluations):
        clock = "measured"
    figure = Figure(figsize=(9, 4.7))
    curves, ends = figure.subplots(1, 2, width_ratios=(5, 2))
    curves.set_xlabel(f"{clock} training time (seconds)")
    curves.set_ylabel(f"held-out loss at {base.seq_len:,} tokens (nats per token)")
    styled = look.styled_arms(runs)
    styles = {arm.label: style for arm, style in styled}
    late: list[float] = []  # what sets the y axis
    for arm in compared:
        late += _draw_curve(curves, arm, styles[arm.label], f"{clock}_seconds")
    margin = 0.08 * (max(late) - min(late)) or 0.01
    curves.set_ylim(min(late) - margin, max(late) + margin)
    curves.set_xlim(left=0)
    _draw_ends(ends, compared, base, styles)
    unseen = look.grey_handle("not trained at this length yet", marker="o", markerfacecolor="white")
    look.arms_legend(figure, styled, unseen)
    return figure


def _scored(run: Run, seq_len: int) -> list[Evaluation]:
    return [scored for scored in run.comparable_evaluations if scored.at(seq_len) is not None]


def _draw_curve(axes: Axes, arm: ArmScore, style: look.Style, clock: str) -> list[float]:
    """The arm's losses over time. Returns those that set the y axis: of lengths that it has trained
    at, later than ``EARLY_SHARE`` of its time, and the last."""
    x, means, seen = [], [], []
    for together in zip(*(_scored(run, arm.seq_len) for run in arm.runs), strict=False):
        scores = [evaluation.at(arm.seq_len) for evaluation in together]
        x.append(np.mean([getattr(evaluation, clock) for evaluation in together]))
        means.append(float(np.mean([score.loss for score in scores if score is not None])))
        seen.append(together[0].trained_seq_len >= arm.seq_len)
    style.draw(axes, x, means, seen=seen)
    late = [
        loss
        for time, loss, is_seen in zip(x, means, seen, strict=True)
        if is_seen and time > EARLY_SHARE * x[-1]
    ]
    return [*late, means[-1]]


def _draw_ends(
    axes: Axes, compared: Sequence[ArmScore], base: ArmScore, styles: dict[str, look.Style]
) -> None:
    """Each arm's last loss less the base's, with its interval."""
    axes.axhline(0, color=styles[base.label].colour, linestyle=styles[base.label].line)
    axes.set_ylabel(f"difference from {base.label} at the end\n(paired, 95% interval)")
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(6))
    others = [arm for arm in compared if arm is not base]
    for place, arm in enumerate(others):
        found = paired_difference(arm, base)
        half = [found.half if found.parts else 0.0]
        seen = max(arm.seq_lens) >= arm.seq_len
        styles[arm.label].draw(axes, [place], [found.mean], bars=half, seen=seen)
        axes.annotate(
            f"{found.mean:+z.3f}", (place, found.mean), (8, -3), textcoords="offset points"
        )
    axes.set_xlim(-0.6, len(others) - 0.2)
