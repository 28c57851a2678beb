"""A profile's plot: time, memory and largest batch over the length, each as a share."""

from pathlib import Path

from glray.report.figure import (
    bare_axes,
    blank_figure,
    length_axis,
    line_styles,
    save,
    style_legend,
)
from glray.run.profile import LengthCost, Profile

PANELS = (
    ("step time", "seconds"),
    ("peak memory of a step", "peak_bytes"),
    ("largest batch", "largest_batch_tokens"),
)


def write_profile_plot(profile: Profile, path: Path) -> Path:
    """Three panels over the length, the paper's Tables 1 to 3: each value over that of the longest
    length that the setting fits; a line a setting."""
    figure = blank_figure(11, 3.9)
    styles = line_styles([costs.setting.name for costs in profile.settings])
    lengths = [cost.seq_len for cost in profile.settings[0].lengths]
    for axes, (title, field) in zip(figure.subplots(1, 3), PANELS, strict=True):
        bare_axes(axes, "sequence length (tokens)", "")
        axes.set_title(f"{title}, of the longest's", fontsize=10.5, loc="left")
        length_axis(axes, lengths)
        axes.tick_params(axis="x", labelsize=8, labelrotation=45 if len(lengths) > 5 else 0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for costs in profile.settings:
            shares = _shares(costs.lengths, field)
            style = styles[costs.setting.name]
            axes.plot(
                [seq_len for seq_len, _ in shares],
                [share for _, share in shares],
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                markersize=5,
                linewidth=1.5,
            )
        axes.set_ylim(bottom=0)
    style_legend(figure, styles, columns=3)
    return save(figure, path)


def _shares(lengths: tuple[LengthCost, ...], field: str) -> list[tuple[int, float]]:
    """(length, value over the last one's) of the lengths that have a value."""
    values = [
        (cost.seq_len, float(value))
        for cost in lengths
        if cost.fits and (value := getattr(cost, field))
    ]
    return [(seq_len, value / values[-1][1]) for seq_len, value in values]
