"""A trained model scored on windows of any length: a run's latest, or that of a ``transformers``
folder. No Ray."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from glray.data.blocks.tokenizer import parse_tokenizer, prepended_ids, vocab_size
from glray.data.corpus import PreparedCorpus, run_corpus
from glray.data.targets import HeldoutTargets, document_targets, heldout_targets
from glray.errors import UserError
from glray.files import AnyPath, local_copy
from glray.machine import usable_cpus
from glray.model.config import config_of, model_config
from glray.model.decoder import load_pretrained, place_positions
from glray.model.loss import NextTokenLoss
from glray.model.positions import scoring_parameters
from glray.model.pretrained import read_pretrained
from glray.progress import working
from glray.run.records import FarContext
from glray.run.run import Run
from glray.spec.corpus import SourceCorpus
from glray.spec.model import Precision
from glray.spec.positions import SCALINGS, BaseFrequencies, Extrapolation, PositionsSpec
from glray.spec.training import EvaluationSpec
from glray.train.context import WorkerContext
from glray.train.evaluation import Scored, Windows, far_windows, score, score_far
from glray.train.execution import CPU_MOST_TOKENS, execution
from glray.train.export import latest_model, trained_len

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
    far_context: bool = False
    """Also score what context further back is worth, up to the longest length trained."""
    bos: bool = False
    """Begin each window with what the tokenizer of a folder prepends to a text, in place of its
    first tokens, as llama.cpp's perplexity does; a run is trained without."""


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
    far_context: FarContext | None = None
    """With positions as trained, if the protocol asks for it."""
    prepended: str = ""
    """What the tokenizer of a folder prepends to a text. Only ``ScoringProtocol.bos`` does so."""


def score_model(directory: AnyPath, protocol: ScoringProtocol) -> Scores:
    """Score a run's latest checkpoint or the model of a ``transformers`` folder. Raises UserError.

    The targets are a fixed set for the longest of the lengths, so losses of two calls compare
    only if that is the same.
    """
    _check_lengths(protocol)
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))  # it knows of no quota
    ctx = WorkerContext(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with working(f"loading the model of {directory.name}"):
        trained = find_model(directory, ctx.device)
    seq_lens = sorted(set(protocol.seq_lens))
    scalings = {  # all of them before the first is scored: one may be invalid
        name: [json.dumps(_rope_parameters(name, trained, seq_len)) for seq_len in seq_lens]
        for name in protocol.positions
    }
    with working("reading documents to score"):
        targets = _targets(trained, protocol)
    begin_with = _begin_with(trained, protocol)

    def in_windows(windows: Windows, first_place: int = 0) -> Scored:
        return score(
            trained.model,
            targets,
            windows,
            ctx,
            rows=trained.rows_at_once(windows.seq_len),
            precision=trained.precision,
            first_place=first_place,
            begin_with=begin_with,
        )

    @cache  # at lengths that were trained all scalings are one
    def scored(seq_len: int, rope: str) -> dict[str, Any]:
        place_positions(trained.model.network, json.loads(rope))
        found = in_windows(Windows.over(targets.longest, seq_len, protocol.stride))
        if not math.isfinite(found.loss):
            raise UserError(
                f"{directory}: the loss at {seq_len:,} is {found.loss}: the weights or positions "
                "are broken, and no loss would mean anything; score another checkpoint"
            )
        return found.record().model_dump()

    distinct = {pair for ropes in scalings.values() for pair in zip(seq_lens, ropes, strict=True)}
    passes = [Windows.over(targets.longest, n, protocol.stride) for n, _ in distinct]
    if protocol.far_context:
        far = far_windows(targets.longest, trained.trained_len)[1]
        passes += [Windows.by_half(targets.longest, n) for n in far]
    far_context = None
    num_tokens = sum(each.num_tokens for each in passes) * len(targets.tokens)
    with working(f"scoring {directory.name}", num_tokens):
        by_positions = {
            name: [scored(seq_len, rope) for seq_len, rope in zip(seq_lens, ropes, strict=True)]
            for name, ropes in scalings.items()
        }
        if protocol.far_context:
            place_positions(trained.model.network, trained.rope_parameters)
            far_context = score_far(targets, trained.trained_len, in_windows)
    run, corpus = trained.run, trained.corpus
    usual = heldout_targets(corpus, run.spec.evaluation) if run and corpus else None
    own = usual is not None and usual.sha256 == targets.sha256
    return Scores(
        trained.step,
        trained.trained_len,
        targets,
        own,
        by_positions,
        far_context,
        " ".join(str(trained.tokenizer.id_to_token(token)) for token in trained.prepended),
    )


def _check_lengths(protocol: ScoringProtocol) -> None:
    longest = max(protocol.seq_lens)
    for seq_len in protocol.seq_lens:
        if seq_len < 1:
            raise UserError(f"seq_lens: {seq_len} is not a length; give 1 or more")
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


def _targets(trained: "TrainedModel", protocol: ScoringProtocol) -> HeldoutTargets:
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


def _begin_with(trained: "TrainedModel", protocol: ScoringProtocol) -> tuple[int, ...]:
    if not protocol.bos:
        return ()
    if not trained.prepended:
        whose = "its tokenizer prepends none" if trained.run is None else "a run trains without"
        raise UserError(
            f"bos: {trained.directory} has no token to begin a window with: {whose}; leave it out"
        )
    shortest, num_prepended = min(protocol.seq_lens), len(trained.prepended)
    if shortest <= num_prepended:
        raise UserError(
            f"bos: a window of {shortest} would hold no text, as the number of tokens that the "
            f"tokenizer prepends is {num_prepended}; score longer windows"
        )
    return trained.prepended


def _rope_parameters(name: str, trained: "TrainedModel", seq_len: int) -> dict[str, Any]:
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


# ---- what can be scored


@dataclass(frozen=True)
class TrainedModel:
    """A model, and what one has to know of its training to score it."""

    directory: AnyPath
    """Of the run, or the folder."""
    model: NextTokenLoss
    rope_parameters: dict[str, Any]
    """Where its windows were placed last, in ``transformers``' words."""
    scaled_by: str | None
    """What has scaled these positions; None if they are those that ``config`` declares."""
    config: PreTrainedConfig
    trained_len: int
    """The longest length trained with these positions, in tokens; of a folder, what its config says
    of that."""
    tokenizer: Tokenizer
    precision: Precision
    rows_at_once: Callable[[int], int]
    """Windows of a length that go through the model at once."""
    prepended: tuple[int, ...] = ()
    """What the tokenizer of a folder prepends to a text, as its model may have been trained."""
    run: Run | None = None
    corpus: PreparedCorpus | None = None
    """The run's."""
    step: int | None = None
    """Of the run's checkpoint."""


def find_model(directory: AnyPath, device: torch.device) -> TrainedModel:
    """The latest model of a run's directory, else that of a folder. Raises UserError."""
    if (directory / "run.json").exists():
        return model_of_run(Run.open(directory), device)
    if (directory / "config.json").exists():
        return model_of_folder(directory, device)
    raise UserError(
        f"{directory}: no model to score, it has neither run.json nor config.json; give a run's "
        "directory, such as runs/quickstart/growlength-seed0, or a folder that transformers loads"
    )


def model_of_run(run: Run, device: torch.device) -> TrainedModel:
    """The model of the run's latest checkpoint. Raises UserError."""
    model, state = latest_model(run, device)
    stage = run.plan.stage_index(state.step - 1)
    executed = execution(run.spec, WorkerContext(device=device))
    corpus = run_corpus(run)
    config = config_of(run.manifest.architecture, f"{run.directory / 'run.json'}")
    rope = run.manifest.rope_parameters[stage]
    return TrainedModel(
        directory=run.directory,
        model=model,
        rope_parameters=rope,
        scaled_by=None if rope == config.rope_parameters else run.positions.kind,
        config=config,
        trained_len=trained_len(run, state.step),
        tokenizer=_tokenizer(corpus.vocabulary.tokenizer_path),
        precision=run.spec.precision,
        rows_at_once=executed.rows_at_once,
        run=run,
        corpus=corpus,
        step=state.step,
    )


def model_of_folder(path: AnyPath, device: torch.device) -> TrainedModel:
    """The model of a ``transformers`` folder with its ``tokenizer.json``, in float32. Raises
    UserError."""
    with local_copy(path) as here:
        folder = read_pretrained(str(here))
        tokenizer = _tokenizer(path / "tokenizer.json")
        longest = folder.config.max_position_embeddings
        config = model_config(  # no text is generated, so no token has to end one
            folder, vocab_size=vocab_size(tokenizer), eos_id=0, max_seq_len=longest
        )
        network = load_pretrained(folder, config, device)
    rope_type = config.rope_parameters["rope_type"]
    return TrainedModel(
        directory=path,
        model=NextTokenLoss(network),
        rope_parameters=config.rope_parameters,
        scaled_by=None if rope_type == "default" else rope_type,
        config=config,
        trained_len=longest,
        tokenizer=tokenizer,
        precision="float32",
        rows_at_once=lambda seq_len: max(1, CPU_MOST_TOKENS // seq_len),
        prepended=tuple(prepended_ids(tokenizer)),
    )


def _tokenizer(file: AnyPath) -> Tokenizer:
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: text could not be tokenized; put the model's there"
        )
    return parse_tokenizer(file.read_bytes(), str(file))
