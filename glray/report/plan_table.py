"""The plan as a person reads it: every product with its factors, in 80 columns."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glray.plan import MICROSECONDS, Plan, StagePlan, learning_rate, make_plan
from glray.profile import Profile, SettingCosts
from glray.report.profile_table import GIB, saved_share
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec


def plan_tables(spec: PipelineSpec, profile: Profile | None = None) -> RenderableType:
    """What ``glray plan`` prints: the pipeline's constants, then each arm's stages.

    With a ``profile`` of the pipeline's model each stage has its price; where seconds decide, and
    nothing has been calibrated yet, its steps are those that the prices give.
    """
    costs = profile.of(spec) if profile is not None else None
    is_priced = costs is not None and all(costs.at(n) is not None for n in spec.all_seq_lens)
    priced = spec
    if costs is not None and is_priced and spec.calibration is None:
        priced = spec.with_fields(calibration={"step_microseconds": costs.step_microseconds})
    budget = (
        f"{spec.budget.tokens:,} tokens"
        if spec.budget.tokens is not None
        else f"{spec.budget.seconds:g} charged seconds"
    )
    seeds = f"seed {spec.seeds[0]}" if len(spec.seeds) == 1 else f"seeds {spec.seeds}"
    lines = [
        f"{spec.name}: {len(spec.arms)} arms × {seeds}, {budget} each, shared by "
        f"{spec.ratios_share}",
        f"batch {spec.tokens_per_batch:,} tokens = {spec.tokens_per_batch // spec.chunk_tokens:,} "
        f"chunks × {spec.chunk_tokens:,} tokens",
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    for arm in spec.arms:
        plan = make_plan(priced, arm)
        parts.append(_unsettled(spec, arm) if plan is None else _settled(spec, arm, plan))
        if costs is not None and plan is not None and is_priced:
            parts.append(Text(_price(spec, plan, costs), style="dim"))
            saved = saved_share(costs, spec, arm)
            if saved is not None:
                longest = f"fixed {max(arm.seq_lens):,}"
                parts.append(Text(f"saves {saved:.0%} of {longest}'s time on as many tokens"))
    if profile is not None and is_priced:
        machine = profile.environment["gpu"] or profile.environment["processor"]
        steps = "" if priced is spec else "; seconds decide here, so a run calibrates anew"
        parts.append(Text(f"\npriced by glray profile on {machine}{steps}"))
    return Group(*parts)


def _price(spec: PipelineSpec, plan: Plan, costs: SettingCosts) -> str:
    """``predicted: 159.3 s, 0.23 GiB``; GPU-hours where there are GPUs."""
    prices = [costs.at(stage.seq_len) for stage in plan.stages]
    seconds, peak = 0.0, 0
    for stage, price in zip(plan.stages, prices, strict=True):
        assert price is not None, "every length of the pipeline is priced"
        seconds += stage.num_steps * price.seconds
        peak = max(peak, price.peak_bytes or 0)
    hours = f" = {seconds / 3600:.2f} GPU-hours" if spec.compute.use_gpu else ""
    return f"predicted on one worker: {seconds:,.1f} s{hours}, {peak / GIB:.2f} GiB at most"


def _title(arm: ArmSpec) -> str:
    declared = arm.positions.model_dump()
    if declared.pop("kind") == "extrapolation":
        return arm.name
    said = ", ".join(f"{name} {value}" for name, value in declared.items())
    return f"{arm.name}, positions: {arm.positions.kind} ({said})"


def _table(name: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=name,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _unsettled(spec: PipelineSpec, arm: ArmSpec) -> RenderableType:
    table = _table(_title(arm), ("seq_len", "rows", "share", "steps"))
    whole = sum(stage.ratio for stage in arm.stages)
    for stage in arm.stages:
        table.add_row(
            f"{stage.seq_len:,}",
            f"{spec.tokens_per_batch // stage.seq_len:,}",
            f"{stage.ratio / whole:.1%} of {spec.ratios_share}",
            "after calibration",
        )
    return table


def _settled(spec: PipelineSpec, arm: ArmSpec, plan: Plan) -> RenderableType:
    has_time = plan.stages[0].step_microseconds is not None
    columns = ["seq_len", "rows", "steps", "tokens", "share", "learning rate"]
    if has_time:
        columns[5:5] = ["ms/step", "seconds"]
    table = _table(_title(arm), tuple(columns))
    for stage in plan.stages:
        row = [
            f"{stage.seq_len:,}",
            f"{stage.rows:,}",
            f"{stage.num_steps:,}",
            f"{stage.num_steps * plan.tokens_per_batch:,}",
            f"{stage.num_steps / plan.num_steps:.1%}",
            _rates(spec, plan, stage),
        ]
        if stage.step_microseconds is not None:
            seconds = stage.num_steps * stage.step_microseconds / MICROSECONDS
            row[5:5] = [f"{stage.step_microseconds / 1000:,.0f}", f"{seconds:,.1f}"]
        table.add_row(*row)
    return Group(table, Text(_total(plan), style="dim"))


def _rates(spec: PipelineSpec, plan: Plan, stage: StagePlan) -> str:
    optimizer = spec.optimizer
    first, last = (
        learning_rate(optimizer, plan, step) for step in (stage.first_step, stage.end_step - 1)
    )
    return f"{_short(first)}→{_short(last)}"


def _short(rate: float) -> str:
    """``2.6e-3``: two digits, the exponent without padding."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _total(plan: Plan) -> str:
    total = f"{plan.num_steps:,} steps × {plan.tokens_per_batch:,} = {plan.num_tokens:,} tokens"
    if plan.budget_tokens is not None:
        rest = plan.budget_tokens - plan.num_tokens
        return f"{total}\n{rest:,} tokens of the budget are less than a batch: not trained"
    charged = plan.charged_microseconds(plan.num_steps)
    assert plan.budget_microseconds is not None
    assert charged is not None
    rest = plan.budget_microseconds - charged
    return f"{total}\n{rest / MICROSECONDS:.3f} s of the budget are less than a step: not used"
