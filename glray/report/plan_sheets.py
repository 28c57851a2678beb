"""The plan as a person reads it: every product with its factors."""

from collections.abc import Hashable, Sequence

from glray.errors import UserError
from glray.plan import MICROSECONDS, Plan, StagePlan, learning_rate, make_plan
from glray.report.folding import folded, length_text
from glray.report.formats import counted, seconds_text, tokens_text
from glray.report.profile_sheets import GIB, saved_share, saving_text
from glray.report.sheets import Sheet
from glray.report.stage_settings import own_settings
from glray.report.tree_drawing import drawing
from glray.run.parent import Parents, stages_before
from glray.run.profile import Profile, SettingCosts, prices_of
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec, StageSpec
from glray.spec.training import OptimizerSpec
from glray.tree import Trajectory, tree

NOMINAL_STEPS = 10_000
"""Steps that a budget in seconds is drawn with while its calibration is missing."""


EXACT_TOKENS = 10**9
"""From here on a stage's tokens are rounded, so that its row has room; their sum is exact."""


def plan_sheets(spec: PipelineSpec, profile: Profile | None = None) -> list[Sheet | str]:
    """What ``glray plan`` prints: the pipeline's constants, then each arm's stages.

    With a ``profile`` of the pipeline's model each stage has its price; where seconds decide, and
    nothing has been calibrated yet, its steps are those that the prices give.
    """
    costs = prices_of(profile, spec, spec.all_seq_lens)
    by_prices = costs is not None and spec.needs_calibration and spec.calibration is None
    budget = (
        f"{spec.budget.tokens:,} tokens"
        if spec.budget.tokens is not None
        else f"{spec.budget.seconds:,.10g} calibrated seconds"
    )
    seeds = f"seed {spec.seeds[0]}" if len(spec.seeds) == 1 else f"seeds {spec.seeds}"
    parts: list[Sheet | str] = [
        f"{spec.name}: {counted(len(spec.trained_arms), 'arm')} × {seeds}, {budget} each, "
        f"shared by {spec.ratios_in}\n"
        f"batch {spec.tokens_per_batch:,} tokens = "
        f"{counted(spec.tokens_per_batch // spec.chunk_tokens, 'chunk')} × "
        f"{spec.chunk_tokens:,} tokens",
    ]
    if remark := gpu_remark(spec):
        parts.append(remark)
    if spec.start is not None:
        own = "" if len(spec.seeds) == 1 else "; each other seed from its own run"
        parts.append(f"every run {Parents.of(spec).first.record.sentence}{own}")
    before = stages_before(spec)
    for arm in spec.trained_arms:
        plan = (
            _priced_plan(spec, arm, before, costs)
            if costs and by_prices
            else make_plan(spec, arm, before)
        )
        parts.append(_unplanned(spec, arm) if plan is None else _planned(spec, arm, plan, costs))
    if drawn := tree_text(spec):
        parts.append(f"\n{drawn}")
    return parts if profile is None else [*parts, _origin(profile, costs is not None, by_prices)]


def gpu_remark(spec: PipelineSpec) -> str | None:
    """One line on what makes training on a GPU slow for no need; None if nothing does."""
    slow = []
    if spec.precision == "float32":
        slow.append("in float32 (--set precision=bfloat16)")
    if not spec.compute.compile:
        slow.append("not compiled (--set compute.compile=true)")
    if not spec.compute.use_gpu or not slow:
        return None
    return f"on a GPU, but {' and '.join(slow)}: most of its speed is left unused"


def tree_text(spec: PipelineSpec) -> str | None:
    """Who forks from whom; None where no run shares a step with another one.

    While the calibration that decides the steps is missing, shares of the seconds are known: they
    are drawn as if every step took 1/10,000 of the budget.
    """
    known = spec
    if spec.needs_calibration and spec.calibration is None:
        if spec.budget.seconds is None or spec.ratios_in != "seconds":
            return None
        cost = max(1, round(spec.budget.seconds * MICROSECONDS / NOMINAL_STEPS))
        known = spec.derive(
            calibration={"step_microseconds": dict.fromkeys(spec.all_seq_lens, cost)}
        )
    before = stages_before(known)
    plans = [(arm, make_plan(known, arm, before)) for arm in known.trained_arms]
    seed, num_seeds = known.seeds[0], len(known.seeds)
    branches = tree([Trajectory.of(known, arm, seed, plan) for arm, plan in plans if plan])
    if not any(branch.trunk for branch in branches):
        return None
    return drawing(branches, None if known is not spec else num_seeds)


def event_sheets(spec: PipelineSpec) -> list[Sheet]:
    """What is done when, arm by arm, beside logging; nothing where a calibration decides it."""
    sheets, before = [], stages_before(spec)
    for arm in spec.trained_arms:
        plan = make_plan(spec, arm, before)
        if plan is None:
            return []
        rows = [
            [f"{step:,}", f"{plan.stages[plan.stage_index(step - 1)].seq_len:,}", ", ".join(events)]
            for step in range(plan.first_step + 1, plan.num_steps + 1)
            if len(events := plan.events_after(step)) > 1
        ]
        logged = f"log every {spec.compute.log_every_steps} steps"
        columns = ("after step", "seq_len", "then, in this order")
        sheets.append(Sheet(f"{arm.name}: events", columns, rows, [logged], left=(2,)))
    return sheets


def _priced_plan(
    spec: PipelineSpec, arm: ArmSpec, before: Sequence[StagePlan], costs: SettingCosts
) -> Plan | None:
    """What a calibration would give that found these prices; None if it could not be planned."""
    calibrated = spec.derive(calibration={"step_microseconds": costs.step_microseconds})
    try:
        return make_plan(calibrated, arm, before)
    except UserError:  # a run's own calibration decides
        return None


def _unplanned(spec: PipelineSpec, arm: ArmSpec) -> Sheet:
    """The shares of an arm whose steps a calibration decides."""
    whole = sum(stage.ratio for stage in arm.stages)
    rows = [
        [
            length_text(stages),
            f"{spec.tokens_per_batch_of(stages[0]) // stages[0].seq_len:,}",
            f"{sum(stage.ratio for stage in stages) / whole:.1%} of {spec.ratios_in}",
            "after calibration",
        ]
        for stages in folded(arm.stages, _declared_kind)
    ]
    columns = ("seq_len", "windows", "share", "steps")
    return Sheet(_title(arm), columns, rows, _own(spec, arm), left=())


def _planned(spec: PipelineSpec, arm: ArmSpec, plan: Plan, costs: SettingCosts | None) -> Sheet:
    rows, own_tokens = [], plan.num_tokens - plan.tokens_after(plan.first_step)
    for stages in folded(plan.own_stages, _planned_kind):
        cost, num_steps = stages[0].step_microseconds, sum(stage.num_steps for stage in stages)
        tokens = num_steps * stages[0].tokens_per_batch
        row = [
            length_text(stages),
            f"{stages[0].windows_per_batch:,}",
            f"{num_steps:,}",
            f"{tokens:,}" if tokens < EXACT_TOKENS else tokens_text(tokens),
            f"{tokens / own_tokens:.1%}",
        ]
        if cost is not None:
            row += [f"{cost / 1000:,.0f}", seconds_text(num_steps * cost / MICROSECONDS)]
        rows.append([*row, _rates(spec.optimizer_of(arm), plan, stages)])
    timed = [] if plan.own_stages[0].step_microseconds is None else ["ms/step", "seconds"]
    columns = ["seq_len", "windows", "steps", "tokens", "share", *timed, "learning rate"]
    notes = [*_own(spec, arm), *_totals(plan), *(_price(spec, arm, plan, costs) if costs else [])]
    return Sheet(_title(arm), columns, rows, notes, left=())


def _own(spec: PipelineSpec, arm: ArmSpec) -> list[str]:
    """The own settings of stages, a line for each stage that has any; how many are not marked."""
    found = ((stage.seq_len, own_settings(spec, stage)) for stage in arm.stages)
    lines = [f"at {seq_len:,}: {own}" for seq_len, own in found if own]
    unmarked = sum(stage.mark_end is False for stage in arm.stages[:-1])
    if unmarked:
        what = f"{unmarked} of {len(arm.stages)} stages end" if unmarked > 1 else "one stage ends"
        lines.append(f"{what} without a checkpoint and an evaluation")
    return list(dict.fromkeys(lines))


def _planned_kind(stage: StagePlan) -> Hashable:
    """What stages in one row have in common."""
    return stage.seq_len, stage.windows_per_batch, stage.lr_factor, stage.weights


def _declared_kind(stage: StageSpec) -> Hashable:
    weights = stage.weights and tuple(stage.weights.items())
    return stage.seq_len, stage.tokens_per_batch, stage.lr_factor, weights


def _title(arm: ArmSpec) -> str:
    declared = arm.positions.model_dump()
    if declared.pop("kind") == "extrapolation":
        return arm.name
    said = ", ".join(f"{name} {value}" for name, value in declared.items())
    return f"{arm.name}, positions: {arm.positions.kind} ({said})"


def _rates(optimizer: OptimizerSpec, plan: Plan, stages: Sequence[StagePlan]) -> str:
    """``1.0e-2→8.4e-3``: of the first and the last step of the stages in a row."""
    ends = (stages[0].first_step, stages[-1].end_step - 1)
    rates = (learning_rate(optimizer, plan, step) for step in ends)
    parts = (f"{rate:.1e}".split("e") for rate in rates)
    return "→".join(f"{mantissa}e{int(exponent)}" for mantissa, exponent in parts)


def _totals(plan: Plan) -> list[str]:
    """Steps and tokens of all stages but the parent's, and what is left of the budget."""
    steps: dict[int, int] = {}
    for stage in plan.own_stages:
        steps[stage.tokens_per_batch] = steps.get(stage.tokens_per_batch, 0) + stage.num_steps
    products = " + ".join(f"{counted(n, 'step')} × {tokens:,}" for tokens, n in steps.items())
    own_tokens = plan.num_tokens - plan.tokens_after(plan.first_step)
    total = f"{products} = {own_tokens:,} tokens"
    if plan.budget_tokens is not None:
        rest = plan.budget_tokens - own_tokens
        return [total, f"{rest:,} tokens of the budget are less than a batch: not trained"]
    seconds = (plan.budget_seconds or 0.0) - (plan.calibrated_seconds(plan.num_steps) or 0.0)
    return [total, f"{seconds:.3f} s of the budget are less than a step: not used"]


def _price(spec: PipelineSpec, arm: ArmSpec, plan: Plan, costs: SettingCosts) -> list[str]:
    """Seconds and memory of an arm on one worker, and what it saves; GPU-hours if on one."""
    prices = [price for stage in plan.own_stages if (price := costs.at(stage.seq_len))]
    seconds = plan.total_cost({price.seq_len: price.seconds for price in prices})
    peaks = [price.peak_bytes for price in prices if price.peak_bytes is not None]
    hours = f" = {seconds / 3600:.2f} GPU-hours" if spec.compute.use_gpu else ""
    memory = f", {max(peaks) / GIB:.2f} GiB at most" if peaks else ""
    lines = [f"predicted on one worker: {seconds:,.1f} s{hours}{memory}"]
    saved = saved_share(costs, spec, arm)
    if saved is not None:
        of = f"fixed {max(arm.seq_lens):,}'s time on as many tokens"
        lines.append(saving_text(saved, of))
    return lines


def _origin(profile: Profile, priced: bool, by_prices: bool) -> str:
    if not priced:
        return (
            "\nnot priced: the profile here lacks one of the pipeline's lengths, or its setting; "
            "glray profile measures them"
        )
    steps = "; seconds decide here, so a run calibrates again" if by_prices else ""
    return f"\npriced by glray profile on {profile.machine}{steps}"
