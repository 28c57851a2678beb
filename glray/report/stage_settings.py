"""Stages' own settings in words: batch, factor of the learning rate, weights."""

from collections.abc import Sequence

from glray.report.arms import Arm
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import StageSpec


def own_settings(spec: PipelineSpec, stage: StageSpec) -> str:
    """``batch 8,192, rate × 0.5, weights web 1, books 3``: what differs from the pipeline; empty
    if nothing does."""
    parts = []
    if (tokens := spec.tokens_per_batch_of(stage)) != spec.tokens_per_batch:
        parts.append(f"batch {tokens:,}")
    if stage.lr_factor not in (None, 1.0):
        parts.append(f"rate × {stage.lr_factor:g}")
    if (weights := _weights(spec, stage)) != _weights(spec, None):
        parts.append(f"weights {weights}")
    return ", ".join(parts)


def own_settings_sentences(arms: Sequence[Arm]) -> list[str]:
    """The own settings of compared arms' stages, and whether the arms read different text."""
    specs = [(arm, run.spec, run.spec.arms[0].stages) for arm in arms for run in arm.runs[:1]]
    parts = [
        f"{arm.label} at {stage.seq_len:,} ({own})"
        for arm, spec, stages in specs
        for stage in stages
        if (own := own_settings(spec, stage))
    ]
    if not parts:
        return []
    sentences = [f"Stages with settings of their own: {'; '.join(parts)}."]
    read = {tuple(dict.fromkeys(_weights(spec, n) for n in stages)) for _, spec, stages in specs}
    if len(read) > 1:
        sentences.append("Their weights differ, so the arms are not trained on the same text.")
    return sentences


def _weights(spec: PipelineSpec, stage: StageSpec | None) -> str:
    """Weight of each source in a stage; with None, the sources' own."""
    own = spec.weights_of(stage) if stage else [source.weight for source in spec.sources]
    named = zip(spec.sources, own, strict=True)
    return ", ".join(f"{source.name} {weight}" for source, weight in named)
