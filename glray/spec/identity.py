"""What is computed, apart from how it is executed: the tokens and training fingerprints.

The *tokens* fingerprint names a source's token blocks. The *training* fingerprint names one arm's
run under one seed. Whatever is in neither (workers, storage, evaluation, logging, names) may
change between two calls without a new run. ``tests/spec/test_identity.py`` lists every field of
the spec with its fingerprint.
"""

import hashlib
import json

from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec, StageSpec

TOKENS_VERSION = 2
"""Version of the token blocks on disk and of the order in which they are read."""

RUN_VERSION = 3
"""Version of a run's directory, its resolved spec, and what its training computes."""


def fingerprint(identity: dict[str, object]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of ``identity`` as canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def tokens_identity(
    *,
    documents_sha256: str,
    heldout_fraction: float,
    tokenizer_sha256: str,
    eos_id: int,
    heldout_spans: dict[str, int] | None = None,
) -> dict[str, object]:
    """What decides the bytes of a source's token blocks.

    ``documents_sha256`` stands for the source's documents in their order and ``tokenizer_sha256``
    for the ``tokenizer.json``, given or trained, so neither paths nor file formats count.
    ``heldout_spans`` says which spans of documents are held out where no whole ones are.
    """
    spans = {} if heldout_spans is None else {"heldout_spans": heldout_spans}
    return spans | {
        "format": TOKENS_VERSION,
        "documents_sha256": documents_sha256,
        "heldout_fraction": heldout_fraction,
        "tokenizer_sha256": tokenizer_sha256,
        "eos_id": eos_id,
    }


def training_identity(
    spec: PipelineSpec,
    arm: ArmSpec,
    seed: int,
    tokens: list[dict[str, object]],
    init_sha256: str | None = None,
    parent: dict[str, object] | None = None,
) -> dict[str, object]:
    """What decides the final weights of one arm under one seed.

    ``tokens`` has the fingerprint and weight of each source, in the order of the cycle;
    ``init_sha256`` stands for the content of the folder that the spec's ``init`` names; ``parent``
    has the fingerprint and the step of the run that the spec's ``start`` names, but not its place.
    Raises ValueError if seconds decide and the spec's calibration lacks a length of the arm.
    """
    identity: dict[str, object] = {
        "format": RUN_VERSION,
        "tokens": tokens,
        "model": spec.model.model_dump(mode="json") if spec.model else None,
        "init": init_sha256,
        "attention": spec.attention,
        "stages": [_stage_identity(spec, stage) for stage in arm.stages],
        "positions": arm.positions.model_dump(mode="json"),
        "budget": spec.budget.model_dump(mode="json"),
        "ratios_in": spec.ratios_in,
        "tokens_per_batch": spec.tokens_per_batch,
        "chunk_len": spec.chunk_tokens,
        "optimizer": spec.optimizer_of(arm).model_dump(mode="json"),
        "precision": spec.precision,
        "seed": seed,
    }
    if parent is not None:
        identity["parent"] = parent
    if spec.needs_calibration:
        if spec.calibration is None:
            raise ValueError("the training identity needs a calibration where seconds decide")
        costs = spec.calibration.step_microseconds
        identity["step_microseconds"] = {
            str(stage.seq_len): costs[stage.seq_len] for stage in arm.stages
        }
    return identity


def _stage_identity(spec: PipelineSpec, stage: StageSpec) -> dict[str, object]:
    """A stage's length and ratio, and its other settings where they differ from the pipeline's.
    Weights are in the order of the sources, whose names do not count."""
    identity: dict[str, object] = {"seq_len": stage.seq_len, "ratio": stage.ratio}
    tokens_per_batch, weights = spec.tokens_per_batch_of(stage), spec.weights_of(stage)
    if tokens_per_batch != spec.tokens_per_batch:
        identity["tokens_per_batch"] = tokens_per_batch
    if stage.lr_factor not in (None, 1.0):
        identity["lr_factor"] = stage.lr_factor
    if weights != tuple(source.weight for source in spec.sources):
        identity["weights"] = list(weights)
    return identity


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """``path: old → new`` of every leaf that differs between two identities."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += [f"{key}.{change}" for change in differences(before, after)]
        elif before != after:
            changes.append(f"{key}: {json.dumps(before)} → {json.dumps(after)}")
    return changes
