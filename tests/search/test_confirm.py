"""The best schedules of a search, as a comparison on fresh seeds."""

from glray.search.confirm import confirmation
from glray.search.space import candidates, search_pipeline

from ..tiny import arm
from .test_space import searched


def test_the_best_are_confirmed_beside_the_baselines() -> None:
    spec = searched(arm("grow", 8, 16, 32), lengths=((8, 32),), num_trials=3, confirm=1)
    fixed, equal, first, *others = candidates(spec)
    pipeline = search_pipeline(spec, [fixed, equal, first, *others])
    comparison = confirmation(spec, pipeline, [*others, first, fixed, equal])
    assert comparison is not None
    names = [others[0].name, fixed.name, equal.name]
    assert [compared.label for compared in comparison.arms] == names
    assert [claim.against for claim in comparison.claims] == [fixed.name] * 2


def test_without_a_baseline_that_has_a_loss_the_best_are_trained_again_all_the_same() -> None:
    """Those that diverged are not ranked: here the longest length, and then both."""
    spec = searched(arm("grow", 8, 16, 32), lengths=((8, 32),), num_trials=3, confirm=1)
    tried = candidates(spec)
    _, equal, first, *_ = tried
    pipeline = search_pipeline(spec, tried)
    for ranked in ([first, equal], [first]):
        comparison = confirmation(spec, pipeline, ranked)
        assert comparison is not None
        assert [compared.label for compared in comparison.arms] == [its.name for its in ranked]
        assert comparison.claims == ()
