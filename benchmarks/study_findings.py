"""What ``glray recommend`` takes from the study: the worth of each schedule that grows."""

import math
from itertools import groupby

from benchmarks.contrasts import Worth
from benchmarks.study_records import Work
from benchmarks.study_results import Results
from glray.model.config import longest_config
from glray.model.decoder import meta_model
from glray.report import recommend
from glray.spec import ArmSpec, BpeTokenizer
from pipelines.study import Study


def findings(work: Work) -> recommend.Findings | None:
    """The findings of a study whose core is trained to its end, and of its full shares if they are;
    None before, and where no worth can be read."""
    core = Results.of(work)
    if core is None:
        return None
    worths = {worth.arm: worth for worth in core.worths}
    shares = work.records("full-shares")
    if len(shares) == len(work.seeds("full-shares")):
        own = Results(work.study, shares)
        curves = Results(work.study, {seed: core.records[seed] for seed in shares}).full_curves
        found = [own.worth(label, curves) for label in own.labels if label.startswith("full-")]
        worths |= {worth.arm: worth for worth in found if worth is not None}
    growing = _each_once(
        [arm for arm in work.study.pipeline().arms if _grows(arm) and arm.name in worths]
    )
    if not growing:
        return None
    return recommend.Findings(
        seq_lens=work.study.lengths,
        num_tokens=work.study.tokens,
        num_parameters=_num_parameters(work.study),
        schedules=tuple(_tried(arm, worths[arm.name], work.study) for arm in growing),
    )


def _each_once(arms: list[ArmSpec]) -> list[ArmSpec]:
    """Without those that train what one before them does under another name."""
    kept: list[ArmSpec] = []
    for arm in arms:
        if not any(arm.seq_lens == its.seq_lens and _shares(arm) == _shares(its) for its in kept):
            kept.append(arm)
    return kept


def _shares(arm: ArmSpec) -> list[float]:
    whole = sum(stage.ratio for stage in arm.stages)
    return [round(stage.ratio / whole, 6) for stage in arm.stages]


def _grows(arm: ArmSpec) -> bool:
    """Whether each length is longer than the one before."""
    lengths = [seq_len for seq_len, _ in groupby(arm.seq_lens)]
    return len(lengths) > 1 and lengths == sorted(set(lengths))


def _tried(arm: ArmSpec, worth: Worth, study: Study) -> recommend.Tried:
    own, full = worth.log_share, study.lengths[-1]
    tokens = sum(worth.tokens.values())
    whole = tokens / worth.full_tokens
    mean, low, high = (round(math.exp(x) / whole, 4) for x in (own.mean, own.low, own.high))
    stages = [(n / full, round(its / tokens, 4)) for n, its in sorted(worth.tokens.items())]
    return recommend.Tried(
        name=arm.name,
        stages=tuple(stages),
        worth=(mean, low, high),
        num_seeds=len(worth.budgets),
        extended=worth.is_extended,
    )


def _num_parameters(study: Study) -> int:
    assert isinstance(study.base.tokenizer, BpeTokenizer)
    config = longest_config(study.base, vocab_size=study.base.tokenizer.vocab_size, eos_id=0)
    return sum(parameter.numel() for parameter in meta_model(config).parameters())
