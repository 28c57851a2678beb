"""A profile's plot: time, memory and largest batch over the length, each as a share."""

from pathlib import Path

import numpy as np

from glray.report.figure import add_legend, length_axis, new_figure, save, styled, styles_of
from glray.run.profile import Profile

PANELS = (
    ("step time", "seconds"),
    ("peak memory of a step", "peak_bytes"),
    ("largest batch", "largest_batch_tokens"),
)


@styled
def write_profile_plot(profile: Profile, path: Path) -> Path:
    """Three panels over the length, the paper's Tables 1 to 3: each value over that of the longest
    length that the setting fits; a line a setting."""
    figure = new_figure(11, 3.9)
    styles = styles_of([costs.setting.name for costs in profile.settings])
    lengths = [cost.seq_len for cost in profile.settings[0].lengths]
    for axes, (title, field) in zip(figure.subplots(1, 3), PANELS, strict=True):
        axes.set(xlabel="sequence length (tokens)", title=f"{title}, of the longest's")
        length_axis(axes, lengths)
        axes.tick_params(axis="x", labelsize=8, labelrotation=45 if len(lengths) > 5 else 0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for costs in profile.settings:
            known = [cost for cost in costs.fitting if getattr(cost, field)]
            values = np.array([getattr(cost, field) for cost in known], dtype=float)
            seq_lens = [cost.seq_len for cost in known]
            styles[costs.setting.name].draw(axes, seq_lens, values / values[-1:], seen=True)
        axes.set_ylim(bottom=0)
    add_legend(figure, styles)
    return save(figure, path)
