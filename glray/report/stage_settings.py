"""What stages have of their own, in words: their batch, their rate's factor, their weights."""

from collections.abc import Sequence

from glray.report.arms import Arm
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import StageSpec


def own_settings(spec: PipelineSpec, stage: StageSpec) -> str:
    """``batch 8,192, rate × 0.5, weights web 1, books 3``: what is not as in the rest of the
    pipeline; empty if all of it is."""
    parts = []
    if (tokens := spec.tokens_per_batch_of(stage)) != spec.tokens_per_batch:
        parts.append(f"batch {tokens:,}")
    if stage.lr_factor not in (None, 1.0):
        parts.append(f"rate × {stage.lr_factor:g}")
    if (weights := _weights(spec, stage)) != _weights(spec, None):
        parts.append(f"weights {weights}")
    return ", ".join(parts)


def own_settings_sentences(arms: Sequence[Arm]) -> list[str]:
    """What the stages of compared arms have of their own, and whether the arms read other text."""
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
    """Of each source in a stage, or where no stage says otherwise."""
    own = spec.weights_of(stage) if stage else [source.weight for source in spec.sources]
    named = zip(spec.sources, own, strict=True)
    return ", ".join(f"{source.name} {weight}" for source, weight in named)
