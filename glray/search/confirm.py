"""The best schedules of a search, trained again on fresh seeds beside its baselines. Pure."""

from collections.abc import Sequence

from glray.search.space import Candidate, baselines, fresh_seeds, longest_seq_len
from glray.spec.comparison import ComparisonSpec, lower
from glray.spec.pipeline import PipelineSpec


def best_pipeline(spec: PipelineSpec, tried: PipelineSpec, best: Candidate) -> PipelineSpec:
    """``<name>-best``: repeats the run of a candidate exactly; ``tried`` is the pipeline that
    trained it, with its calibration."""
    return tried.derive(name=f"{spec.name}-best", arms=[tried.arm(best.name)], search=None)


def confirmation(
    spec: PipelineSpec, tried: PipelineSpec, ranked: Sequence[Candidate]
) -> ComparisonSpec | None:
    """The comparison that confirms the first of ``ranked``, best first: ``spec.search.confirm``
    of them, beside the best fixed longest length and the best equal shares, as far as these have a
    loss, with the claim that each has a lower loss than the fixed one. None if nothing is to be
    confirmed."""
    assert spec.search is not None
    if spec.search.confirm == 0 or not ranked:
        return None
    rivals = [candidate for candidate in ranked if candidate in baselines(spec)]
    fixed = next((its for its in rivals if its.seq_lens == (longest_seq_len(spec),)), None)
    equal = next((its for its in rivals if len(its.seq_lens) > 1), None)
    beside = [its for its in (fixed, equal) if its is not None]
    chosen = dict.fromkeys([*ranked[: spec.search.confirm], *beside])
    names = tuple(candidate.name for candidate in chosen)
    claims = [lower(name, fixed.name) for name in names if name != fixed.name] if fixed else []
    pipeline = tried.derive(
        name=f"{spec.name}-confirm",
        arms=[tried.arm(name) for name in names],
        search=None,
        seeds=fresh_seeds(spec),
    )
    return ComparisonSpec(
        name=f"{spec.name}-confirm",
        title="The best schedules of the search on fresh seeds",
        arms=pipeline[names],
        claims=tuple(claims),
    )
