"""The tree as text: literal drawings."""

from glray.report.tree_drawing import drawing
from glray.spec import shuffle
from glray.tree import tree
from tests.test_tree import pipeline, shares, trajectories
from tests.tiny import arm

FOUR_ARMS = """\
grow     ─8──────────────┬16──────────────32─────────────
half                     └───────┬32─────────────────────
fixed8                           └───────────────────────
fixed32  ─32─────────────────────────────────────────────
trained once: 100 of 480 steps are shared (21%)"""

SIBLINGS = """\
early  ─8──────────┬16─────────┬32─────────────────────
late               │           └────────────32─────────
high               └────────────32─────────────────────
trained once: 300 of 810 steps are shared (37%), which saves 360.0 of 1,440 s"""


MANY_STAGES = """\
grow      ─8──────────────┬16──────────────32─────────────
fixed8                    └───────────────────────────────
shuffled  ─(45 stages)────────────────────────────────────
trained once: 40 of 360 steps are shared (11%)"""


def test_the_tree_of_a_pipeline() -> None:
    """The runs share 40 and 60 of their 120 steps."""
    arms = (arm("fixed8", 8), arm("fixed32", 32), arm("grow", 8, 16, 32), arm("half", 8, 32))
    assert drawing(tree(trajectories(pipeline(*arms))), num_seeds=1) == FOUR_ARMS


def test_siblings_and_what_is_saved_under_all_seeds() -> None:
    """Under each seed 60 and 120 of 240 s, at 1, 2 and 4 s a step."""
    arms = (
        shares("early", {8: 30, 16: 30, 32: 60}),
        shares("late", {8: 30, 16: 60, 32: 30}),
        shares("high", {8: 60, 32: 60}),
    )
    costs = {"step_microseconds": {8: 1_000_000, 16: 2_000_000, 32: 4_000_000}}
    spec = pipeline(*arms, calibration=costs, ratios_in="seconds", budget={"seconds": 240})
    assert drawing(tree(trajectories(spec)), num_seeds=2) == SIBLINGS


def test_stages_without_marked_ends_are_drawn_as_one() -> None:
    grow = arm("grow", 8, 16, 32)
    arms = (grow, shuffle(grow, name="shuffled"), arm("fixed8", 8))
    assert drawing(tree(trajectories(pipeline(*arms))), num_seeds=1) == MANY_STAGES
