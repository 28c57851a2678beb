"""The tree of runs: literal cases to check by eye, and properties."""

from hypothesis import given
from hypothesis import strategies as st

from glray.plan import learning_rate, make_plan
from glray.spec import (
    ArmSpec,
    BaseFrequencies,
    BpeTokenizer,
    BudgetSpec,
    EvaluationSpec,
    GPTNeoXModel,
    Interpolation,
    MixtureCorpus,
    OptimizerSpec,
    PipelineSpec,
    SourceSpec,
    StageSpec,
    StdlibCorpus,
)
from glray.tree import Trajectory, tree
from tests.tiny import arm

LENGTHS = (8, 16, 32)


def pipeline(*arms: ArmSpec, seeds: tuple[int, ...] = (0,), **fields: object) -> PipelineSpec:
    """Arms over 120 steps of 64 tokens."""
    declared: dict[str, object] = {
        "name": "tree",
        "corpus": StdlibCorpus(),
        "tokenizer": BpeTokenizer(vocab_size=300),
        "model": GPTNeoXModel(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32),
        "arms": arms,
        "budget": BudgetSpec(tokens=120 * 64),
        "tokens_per_batch": 64,
        "chunk_len": 64,
        "optimizer": OptimizerSpec(lr=1e-2),
        "seeds": seeds,
        "evaluation": EvaluationSpec(seq_lens=LENGTHS, num_tokens=64),
    }
    return PipelineSpec.model_validate(declared | fields)


def shares(name: str, ratios: dict[int, float]) -> ArmSpec:
    """An arm whose stages are given by their ratios."""
    return ArmSpec.model_validate({"name": name, "stages": ratios})


def trajectories(spec: PipelineSpec) -> list[Trajectory]:
    planned = [(arm, make_plan(spec, arm)) for arm in spec.arms]
    return [
        Trajectory.of(spec, arm, seed, plan) for seed in spec.seeds for arm, plan in planned if plan
    ]


def drawn(spec: PipelineSpec) -> list[tuple[str, str | None, int]]:
    """Each run, its trunk, and the step at which it forks, in the order of training."""
    return [
        (b.trajectory.name, b.trunk.name if b.trunk else None, b.fork_step)
        for b in tree(trajectories(spec))
    ]


def test_the_run_whose_stage_ends_first_is_trained_first() -> None:
    arms = (
        arm("fixed8", 8),
        arm("fixed32", 32),
        arm("grow", 8, 16, 32),
        arm("half", 8, 32),
    )
    assert drawn(pipeline(*arms)) == [
        ("grow-seed0", None, 0),
        ("half-seed0", "grow-seed0", 40),
        ("fixed8-seed0", "half-seed0", 60),
        ("fixed32-seed0", None, 0),
    ]


def test_trunks_of_trunks() -> None:
    """The steps to 30 are the first run's, those from there to 60 the third's."""
    arms = (
        shares("a", {8: 30, 16: 30, 32: 60}),
        shares("b", {8: 30, 16: 60, 32: 30}),
        shares("c", {8: 60, 16: 30, 32: 30}),
        shares("d", {8: 60, 16: 45, 32: 15}),
    )
    assert drawn(pipeline(*arms)) == [
        ("a-seed0", None, 0),
        ("b-seed0", "a-seed0", 60),
        ("c-seed0", "a-seed0", 30),
        ("d-seed0", "c-seed0", 90),
    ]


def test_seeds_share_nothing() -> None:
    assert drawn(pipeline(arm("a", 8, 16), arm("b", 8), seeds=(3, 1))) == [
        ("a-seed3", None, 0),
        ("b-seed3", "a-seed3", 60),
        ("a-seed1", None, 0),
        ("b-seed1", "a-seed1", 60),
    ]


def test_other_rates_share_nothing() -> None:
    assert drawn(pipeline(arm("a", 8, 16), arm("b", 8, lr=2e-2), arm("c", 8, lr=1e-2))) == [
        ("a-seed0", None, 0),
        ("c-seed0", "a-seed0", 60),
        ("b-seed0", None, 0),
    ]


def test_rewarming_parts_at_the_first_boundary() -> None:
    """There it begins; a single stage has none."""
    arms = (arm("a", 8, 16, 32), arm("b", 8, 16, 32, rewarm_steps=3), arm("c", 8, rewarm_steps=3))
    assert drawn(pipeline(*arms)) == [
        ("a-seed0", None, 0),
        ("b-seed0", "a-seed0", 40),
        ("c-seed0", "a-seed0", 40),
    ]


def test_rope_scaling_parts_where_it_differs() -> None:
    """Positions are scaled from the second stage on; θ declares each stage's own."""
    arms = (
        arm("extrapolated", 8, 16, 32),
        arm("interpolated", 8, 16, 32, positions=Interpolation()),
        arm("frequent", 8, 16, 32, positions=BaseFrequencies(thetas=(1e4, 1e4, 1e5))),
    )
    assert drawn(pipeline(*arms)) == [
        ("extrapolated-seed0", None, 0),
        ("interpolated-seed0", "extrapolated-seed0", 40),
        ("frequent-seed0", None, 0),
    ]


def test_stages_part_where_their_batch_rate_or_weights_differ() -> None:
    corpus = MixtureCorpus(
        sources=tuple(SourceSpec(name=n, weight=1, corpus=StdlibCorpus()) for n in ("web", "books"))
    )

    def late(name: str, **declared: object) -> ArmSpec:
        stages = [{"seq_len": 8}, {"seq_len": 16, **declared}]
        return ArmSpec.model_validate({"name": name, "stages": stages})

    arms = (
        late("plain"),
        late("said", tokens_per_batch=64, lr_factor=1, weights={"web": 1}),
        late("batch", tokens_per_batch=128),
        late("rate", lr_factor=0.5),
        late("weights", weights={"books": 3}),
    )
    assert drawn(pipeline(*arms, corpus=corpus)) == [
        ("plain-seed0", None, 0),
        ("said-seed0", "plain-seed0", 120),
        ("batch-seed0", "plain-seed0", 60),
        ("rate-seed0", "plain-seed0", 60),
        ("weights-seed0", "plain-seed0", 60),
    ]


def unmarked(its: ArmSpec, name: str, *stages: int) -> ArmSpec:
    """The same arm without a mark at the end of these stages."""
    own = [n.derive(mark_end=False) if i in stages else n for i, n in enumerate(its.stages)]
    return its.derive(name=name, stages=own)


def test_the_run_that_marks_an_end_is_trained_first() -> None:
    """``silent`` has no checkpoint where it leaves 8 and 16, ``fixed8`` none before its end."""
    grow = arm("grow", 8, 16, 32)
    silent = unmarked(grow, "silent", 0, 1)
    assert drawn(pipeline(silent, arm("fixed8", 8), grow)) == [
        ("grow-seed0", None, 0),
        ("silent-seed0", "grow-seed0", 120),
        ("fixed8-seed0", "grow-seed0", 40),
    ]
    assert drawn(pipeline(silent, arm("fixed8", 8))) == [
        ("silent-seed0", None, 0),
        ("fixed8-seed0", None, 0),
    ]


def test_no_fork_skips_an_end_that_only_the_run_itself_marks() -> None:
    """``late`` marks 80 alone, ``early`` 40 alone: what one would fork past, it has to score."""
    grow = arm("grow", 8, 16, 32)
    late, early = unmarked(grow, "late", 0), unmarked(grow, "early", 1)
    assert drawn(pipeline(late, early)) == [
        ("early-seed0", None, 0),
        ("late-seed0", "early-seed0", 40),
    ]


def test_the_same_schedule_twice_trains_once() -> None:
    assert drawn(pipeline(arm("a", 8, 16), shares("b", {8: 2, 16: 2}))) == [
        ("a-seed0", None, 0),
        ("b-seed0", "a-seed0", 120),
    ]


def test_seconds_that_are_saved() -> None:
    calibration = {"step_microseconds": {8: 1_000_000, 16: 2_000_000, 32: 4_000_000}}
    fields = {"budget": BudgetSpec(seconds=120), "ratios_in": "seconds", "calibration": calibration}
    spec = pipeline(arm("grow", 8, 16, 32), arm("half", 8, 32), **fields)  # type: ignore[arg-type]
    saved = [branch.saved_seconds for branch in tree(trajectories(spec))]
    assert saved == [0.0, 40.0]


@st.composite
def several_arms(draw: st.DrawFn, all_marked: bool = True) -> tuple[ArmSpec, ...]:
    """Up to eight, of one to three lengths each; some have a rate of their own."""
    arms = []
    for n in range(draw(st.integers(1, 8))):
        lengths = draw(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3, unique=True))
        stages = [
            StageSpec(
                seq_len=length,
                ratio=draw(st.integers(1, 5)),
                tokens_per_batch=draw(st.sampled_from([None, None, 128])),
                lr_factor=draw(st.sampled_from([None, 1.0, 0.5])),
                mark_end=all_marked or draw(st.booleans()),
            )
            for length in lengths
        ]
        lr = draw(st.sampled_from([None, 1e-3]))
        arms.append(ArmSpec(name=f"arm{n}", stages=tuple(stages), lr=lr))
    return tuple(arms)


def steps(trajectory: Trajectory, num_steps: int) -> list[tuple[int, int, float]]:
    """Length, position in the tokens and rate of the first steps."""
    plan = trajectory.plan
    return [
        (
            plan.stages[plan.stage_index(step)].seq_len,
            plan.tokens_after(step + 1),
            learning_rate(trajectory.optimizer, plan, step),
        )
        for step in range(num_steps)
    ]


@given(several_arms(all_marked=False), st.integers(0, 3))
def test_a_prefix_is_exact(arms: tuple[ArmSpec, ...], rewarm_steps: int) -> None:
    """Up to the fork a run and its trunk have the same length and the same rate at every step; the
    trunk trains these steps, comes before, saves a checkpoint there, and has marked every end
    before that the run marks."""
    optimizer = OptimizerSpec(lr=1e-2, rewarm_steps=rewarm_steps)
    branches = tree(trajectories(pipeline(*arms, optimizer=optimizer)))
    place = {branch.trajectory.name: index for index, branch in enumerate(branches)}
    assert place.keys() == {f"{arm.name}-seed0" for arm in arms}
    for index, branch in enumerate(branches):
        if branch.trunk is None:
            assert branch.fork_step == 0
            continue
        assert place[branch.trunk.name] < index
        assert branches[place[branch.trunk.name]].fork_step < branch.fork_step
        marked = branch.trunk.plan.marked_ends
        assert branch.fork_step in marked
        own = branch.trajectory.plan.marked_ends
        assert {step for step in own if step < branch.fork_step} <= {*marked}
        assert steps(branch.trunk, branch.fork_step) == steps(branch.trajectory, branch.fork_step)


@given(several_arms())
def test_no_step_is_trained_twice(arms: tuple[ArmSpec, ...]) -> None:
    """As many steps are trained as the runs have different beginnings."""
    branches = tree(trajectories(pipeline(*arms)))
    beginnings = set()
    for branch in branches:
        whole = steps(branch.trajectory, branch.trajectory.plan.num_steps)
        beginnings |= {tuple(whole[: n + 1]) for n in range(len(whole))}
    assert sum(branch.own_steps for branch in branches) == len(beginnings)
