"""What a trial is: one arm's stages, drawn at random. Pure."""

import math
import random
from itertools import pairwise

from glray.errors import UserError
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import StageSpec
from glray.spec.search import SearchSpec

RATIO_DIGITS = 3
"""Drawn ratios are rounded to this many digits, so that a schedule can be read and written."""


def draw_stages(search: SearchSpec, ladder: tuple[int, ...], rng: random.Random) -> list[StageSpec]:
    """Stages on ``ladder`` (sequence lengths in order) with drawn ratios."""
    if search.vary == "ratios":
        low, high = (math.log(bound) for bound in search.ratio_range)
        ratios = [round(math.exp(rng.uniform(low, high)), RATIO_DIGITS) for _ in ladder]
    else:
        # Two equal boundaries would leave a stage nothing: draw distinct thousandths.
        units = 10**RATIO_DIGITS
        inner = sorted(rng.sample(range(1, units), len(ladder) - 1))
        boundaries = [0, *inner, units]
        ratios = [(end - start) / units for start, end in pairwise(boundaries)]
    least = 10.0**-RATIO_DIGITS
    return [
        StageSpec(seq_len=seq_len, ratio=max(ratio, least))
        for seq_len, ratio in zip(ladder, ratios, strict=True)
    ]


def trial_spec(spec: PipelineSpec, number: int) -> PipelineSpec:
    """The pipeline of trial ``number``: one arm, one seed, stages drawn from (seed, number).

    Trials of one search have the same budget, calibration, tokens and ``chunk_len``.
    """
    assert spec.search is not None
    search = spec.search
    rng = random.Random(f"glray search {search.seed} {number}")
    searched = spec.arm(search.arm)
    ladder = rng.choice(search.ladders) if search.ladders else searched.seq_lens
    return spec.derive(
        name=f"{spec.name}-trial{number:03d}",
        arms=[searched.derive(stages=draw_stages(search, ladder, rng))],
        only=None,
        seeds=spec.seeds[:1],
        chunk_len=spec.chunk_tokens,
        search=None,
    )


def check_search(spec: PipelineSpec) -> None:
    """Raises UserError if the spec declares no search, or one whose trials cannot be compared."""
    if spec.search is None:
        raise UserError(f"{spec.name}: declares no search; add search=SearchSpec(arm=…)")
    if spec.budget.seconds is None:
        raise UserError(
            f"{spec.name}: budget.tokens is {spec.budget.tokens:,}, a search compares schedules "
            "at equal calibrated seconds; --set budget.seconds=60 --set budget.tokens=null"
        )
    if spec.evaluation.max_rise is not None:
        raise UserError(
            f"{spec.name}: evaluation.max_rise {spec.evaluation.max_rise:g} would stop trials, "
            "which then have no loss to compare; --set evaluation.max_rise=null"
        )
    ranking_seq_len(spec)


def ranking_seq_len(spec: PipelineSpec) -> int:
    """The length whose held-out loss ranks trials: the longest evaluated one that is at most
    ``chunk_len``, which no trial trains beyond. Raises UserError if there is none."""
    within = [length for length in spec.evaluation.seq_lens if length <= spec.chunk_tokens]
    if not within:
        raise UserError(
            f"evaluation.seq_lens {spec.evaluation.seq_lens} are all longer than chunk_len "
            f"{spec.chunk_tokens}: trials could not be ranked at a length they train; add one"
        )
    return max(within)
