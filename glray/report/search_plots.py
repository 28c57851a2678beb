"""The plots of a search: every trial at a glance, and what a schedule's loss depends on.

Each has a headline that says what it shows. Losses far above the others would squeeze everything
else, so scales of loss end at a limit, and what lies beyond is drawn there.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from glray.report import look
from glray.report.answers import apart
from glray.report.effects import Effects, Factor
from glray.report.formats import counted, listed
from glray.report.trials import Trial, Trials, far_limit
from glray.run.statistics import Estimate
from glray.spec.search import lengths_text
from glray.spec.training import rate_text

BEST, NEAR, OTHER, BASELINE = "#D55E00", "#0072B2", "#8C8C8C", "#009E73"
COLOURS = "viridis"
"""Colour map of losses: dark is low."""
MOST_NAMED = 6
"""Trials named in a plot whose axes do not name them."""


@look.styled
def trials_by_loss(trials: Trials) -> Figure:
    """Each trial's loss less the best's, paired by document, with its 95% interval."""
    rows, best = trials.ranked, _best(trials)
    figure = Figure(figsize=(9, 1.6 + 0.19 * len(rows)))
    axes = figure.subplots()
    shown = [trial for trial in trials.scored if trial.loss <= trials.far_loss]
    right = max(_ends(trials.gaps[trial.name])[1] for trial in shown) or 1e-3
    for row, trial in enumerate(rows):
        colour = _colour(trials, trial)
        if trial not in shown:
            text = f"+{trials.gaps[trial.name].mean:.3f} →" if trial.scored else trial.unranked
            axes.text(right, row, text, ha="right", va="center", color=colour, fontsize=8)
            continue
        gap = trials.gaps[trial.name]
        low, high = _ends(gap)
        face = colour if trial is best or trial.name in trials.within_noise else "white"
        axes.plot([low, high], [row, row], color=colour)
        axes.plot([gap.mean], [row], "o", color=colour, markerfacecolor=face)
    axes.set_yticks(range(len(rows)), [trial.name for trial in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=right + 0.02 * (right - axes.get_xlim()[0]))
    axes.grid(True, axis="both")
    axes.axvline(0, color=BEST, linewidth=0.8)
    at = f"held-out loss at {trials.seq_len:,} tokens"
    axes.set_xlabel(f"{at} above the best (nats per token, 95% over documents)")
    _headline(figure, f"{apart(trials)} the best, {best.name}")
    marks = [
        look.grey_handle("best", marker="o", color=BEST),
        look.grey_handle("within noise of it", marker="o", color=NEAR),
        look.grey_handle("worse", marker="o", color=OTHER, markerfacecolor="white"),
        look.grey_handle("baseline", marker="o", color=BASELINE, markerfacecolor="white"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    return figure


@look.styled
def short_against_long(trials: Trials) -> Figure:
    """Loss at the shortest evaluated length against loss at the ranked one, with the front."""
    assert trials.short_seq_len is not None
    short, best = trials.short_seq_len, _best(trials)
    figure, axes = look.one_panel(
        f"held-out loss at {short:,} tokens (nats per token)",
        f"held-out loss at {trials.seq_len:,} tokens",
    )
    shown = [trial for trial in (best, trials.fixed, trials.equal) if trial]
    top = max(trials.far_loss, *(trial.loss for trial in shown))
    right = far_limit([trial.loss_at(short) for trial in trials.scored])
    right = max(right, *(trial.loss_at(short) for trial in shown))
    numbered = {trial.name: str(n) for n, trial in enumerate(trials.front, 1)}
    for trial in reversed(trials.scored):
        x, y = min(trial.loss_at(short), right), min(trial.loss, top)
        is_beyond = trial.loss > top or trial.loss_at(short) > right
        on_front = trial.name in numbered
        colour = _colour(trials, trial)
        marker = "x" if is_beyond else "s" if trial.name in trials.baselines else "o"
        axes.plot(
            *(x, y, marker),
            color=colour,
            markerfacecolor=colour if on_front else "white",
            markersize=7 if on_front else 5.5,
            clip_on=False,
            zorder=3 if on_front else 2,
        )
    front = [(trial.loss_at(short), trial.loss) for trial in trials.front]
    axes.plot(
        *zip(*front, strict=True), drawstyle="steps-post", color=look.GREY, linewidth=1, zorder=1
    )
    for number, (x, y) in enumerate(front[:MOST_NAMED], 1):
        axes.annotate(
            f"{number}", (x, y), (-5, -12), textcoords="offset points", fontsize=9.5, ha="right"
        )
    axes.grid(True, axis="both")
    text = f"{best.name} is lowest at {short:,} and at {trials.seq_len:,} tokens alike"
    if len(front) > 1:
        text = (
            f"Short or long context: {len(front)} schedules trade loss at {short:,} tokens against "
            f"loss at {trials.seq_len:,}"
        )
    _headline(figure, text)
    handles = [
        look.grey_handle(f"{number}  {trial.name}", marker="o", color=_colour(trials, trial))
        for number, trial in enumerate(trials.front[:MOST_NAMED], 1)
    ]
    handles += [
        look.grey_handle("not on the front", marker="o", color=OTHER, markerfacecolor="white"),
        look.grey_handle("within noise of 1", marker="o", color=NEAR, markerfacecolor="white"),
    ]
    if trials.baselines:
        handles.append(
            look.grey_handle("baseline", marker="s", color=BASELINE, markerfacecolor="white")
        )
    if any(t.loss > top or t.loss_at(short) > right for t in trials.scored):
        handles.append(look.grey_handle("beyond the scale", marker="x"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5)
    figure.set_figwidth(10)
    return figure


@look.styled
def loss_by_factor(trials: Trials, found: Sequence[Effects]) -> Figure:
    """For each fitted list of lengths: loss against each boundary and the rate, and the fitted
    curve with its 95% interval."""
    fitted = [its for its in found if its.is_fitted]
    columns = max(len(its.factors) for its in fitted)
    figure = Figure(figsize=(max(5.5, 3.1 * columns), 0.7 + 3.0 * len(fitted)))
    grid = figure.subplots(len(fitted), columns, sharey="row", squeeze=False)
    for row, its in zip(grid, fitted, strict=True):
        explains = its.surface.explains
        says = f"explains {its.surface.explained:.0%}" if explains else "explains nothing"
        for index, axes in enumerate(row):
            if index >= len(its.factors):
                axes.set_axis_off()
                continue
            _draw_factor(axes, its, index)
        losses = [trial.loss for trial in its.trials]
        margin = 0.08 * (max(losses) - min(losses))
        row[0].set_ylim(min(losses) - margin, max(losses) + margin)
        row[0].set_ylabel(f"{its.label}: {says}\nloss at {trials.seq_len:,} tokens")
    telling = [its for its in fitted if its.surface.explains]
    clear = [
        factor
        for its in telling
        for index, factor in enumerate(its.factors)
        if any(effect.is_clear for effect in its.effects(index))
    ]
    text = "No fitted surface explains anything: these trials do not say what matters"
    if clear:
        text = f"Loss clearly depends on {_named(clear)}"
    elif telling:
        text = "The fitted surface explains the losses, but no single factor's effect is clear"
    _headline(figure, text)
    return figure


def _named(factors: Sequence[Factor]) -> str:
    """``where 128→256 and 256→1,024 lie, and on the peak rate``."""
    places = list(dict.fromkeys(f.name for f in factors if f.kind == "boundary"))
    others = list(dict.fromkeys(f.name for f in factors if f.kind != "boundary"))
    where = f"where {listed(places)} {'lies' if len(places) == 1 else 'lie'}" if places else ""
    what = f"the {listed(others)}" if others else ""
    return f"{where}, and on {what}" if where and what else where or what


def _draw_factor(axes: Axes, its: Effects, index: int) -> None:
    factor = its.factors[index]
    losses = np.array([trial.loss for trial in its.trials])
    is_rate = factor.kind == "rate"
    at = np.linspace(factor.tried[0], factor.tried[-1], 61)
    means, halves = its.surface.curve(index, at)
    x, places = (np.exp(at), np.exp(factor.values)) if is_rate else (at, factor.values)
    axes.plot(places, losses, "o", color=NEAR, markersize=4, alpha=0.6)
    style = "-" if its.surface.explains else ":"
    axes.plot(x, means, color=BEST, linestyle=style)
    axes.fill_between(x, means - halves, means + halves, color=BEST, alpha=0.18, linewidth=0)
    if is_rate:
        axes.set_xscale("log")
        axes.set_xticks(np.exp(factor.tried), [factor.text(value) for value in factor.tried])
        axes.minorticks_off()
        axes.set_xlabel(factor.name)
    elif factor.kind == "boundary":
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"{factor.name} at this share of the budget")
    else:
        axes.set_xlabel(factor.name)


@look.styled
def loss_by_shares(trials: Trials) -> Figure:
    """For each list of three lengths or more: loss over the first and the last stage's share. Of
    trials that agree in both, the lowest is drawn."""
    panels, colours, best = lists_of_three(trials), _scale(trials), _best(trials)
    figure = Figure(figsize=(max(6.2, 1.6 + 4.2 * len(panels)), 4.9))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, its in zip(grid, panels, strict=True):
        lowest: dict[tuple[float, float], Trial] = {}
        for trial in its:  # best first
            lowest.setdefault((trial.shares[0], trial.shares[-1]), trial)
        x, y = zip(*lowest, strict=True)
        losses = [trial.loss for trial in lowest.values()]
        axes.scatter(x, y, 130, losses, cmap=COLOURS, norm=colours, edgecolors=look.GREY)
        if best in its:
            axes.plot(best.shares[0], best.shares[-1], "*", color=BEST, markersize=9)
        axes.set(xlabel=f"share of {its[0].seq_lens[0]:,}, the first", title=_lengths(its[0]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(0.12)
        axes.grid(True, axis="both")
    grid[0].set_ylabel("share of the last length")
    _colour_bar(figure, list(grid), trials)
    near = [trial for trial in _near(trials) if len(trial.seq_lens) > 2]
    if near:
        first = _span([trial.shares[0] for trial in near])
        last = _span([trial.shares[-1] for trial in near])
        _headline(figure, f"{_who(near, trials)} {first} at the first length, {last} at the last")
    else:
        _headline(figure, f"All of these are worse than the best, {best.name}")
    return figure


@look.styled
def shares_of_all(trials: Trials) -> Figure:
    """Parallel coordinates: each trial's share of the budget at each length, and its rate where
    rates differ. A length that a trial does not have has 0."""
    lengths = sorted({length for trial in trials.scored for length in trial.seq_lens})
    rates = sorted({trial.lr for trial in trials.scored})
    heights_of_rates = dict(zip(rates, _heights(rates), strict=True))
    names = [f"at {length:,}" for length in lengths] + ["peak rate"] * (len(rates) > 1)
    figure = Figure(figsize=(max(7.0, 1.7 * len(names) + 1.5), 4.7))
    axes = figure.subplots()
    colours, best = _scale(trials), _best(trials)
    for order, trial in enumerate(reversed(trials.scored)):
        heights = [_share(trial, length) for length in lengths]
        heights += [heights_of_rates[trial.lr]] * (len(rates) > 1)
        axes.plot(
            *(heights, "o-"),
            color=BEST if trial is best else colormaps[COLOURS](colours(trial.loss)),
            linewidth=3 if trial is best else 1.4,
            markersize=6 if trial is best else 3.5,
            zorder=3 + order,
            clip_on=False,
        )
    for place in range(len(names)):
        axes.axvline(place, color=look.GREY, linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlim=(-0.05, len(names) - 0.97), ylim=(0, 1), ylabel="share of the budget")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if len(rates) > 1:
        for rate, height in heights_of_rates.items():
            at = (len(names) - 1, height)
            axes.annotate(rate_text(rate), at, (8, -3), textcoords="offset points", fontsize=9)
    _colour_bar(figure, [axes], trials)
    near = _near(trials)
    spans = [
        f"{_span([_share(trial, length) for trial in near])} at {length:,}" for length in lengths
    ]
    _headline(figure, f"{_who(near, trials)} {', '.join(spans)}")
    handle = look.grey_handle(f"best: {best.name}", color=BEST, linestyle="-", linewidth=3)
    figure.legend(handles=[handle], loc="outside lower left")
    return figure


def lists_of_three(trials: Trials) -> list[list[Trial]]:
    """For each list of three lengths or more with several schedules: its trials with a loss, best
    first."""
    lists: dict[tuple[int, ...], list[Trial]] = {}
    for trial in trials.scored:
        if len(trial.seq_lens) > 2:
            lists.setdefault(trial.seq_lens, []).append(trial)
    return [its for its in lists.values() if len({trial.shares for trial in its}) > 1]


def _best(trials: Trials) -> Trial:
    assert trials.best is not None, "there is nothing to draw"
    return trials.best


def _near(trials: Trials) -> list[Trial]:
    """The best, and those that cannot be told apart from it."""
    best = _best(trials)
    return [best, *(trial for trial in trials.scored if trial.name in trials.within_noise)]


def _who(near: Sequence[Trial], trials: Trials) -> str:
    """The subject of a headline about some of ``_near``."""
    if near == [_best(trials)]:
        return "The best schedule spends"
    if _best(trials) not in near:
        return f"{counted(len(near), 'schedule')} within noise of the best: "
    return f"The best and {len(near) - 1} within noise of it spend"


def _ends(gap: Estimate) -> tuple[float, float]:
    """The ends of its interval; the mean twice if nothing is known of its error."""
    return (gap.low, gap.high) if gap.parts else (gap.mean, gap.mean)


def _colour(trials: Trials, trial: Trial) -> str:
    if trial is trials.best:
        return BEST
    if trial.name in trials.baselines:
        return BASELINE
    return NEAR if trial.name in trials.within_noise else OTHER


def _scale(trials: Trials) -> PowerNorm:
    """Colours of losses: low ones are told apart best."""
    low, high = _best(trials).loss, trials.far_loss
    return PowerNorm(0.5, low, high if high > low else low + 1e-3, clip=True)


def _colour_bar(figure: Figure, axes: Sequence[Axes], trials: Trials) -> None:
    colours = _scale(trials)
    bar = figure.colorbar(
        ScalarMappable(colours, COLOURS),
        ax=axes,
        label=f"held-out loss at {trials.seq_len:,} tokens",
        extend="max" if trials.scored[-1].loss > trials.far_loss else "neither",
    )
    ticks = [float(loss) for loss in colours.inverse(np.linspace(0, 1, 6))]
    bar.set_ticks(ticks, labels=[f"{tick:.3f}" for tick in ticks])


def _heights(rates: Sequence[float]) -> list[float]:
    """Where rates lie on an axis from 0 to 1."""
    logs = np.log(rates)
    return list((logs - logs[0]) / (logs[-1] - logs[0] or 1))


def _share(trial: Trial, seq_len: int) -> float:
    """Share of the budget at a length, 0 if it is not trained."""
    stages = zip(trial.seq_lens, trial.shares, strict=True)
    return math.fsum(share for length, share in stages if length == seq_len)


def _span(shares: Sequence[float]) -> str:
    """``20%``, ``20–35%``."""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low[:-1]}–{high}"


def _lengths(trial: Trial) -> str:
    return lengths_text(trial.seq_lens)


def _headline(figure: Figure, text: str) -> None:
    """What a figure shows, at its top left."""
    width = int(figure.get_figwidth() * 9.5)
    figure.suptitle(textwrap.fill(text, width), x=0.01, ha="left", fontsize=12, weight="bold")
