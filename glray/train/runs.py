"""From a spec and its prepared corpus to the runs of a pipeline: validated once, then planned.

Validation reads what training will need and says what is wrong on one line; the command that
trains calls it before anything starts. Planning is pure, so every process that plans the same spec
has the same runs.
"""

import json
import os
from collections.abc import Sequence
from itertools import product
from typing import Any

from transformers import PreTrainedConfig

from glray.data.corpus import PreparedCorpus
from glray.data.targets import heldout_targets
from glray.errors import UserError
from glray.files import AnyPath, as_path
from glray.model.config import Start, embedding_rows, model_config
from glray.model.flops import training_flops_per_token
from glray.model.positions import rope_parameters
from glray.model.pretrained import PretrainedFolder
from glray.plan import Plan, make_plan
from glray.run.forks import has_begun
from glray.run.parent import Parent, Parents
from glray.run.records import Manifest
from glray.run.run import Run, run_directory
from glray.run.start import recorded_manifest
from glray.spec.identity import fingerprint, training_identity
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec


def validate_pipeline(spec: PipelineSpec, corpus: PreparedCorpus, start: Start) -> None:
    """Raises UserError for a plan that is impossible, a corpus smaller than a batch, a vocabulary
    larger than the model's, held-out documents shorter than a window, a run's directory that holds
    another identity, RoPE scaling that the model cannot be given, or parents that were trained on
    other tokens or lack the state to go on from."""
    parents = start.by_seed if isinstance(start, Parents) else {}
    for parent in parents.values():
        _check_tokens(parent, corpus)
    _check_corpus_size(spec, corpus)
    embedding_rows(start, corpus.vocabulary.vocab_size)
    heldout_targets(corpus, spec.evaluation)
    for arm in spec.trained_arms:
        _rope_parameters(arm, corpus, start, parents.get(spec.seeds[0]))
    for run in plan_runs(spec, corpus, start) or []:
        recorded_manifest(run)
    for arm, seed in product(spec.trained_arms, parents):
        if not has_begun(run_directory(spec, arm.name, seed)):
            parents[seed].checkpoint  # noqa: B018 (it raises)


def plan_runs(spec: PipelineSpec, corpus: PreparedCorpus, start: Start) -> list[Run] | None:
    """Every run of the pipeline, seed by seed; None where seconds decide and the spec has no
    calibration yet. Pure. Raises UserError for a plan that is impossible."""
    parents = start.by_seed if isinstance(start, Parents) else {}
    before = {seed: parent.stages for seed, parent in parents.items()}
    return [
        _planned(spec, arm, plan, seed, corpus, start)
        for seed in spec.seeds
        for arm in spec.trained_arms
        if (plan := make_plan(spec, arm, before.get(seed, ()))) is not None
    ] or None


def _planned(
    spec: PipelineSpec, arm: ArmSpec, plan: Plan, seed: int, corpus: PreparedCorpus, start: Start
) -> Run:
    parent = start.by_seed[seed] if isinstance(start, Parents) else None
    seq_lens = [stage.seq_len for stage in plan.stages]
    config = _config(seq_lens, corpus, start)
    init_sha256 = start.sha256 if isinstance(start, PretrainedFolder) else None
    directory = run_directory(spec, arm.name, seed)
    goes_on_from = None if parent is None else parent.identity
    folder_len = 0 if parent is None else parent.run.folder_len
    if isinstance(start, PretrainedFolder):
        folder_len = start.config.max_position_embeddings
    identity = training_identity(spec, arm, seed, corpus.identity, init_sha256, goes_on_from)
    own = spec.derive(arms=[arm], only=None, seeds=[seed], search=None, chunk_len=plan.chunk_len)
    manifest = Manifest(
        pipeline=spec.name,
        arm=arm.name,
        seed=seed,
        fingerprint=fingerprint(identity),
        identity=identity,
        plan=plan,
        architecture=json.loads(config.to_json_string(use_diff=False)),
        rope_parameters=_rope_parameters(arm, corpus, start, parent),
        flops_per_token=tuple(training_flops_per_token(config, n) for n in seq_lens),
        tokens_directories=tuple(_seen_from(directory, as_path(n)) for n in corpus.directories),
        parent=None if parent is None else parent.record,
        folder_len=folder_len,
    )
    return Run(directory, own, manifest)


def _seen_from(directory: AnyPath, tokens: AnyPath) -> str:
    """Where token blocks lie as seen from a run of the same storage, with which they may be moved;
    their absolute path if they lie outside that storage."""
    storage, place = str(directory.parents[1]), str(tokens.resolve())
    is_inside = place.startswith(f"{storage}/")
    return os.path.relpath(place, str(directory)) if is_inside else place


def _config(seq_lens: Sequence[int], corpus: PreparedCorpus, start: Start) -> PreTrainedConfig:
    ids, longest = corpus.vocabulary, max(seq_lens)
    return model_config(start, vocab_size=ids.vocab_size, eos_id=ids.eos_id, max_seq_len=longest)


def _rope_parameters(
    arm: ArmSpec, corpus: PreparedCorpus, start: Start, parent: Parent | None
) -> tuple[dict[str, Any], ...]:
    """RoPE of each stage, the parent's stages first."""
    before = parent.stages if parent else ()
    seq_lens = [*(stage.seq_len for stage in before), *arm.seq_lens]
    config = _config(seq_lens, corpus, start)
    own = range(len(before), len(seq_lens))
    return (
        *(parent.rope_parameters if parent else ()),
        *(rope_parameters(arm.positions, config, seq_lens, stage) for stage in own),
    )


def _check_tokens(parent: Parent, corpus: PreparedCorpus) -> None:
    """Raises UserError unless the corpus is the one that the parent was trained on."""
    ours, theirs = (
        [str(source["fingerprint"]) for source in sources]
        for sources in (corpus.identity, parent.run.manifest.identity["tokens"])
    )
    if ours != theirs:
        raise UserError(
            f"start: {parent.run.directory}: was trained on the token blocks {', '.join(theirs)}, "
            f"this pipeline reads {', '.join(ours)}: what the parent has read would not be "
            "known; declare the parent's corpus, tokenizer and heldout_fraction (stages may "
            "give its sources other weights)"
        )


def _check_corpus_size(spec: PipelineSpec, corpus: PreparedCorpus) -> None:
    """Raises UserError if an epoch of a source has no chunk, or all have less than one batch."""
    available = corpus.num_chunks(spec.chunk_tokens) * spec.chunk_tokens
    stages = (stage for arm in spec.trained_arms for stage in arm.stages)
    largest_batch = max(map(spec.tokens_per_batch_of, stages))
    if available < largest_batch:
        raise UserError(
            f"corpus: its training tokens make {available:,} in whole chunks of "
            f"{spec.chunk_tokens:,}, less than one batch of {largest_batch:,}: no step "
            "could be filled; give more text, or lower tokens_per_batch or chunk_len"
        )
