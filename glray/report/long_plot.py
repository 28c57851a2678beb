"""Loss of compared models on long documents over the window length."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from glray.report.arms import by_arm, longest_trained
from glray.report.figure import (
    LINES,
    arm_styles,
    arms_legend,
    grey_handle,
    length_axis,
    new_figure,
    styled,
)
from glray.report.long_losses import (
    SCALINGS,
    SLIDING,
    WHOLE,
    LongLosses,
    long_seq_lens,
    mean_long_loss,
)
from glray.run.run import Run


@styled
def long_plot(runs: Sequence[Run], losses: LongLosses) -> Figure:
    """Whole windows to the left and sliding ones to the right; full lines extrapolate positions,
    dashed ones interpolate them. Means over seeds."""
    arms, lengths = by_arm(runs), long_seq_lens(losses)
    styles = arm_styles(arms)
    figure = new_figure(9, 4.7)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, protocol in zip(panels, (WHOLE, SLIDING), strict=True):
        axes.set_xlabel(f"window length (tokens), {protocol} windows")
        length_axis(axes, lengths, longest_trained(runs))
        for arm in arms:
            for scaling, line in zip(SCALINGS, LINES, strict=False):
                means = [mean_long_loss(losses, arm, n, protocol, scaling) for n in lengths]
                styles[arm.label].draw(axes, lengths, means, seen=True, linestyle=line)
    panels[0].set_ylabel("loss on long documents (nats per token)")
    marks = [grey_handle(name, linestyle=line) for name, line in zip(SCALINGS, LINES, strict=False)]
    arms_legend(figure, arms, styles, *marks)
    return figure
