"""Lists of stages: literal ones to check by eye; an order changes nothing but the order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.plan import make_plan
from glray.spec import ArmSpec, BaseFrequencies, grow, reverse, shuffle, two_phase
from tests.test_tree import pipeline
from tests.tiny import arm

GROWING = grow(128, 256, 512, 1024)


def ratios(arm: ArmSpec) -> list[tuple[int, float]]:
    return [(stage.seq_len, stage.ratio) for stage in arm.stages]


def test_two_phases() -> None:
    most, less = two_phase(128, 1024), two_phase(128, 1024, share=0.64)
    assert (most.name, ratios(most)) == ("two-phase-90", [(128, 0.9), (1024, 0.1)])
    assert (less.name, ratios(less)) == ("two-phase-64", [(128, 0.64), (1024, 0.36)])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_phase_without_a_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share:g}, which leaves one of the two phases"):
        two_phase(128, 1024, share=share)


def test_an_arm_reversed() -> None:
    reversed_ = reverse(GROWING.derive(lr=3e-3))
    assert (reversed_.name, reversed_.lr) == ("growlength-reversed", 3e-3)
    assert ratios(reversed_) == [(1024, 1), (512, 1), (256, 1), (128, 1)]


def test_a_reversed_arm_may_end_at_full_length() -> None:
    """5% of the whole, 19/20 of which is left for the four."""
    ratios_ = ratios(reverse(GROWING, final_share=0.05))
    assert ratios_ == [(1024, 0.95), (512, 0.95), (256, 0.95), (128, 0.95), (1024, 0.2)]
    with pytest.raises(ValueError, match="final_share is 1, but the reversed stages need some"):
        reverse(GROWING, final_share=1)


def test_an_arm_shuffled() -> None:
    """Eight pieces of the same size: two of 8, two of 16, four of 32."""
    stages = [8, 16, {"seq_len": 32, "ratio": 2, "lr_factor": 0.5}]
    own = ArmSpec.model_validate({"name": "own", "stages": stages})
    shuffled = shuffle(own, segments=8)
    assert shuffled.name == "own-shuffled"
    assert ratios(shuffled) == [(16, 1), (32, 2), (16, 1), (32, 1), (8, 1), (32, 1), (8, 1)]
    assert [stage.lr_factor for stage in shuffled.stages] == [None, 0.5, None, 0.5, None, 0.5, None]
    assert all(stage.mark_end is False for stage in shuffled.stages)
    assert shuffle(own, segments=8, seed=1) != shuffled == shuffle(own, segments=8)


def test_too_few_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="of 4 segments the stage of 32 tokens gets none"):
        shuffle(ArmSpec.model_validate({"name": "most", "stages": {8: 9, 32: 1}}), segments=4)


@pytest.mark.parametrize("reorder", [reverse, shuffle])
def test_thetas_belong_to_the_places_of_stages(reorder: type) -> None:
    with pytest.raises(ValueError, match="thetas of the arm 'own' are given stage by stage"):
        reorder(arm("own", 8, 16, positions=BaseFrequencies(thetas=(1e4, 1e5))))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(12, 60),
    st.integers(0, 2**32),
    st.integers(300, 3000),
)
def test_a_shuffled_arm_trains_as_many_tokens_of_each_length(
    shares: list[int], segments: int, seed: int, num_steps: int
) -> None:
    """To within a step a segment; its pieces are a permutation of the arm's."""
    stages = dict(zip((8, 16, 32), (share / 10 for share in shares), strict=False))
    whole, least = sum(shares), min(shares)
    if segments * least < whole or num_steps < 2 * segments * whole / least:
        return  # a stage would get no piece, or a piece no step
    own = ArmSpec.model_validate({"name": "own", "stages": stages})
    shuffled = shuffle(own, segments=segments, seed=seed)
    spec = pipeline(own, shuffled, budget={"tokens": num_steps * 64})
    planned: list[Counter[int]] = []
    for each in spec.arms:
        plan, steps = make_plan(spec, each), Counter[int]()
        assert plan is not None
        assert plan.num_steps == num_steps
        for stage in plan.stages:
            steps[stage.seq_len] += stage.num_steps
        planned.append(steps)
    for seq_len in stages:
        assert abs(planned[0][seq_len] - planned[1][seq_len]) <= segments
    total = sum(stage.ratio for stage in shuffled.stages)
    for seq_len, share in zip(stages, shares, strict=True):
        its = sum(stage.ratio for stage in shuffled.stages if stage.seq_len == seq_len)
        assert its * whole == total * share  # whole numbers: exact
    assert len(shuffled.stages) <= segments
