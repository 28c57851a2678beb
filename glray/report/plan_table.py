"""The plan as a person reads it: every product with its factors, in 80 columns."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glray.errors import UserError
from glray.plan import MICROSECONDS, Plan, StagePlan, learning_rate, make_plan
from glray.report.profile_table import GIB, saved_share
from glray.run.profile import Profile, SettingCosts, prices_of
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec


def plan_tables(spec: PipelineSpec, profile: Profile | None = None) -> RenderableType:
    """What ``glray plan`` prints: the pipeline's constants, then each arm's stages.

    With a ``profile`` of the pipeline's model each stage has its price; where seconds decide, and
    nothing has been calibrated yet, its steps are those that the prices give.
    """
    costs = prices_of(profile, spec, spec.all_seq_lens)
    by_prices = costs is not None and spec.needs_calibration and spec.calibration is None
    budget = (
        f"{spec.budget.tokens:,} tokens"
        if spec.budget.tokens is not None
        else f"{spec.budget.seconds:g} calibrated seconds"
    )
    seeds = f"seed {spec.seeds[0]}" if len(spec.seeds) == 1 else f"seeds {spec.seeds}"
    lines = [
        f"{spec.name}: {len(spec.trained_arms)} arms × {seeds}, {budget} each, shared by "
        f"{spec.ratios_in}",
        f"batch {spec.tokens_per_batch:,} tokens = {spec.tokens_per_batch // spec.chunk_tokens:,} "
        f"chunks × {spec.chunk_tokens:,} tokens",
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    for arm in spec.trained_arms:
        plan = _priced_plan(spec, arm, costs) if costs and by_prices else make_plan(spec, arm)
        parts.append(_unsettled(spec, arm) if plan is None else _settled(spec, arm, plan))
        if costs is not None and plan is not None:
            parts.append(Text(_price(spec, arm, plan, costs), style="dim"))
    if profile is not None:
        parts.append(Text(_origin(profile, priced=costs is not None, by_prices=by_prices)))
    return Group(*parts)


def _priced_plan(spec: PipelineSpec, arm: ArmSpec, costs: SettingCosts) -> Plan | None:
    """What a calibration would give that found these prices; None if it could not be planned."""
    calibrated = spec.derive(calibration={"step_microseconds": costs.step_microseconds})
    try:
        return make_plan(calibrated, arm)
    except UserError:  # a run's own calibration decides
        return None


def _price(spec: PipelineSpec, arm: ArmSpec, plan: Plan, costs: SettingCosts) -> str:
    """Seconds and memory of an arm on one worker, and what it saves; GPU-hours if on one."""
    prices = [costs.at(stage.seq_len) for stage in plan.stages]
    seconds, peaks = 0.0, []
    for stage, price in zip(plan.stages, prices, strict=True):
        assert price is not None, "every length of the pipeline is priced"
        seconds += stage.num_steps * price.seconds
        peaks += [price.peak_bytes] if price.peak_bytes is not None else []
    hours = f" = {seconds / 3600:.2f} GPU-hours" if spec.compute.use_gpu else ""
    memory = f", {max(peaks) / GIB:.2f} GiB at most" if peaks else ""
    lines = [f"predicted on one worker: {seconds:,.1f} s{hours}{memory}"]
    saved = saved_share(costs, spec, arm)
    if saved is not None:
        longest = f"fixed {max(arm.seq_lens):,}"
        lines.append(f"saves {saved:.0%} of {longest}'s time on as many tokens")
    return "\n".join(lines)


def _origin(profile: Profile, *, priced: bool, by_prices: bool) -> str:
    if not priced:
        return (
            "\nnot priced: the profile here lacks a length of the pipeline, or how it computes; "
            "glray profile measures them"
        )
    machine = profile.environment["gpu"] or profile.environment["processor"]
    steps = "; seconds decide here, so a run calibrates anew" if by_prices else ""
    return f"\npriced by glray profile on {machine}{steps}"


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
            f"{stage.ratio / whole:.1%} of {spec.ratios_in}",
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
    calibrated = plan.calibrated_microseconds(plan.num_steps)
    assert plan.budget_microseconds is not None
    assert calibrated is not None
    rest = plan.budget_microseconds - calibrated
    return f"{total}\n{rest / MICROSECONDS:.3f} s of the budget are less than a step: not used"
