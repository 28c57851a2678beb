"""A profile as a person reads it: the paper's Tables 1 to 3 side by side, a table a setting, and
what growing the length can save at most under each."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glray.report.table import plain_table
from glray.run.profile import LengthCost, Profile, SettingCosts
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec

GIB = 2**30


def profile_tables(profile: Profile, spec: PipelineSpec) -> RenderableType:
    """What ``glray profile`` prints; percentages are of the longest length that fits."""
    parts: list[RenderableType] = []
    for costs in profile.settings:
        title = f"\n{costs.setting.name}, {profile.tokens_per_batch:,} tokens a batch"
        parts += [Text(title, style="bold"), _table(costs), Text(_ceiling(costs, spec))]
    budget = f"{profile.budget_bytes / GIB:.1f} GiB"
    parts.append(
        Text(
            "\n%: of the longest length that fits. ±: half the range between quartiles. "
            f"fwd/bwd/opt: percent of a step. Largest batch: tokens at once within {budget}."
        )
    )
    return Group(*parts)


def _table(costs: SettingCosts) -> Table:
    table = plain_table()
    longest = (costs.fitting or costs.lengths)[-1]
    columns = ("seq_len", "ms/step", "±", "%", "fwd/bwd/opt", "GiB", "%", "largest batch", "%")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs.lengths:
        batch = cost.largest_batch_tokens
        table.add_row(
            f"{cost.seq_len:,}",
            f"{1000 * cost.seconds:,.0f}" if cost.fits else "does not fit",
            f"{cost.spread:.0%}" if cost.fits else "-",
            _share(cost.fits and cost.seconds, longest.fits and longest.seconds),
            _phases(cost),
            "-" if cost.peak_bytes is None else f"{cost.peak_bytes / GIB:.2f}",
            _share(cost.peak_bytes, longest.peak_bytes),
            "-" if batch is None else f"{batch:,}",
            _share(batch, longest.largest_batch_tokens),
        )
    return table


def _share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.0%}" if value and whole else "-"


def _phases(cost: LengthCost) -> str:
    if cost.phase_shares is None:
        return "-"
    return "/".join(
        f"{100 * cost.phase_shares[name]:.0f}" for name in ("forward", "backward", "optimizer")
    )


def _ceiling(costs: SettingCosts, spec: PipelineSpec) -> str:
    """What any schedule, and each arm of the pipeline, saves of the longest length's time."""
    most = costs.most_saved
    if most is None:
        return "Fewer than two lengths were measured, so there is nothing to grow."
    longest = costs.fitting[-1]
    cheapest = min(costs.fitting, key=lambda cost: cost.seconds)
    lines = [
        f"At equal tokens no schedule saves more than {most:.0%} of fixed {longest.seq_len:,}'s "
        f"time, which {cheapest.seq_len:,} alone does."
    ]
    for arm in spec.arms:
        saved = saved_share(costs, spec, arm)
        if saved is not None:
            lines.append(f"{arm.name} saves {saved:.0%} of fixed {max(arm.seq_lens):,}.")
    return "\n".join(lines)


def saved_share(costs: SettingCosts, spec: PipelineSpec, arm: ArmSpec) -> float | None:
    """Share of the time of its longest length, trained alone on as many tokens, that an arm saves;
    None where it has one length or one was not measured."""
    prices = [costs.at(seq_len) for seq_len in arm.seq_lens]
    longest = costs.at(max(arm.seq_lens))
    if longest is None or len(set(arm.seq_lens)) == 1:
        return None
    seconds = tokens = 0.0
    for stage, price in zip(arm.stages, prices, strict=True):
        if price is None:
            return None
        steps = stage.ratio / price.seconds if spec.ratios_in == "seconds" else stage.ratio
        tokens += steps
        seconds += steps * price.seconds
    return 1 - seconds / (tokens * longest.seconds)
