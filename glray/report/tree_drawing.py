"""The tree of a pipeline's runs as text: who forks from whom, where, and what that saves."""

from collections.abc import Sequence

from glray.plan import Plan
from glray.report.folding import spans
from glray.report.formats import seconds_text
from glray.tree import Branch

COLUMNS = 79
"""Width of a line."""
WIDEST, NARROWEST = 48, 20
"""Columns for the budget, depending on the room that the names leave."""


def drawing(branches: Sequence[Branch], num_seeds: int | None) -> str:
    """A line for each arm, in the order of training: its stages from where it forks, on the scale
    of the budget. Then how much is not trained again, under ``num_seeds`` seeds; if the steps are
    not known yet (None), its share alone."""
    names = [branch.trajectory.arm for branch in branches]
    margin = max(map(len, names))
    width = max(NARROWEST, min(WIDEST, COLUMNS - margin - 3))
    rows = [list(_row(branch, width)) for branch in branches]
    place = {name: index for index, name in enumerate(names)}
    for index, branch in enumerate(branches):
        if branch.trunk is None:
            continue
        column, trunk = (
            _column(branch.trajectory.plan, branch.fork_step, width),
            place[branch.trunk.arm],
        )
        rows[trunk][column] = "┬"
        for between in rows[trunk + 1 : index]:
            between[column] = {" ": "│", "└": "├"}.get(between[column], between[column])
    lines = [f"{name:{margin}}  {''.join(row)}" for name, row in zip(names, rows, strict=True)]
    return "\n".join([*(line.rstrip() for line in lines), _saved(branches, num_seeds)])


def _row(branch: Branch, width: int) -> str:
    """Blank up to the fork, then each stage's length on its line; stages without a marked end
    between them, as one. A length that there is no room for is left out."""
    plan, row = branch.trajectory.plan, ""
    start = _column(plan, branch.fork_step, width)
    for span in spans(plan.stages):
        first_step, end_step = span[0].first_step, span[-1].end_step
        end = _column(plan, end_step, width)
        if end_step <= branch.fork_step:
            continue
        begins = max(_column(plan, first_step, width), start)
        what = str(span[0].seq_len) if len(span) == 1 else f"({len(span)} stages)"
        label = f"{'└' if begins == start and branch.trunk else '─'}{what}"
        if begins == start and branch.trunk and first_step < branch.fork_step:
            label = "└"  # it goes on at the trunk's length
        room = max(end - begins, 1)
        row += f"{label if len(label) <= room else label[0]:─<{room}}"
    return f"{' ' * start}{row}".ljust(width + 1)


def _column(plan: Plan, step: int, width: int) -> int:
    """Where a step lies on the scale of the budget."""
    return round(float(plan.progress(step)) * width)


def _saved(branches: Sequence[Branch], num_seeds: int | None) -> str:
    """``trained once: 3,553 of 13,320 steps are shared (27%), which saves 910 of 4,200 s``."""
    plans = [branch.trajectory.plan for branch in branches]
    spared = [branch.saved_seconds for branch in branches]
    lasting = [plan.own_seconds(plan.num_steps) for plan in plans]
    seconds, all_seconds = (sum(each or 0 for each in its) for its in (spared, lasting))
    if num_seeds is None:
        return f"trained once: {seconds / all_seconds:.0%} of all training seconds are shared"
    saved = num_seeds * sum(branch.shared_steps for branch in branches)
    whole = num_seeds * sum(plan.num_own_steps for plan in plans)
    said = f"trained once: {saved:,} of {whole:,} steps are shared ({saved / whole:.0%})"
    if None in spared or None in lasting:
        return said
    texts = (seconds_text(num_seeds * each) for each in (seconds, all_seconds))
    return f"{said}, which saves {' of '.join(texts)} s"
