"""A profile as the paper's Tables 1 to 3 side by side, a table a setting, and what growing the
length can save at most under each."""

from glray.report.formats import number
from glray.report.sheets import Sheet
from glray.run.profile import LengthCost, Profile, SettingCosts
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec

GIB = 2**30


def profile_sheets(profile: Profile, spec: PipelineSpec) -> list[Sheet | str]:
    """What ``glray profile`` prints; percentages are of the longest length that fits."""
    return [
        *(costs_sheet(costs, profile.tokens_per_batch, spec) for costs in profile.settings),
        "\n%: of the longest length that fits. ±: half the range between quartiles. "
        "fwd/bwd/opt: percent of a step. Largest batch: tokens at once within "
        f"{profile.budget_bytes / GIB:.1f} GiB.",
    ]


def costs_sheet(
    costs: SettingCosts, tokens_per_batch: int, spec: PipelineSpec | None = None
) -> Sheet:
    """What a step costs at each length under one setting, and what growing can save: any schedule,
    and each arm of ``spec``."""
    longest = (costs.fitting or costs.lengths)[-1]
    rows = []
    for cost in costs.lengths:
        rows.append(
            [
                f"{cost.seq_len:,}",
                f"{1000 * cost.seconds:,.0f}" if cost.fits else "does not fit",
                f"{cost.spread:.0%}" if cost.fits else "-",
                _share(cost.fits and cost.seconds, longest.fits and longest.seconds),
                _phases(cost),
                number(cost.peak_bytes and cost.peak_bytes / GIB, ".2f"),
                _share(cost.peak_bytes, longest.peak_bytes),
                number(cost.largest_batch_tokens, ","),
                _share(cost.largest_batch_tokens, longest.largest_batch_tokens),
            ]
        )
    columns = ("seq_len", "ms/step", "±", "%", "fwd/bwd/opt", "GiB", "%", "largest batch", "%")
    title = f"{costs.setting.name}, {tokens_per_batch:,} tokens a batch"
    return Sheet(title, columns, rows, _savings(costs, spec), left=())


def saved_share(costs: SettingCosts, spec: PipelineSpec, arm: ArmSpec) -> float | None:
    """Share of the time of its longest length, trained alone on as many tokens, that an arm saves;
    None where it has one length or one was not measured."""
    prices = [price for seq_len in arm.seq_lens if (price := costs.at(seq_len))]
    if len(prices) < len(arm.seq_lens) or len(set(arm.seq_lens)) == 1:
        return None
    longest = max(prices, key=lambda price: price.seq_len)
    steps = [
        stage.ratio / price.seconds if spec.ratios_in == "seconds" else stage.ratio
        for stage, price in zip(arm.stages, prices, strict=True)
    ]
    seconds = sum(num * price.seconds for num, price in zip(steps, prices, strict=True))
    return 1 - seconds / (sum(steps) * longest.seconds)


def _share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.0%}" if value and whole else "-"


def _phases(cost: LengthCost) -> str:
    if cost.phase_shares is None:
        return "-"
    parts = ("forward", "backward", "optimizer")
    return "/".join(f"{100 * cost.phase_shares[part]:.0f}" for part in parts)


def saving_text(saved: float, of: str) -> str:
    """``saves 12% of fixed 1,024``, ``takes 3% more than fixed 1,024``."""
    if round(saved, 2) < 0:
        return f"takes {-saved:.0%} more than {of}"
    return f"saves {saved:z.0%} of {of}"


def _savings(costs: SettingCosts, spec: PipelineSpec | None) -> list[str]:
    most = costs.most_saved
    if most is None:
        return ["Fewer than two lengths were measured, so there is nothing to grow."]
    longest = costs.fitting[-1]
    cheapest = min(costs.fitting, key=lambda cost: cost.seconds)
    lines = [
        f"At equal tokens no schedule saves more than {most:.0%} of fixed {longest.seq_len:,}'s "
        f"time, as {cheapest.seq_len:,} alone does."
    ]
    if spec is not None:
        lines += [
            f"{arm.name} {saving_text(saved, f'fixed {max(arm.seq_lens):,}')}."
            for arm in spec.arms
            if (saved := saved_share(costs, spec, arm)) is not None
        ]
    return lines
