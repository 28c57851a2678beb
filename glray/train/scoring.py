"""A trained model scored on windows of any length. No Ray."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glray.data.targets import HeldoutTargets, document_targets, heldout_targets
from glray.errors import UserError
from glray.model.decoder import place_positions
from glray.model.positions import SCALINGS, scoring_parameters
from glray.spec.corpus import SourceCorpus
from glray.spec.positions import BaseFrequencies, Extrapolation, PositionsSpec
from glray.spec.training import EvaluationSpec
from glray.train.context import LocalContext
from glray.train.evaluation import Windows, score
from glray.train.trained_model import TrainedModel, find_model

FOLDER_TARGETS = 65_536
"""Target tokens of a folder's model, which no evaluation has fixed."""

AS_TRAINED = "as trained"


@dataclass(frozen=True)
class ScoringProtocol:
    """How a model is scored."""

    seq_lens: tuple[int, ...]
    """Window lengths in tokens."""
    stride: int | None = None
    """Tokens between the windows that slide over a sequence, shorter ones by their own length;
    None: it is cut into windows."""
    positions: tuple[str, ...] = (AS_TRAINED,)
    """RoPE scalings beyond the longest length trained: ``as trained``, ``extrapolation``,
    ``interpolation``, ``ntk``, ``yarn`` or ``theta=NUMBER``."""
    documents: SourceCorpus | None = None
    """What is scored; None: the run's held-out documents."""
    num_tokens: int | None = None
    """Target tokens; None: as many as the run's evaluations have, a longest window at least."""


@dataclass(frozen=True)
class Scores:
    """What a model scored."""

    step: int | None
    """Of the run's latest checkpoint; None of a folder's model."""
    trained_len: int
    """The longest length trained so far, in tokens."""
    targets: HeldoutTargets
    own: bool
    """Whether the run's own evaluations scored the same targets."""
    by_positions: dict[str, list[dict[str, Any]]]
    """One record a window length, as ``Scored.record`` gives it, under each scaling."""


def score_model(directory: Path, protocol: ScoringProtocol) -> Scores:
    """Score a run's latest checkpoint or the model of a ``transformers`` folder. Raises UserError.

    The targets are a fixed set for the longest of the lengths, so losses of two calls compare
    only if that is the same.
    """
    _check_lengths(protocol)
    ctx = LocalContext(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    trained = find_model(directory, ctx.device)
    seq_lens = sorted(set(protocol.seq_lens))
    scalings = {  # all of them before the first is scored: one may be invalid
        name: [json.dumps(_rope_parameters(name, trained, seq_len)) for seq_len in seq_lens]
        for name in protocol.positions
    }
    targets = _targets(trained, protocol)

    @cache  # at lengths that were trained all scalings are one
    def scored(seq_len: int, rope: str) -> dict[str, Any]:
        place_positions(trained.model.network, json.loads(rope))
        found = score(
            trained.model,
            targets,
            Windows.over(targets.longest, seq_len, protocol.stride),
            ctx,
            rows=trained.rows_at_once(seq_len),
            precision=trained.precision,
        )
        if not math.isfinite(found.loss):
            raise UserError(
                f"{directory}: the loss at {seq_len:,} is {found.loss}: the weights or positions "
                "are broken, and no loss would mean anything; score another checkpoint"
            )
        return found.record().model_dump()

    by_positions = {
        name: [scored(seq_len, rope) for seq_len, rope in zip(seq_lens, ropes, strict=True)]
        for name, ropes in scalings.items()
    }
    run, corpus = trained.run, trained.corpus
    own = (
        run is not None
        and corpus is not None
        and (heldout_targets(corpus, run.spec.evaluation).sha256 == targets.sha256)
    )
    return Scores(trained.step, trained.trained_len, targets, own, by_positions)


def _check_lengths(protocol: ScoringProtocol) -> None:
    longest = max(protocol.seq_lens)
    for seq_len in protocol.seq_lens:
        if seq_len < 1:
            raise UserError(f"seq_lens: {seq_len} is no window; a length is 1 or more")
        if longest % seq_len:
            raise UserError(
                f"seq_lens: {seq_len} does not divide the longest, {longest}: their targets "
                "would not be the same; use powers of two"
            )
    if protocol.stride is not None and not 1 <= protocol.stride <= longest:
        raise UserError(
            f"stride {protocol.stride}: a window of {longest} tokens cannot move by that "
            f"without leaving targets out; use 1 to {longest}"
        )
    if protocol.num_tokens is not None and protocol.num_tokens < longest:
        raise UserError(
            f"num_tokens {protocol.num_tokens:,} is less than one window of {longest:,}: nothing "
            f"could be scored at that length; use at least {longest:,}"
        )


def _targets(trained: TrainedModel, protocol: ScoringProtocol) -> HeldoutTargets:
    run, longest = trained.run, max(protocol.seq_lens)
    usual = FOLDER_TARGETS if run is None else run.spec.evaluation.num_tokens
    num_tokens = protocol.num_tokens or max(usual, longest)
    if protocol.documents is not None:
        return document_targets(protocol.documents, trained.tokenizer, longest, num_tokens)
    if run is None or trained.corpus is None:
        raise UserError(
            f"{trained.directory}: a folder has no held-out text of its own, so there is nothing "
            "to score; name documents"
        )
    return heldout_targets(
        trained.corpus, EvaluationSpec(seq_lens=(longest,), num_tokens=num_tokens)
    )


def _rope_parameters(name: str, trained: TrainedModel, seq_len: int) -> dict[str, Any]:
    placed = trained.rope_parameters
    if name == AS_TRAINED:
        return placed
    choice = _choice(name, placed)
    if isinstance(choice, Extrapolation):
        return placed
    if trained.scaled_by is not None:
        raise UserError(
            f"positions {name}: {trained.directory} was trained with positions scaled by "
            f"{trained.scaled_by}, and nobody has defined two scalings on top of each other; score "
            f"it {AS_TRAINED!r}"
        )
    return scoring_parameters(choice, trained.config, trained.trained_len, seq_len)


def _choice(name: str, trained: dict[str, Any]) -> PositionsSpec:
    if name in SCALINGS:
        return SCALINGS[name]
    kind, _, value = name.partition("=")
    try:
        if kind != "theta":
            raise ValueError
        return BaseFrequencies(thetas=(trained["rope_theta"], float(value)))
    except ValueError:  # of float() or the spec's own
        raise UserError(
            f"positions {name}: not one of {', '.join((AS_TRAINED, *SCALINGS))} or theta=NUMBER "
            "above 1"
        ) from None
