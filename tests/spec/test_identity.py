"""Every field of the spec, with the fingerprint that it belongs to."""

from typing import Any

import pytest
from pydantic import BaseModel

from glray.spec import (
    ArmSpec,
    ArrowCorpus,
    BaseFrequencies,
    BpeTokenizer,
    BudgetSpec,
    CalibrationSpec,
    ComputeSpec,
    CosineSchedule,
    EvaluationSpec,
    Extrapolation,
    Fork,
    GPTNeoXModel,
    Interpolation,
    JsonlCorpus,
    LinearSchedule,
    LlamaModel,
    MixtureCorpus,
    NtkAware,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
    PositionsSpec,
    SearchSpec,
    SourceSpec,
    StableDecaySchedule,
    StageSpec,
    StdlibCorpus,
    TextCorpus,
    TokenizerFile,
    Yarn,
)
from glray.spec.identity import differences, fingerprint, tokens_identity, training_identity

# path: (fingerprint it belongs to, another value). "neither" may change between two calls.
# Where the text lies and in which kind of file is in neither: its documents are, by their hash. So
# is the tokenizer: what is declared of it counts through the tokenizer.json that it gives. And the
# folder that runs start from counts by its content, a run that they go on from by its own identity.
FIELDS = {
    "name": ("neither", "other"),
    "corpus.kind": ("neither", None),
    "corpus.paths": ("neither", ("other.txt",)),
    "corpus.column": ("neither", "body"),
    "corpus.sources.0.name": ("neither", "other"),
    "corpus.sources.0.weight": ("training", 2),
    "corpus.sources.0.corpus.kind": ("neither", None),
    "corpus.sources.0.corpus.paths": ("neither", ("other.txt",)),
    "corpus.sources.0.corpus.column": ("neither", "body"),
    "heldout_fraction": ("tokens", 0.2),
    "tokenizer.kind": ("neither", None),
    "tokenizer.vocab_size": ("neither", 999),
    "tokenizer.train_megabytes": ("neither", 3),
    "tokenizer.path": ("neither", "other.json"),
    "tokenizer.eos_token": ("neither", "</s>"),
    "model.kind": ("training", None),
    "model.num_layers": ("training", 2),
    "model.hidden_size": ("training", 64),
    "model.num_heads": ("training", 4),
    "model.intermediate_size": ("training", 128),
    "model.rotary_fraction": ("training", 0.5),
    "model.rope_theta": ("training", 500.0),
    "model.vocab_size": ("training", 1024),
    "model.num_kv_heads": ("training", 1),
    "model.tie_embeddings": ("training", True),
    "init": ("neither", "other"),
    "start.run": ("neither", "other"),
    "start.at": ("neither", 7),
    "attention": ("training", "document"),
    "arms.0.name": ("neither", "other"),
    "arms.0.stages.0.seq_len": ("training", 64),
    "arms.0.stages.0.ratio": ("training", 3.0),
    "arms.0.stages.0.tokens_per_batch": ("training", 2048),
    "arms.0.stages.0.lr_factor": ("training", 0.5),
    "arms.0.stages.0.weights": ("training", {"one": 2}),
    "arms.0.stages.0.mark_end": ("neither", False),
    "arms.0.positions.kind": ("training", None),
    "arms.0.positions.relative_to": ("training", "previous"),
    "arms.0.positions.thetas": ("training", (500.0, 600.0)),
    "arms.0.lr": ("training", 0.5),
    "arms.0.rewarm_steps": ("training", 7),
    "only": ("neither", ("arm",)),
    "budget.tokens": ("training", 123_456),
    "budget.seconds": ("training", 7.0),
    "ratios_in": ("training", "tokens"),
    "tokens_per_batch": ("training", 2048),
    "chunk_len": ("training", 512),
    "optimizer.lr": ("training", 0.5),
    "optimizer.betas": ("training", (0.8, 0.9)),
    "optimizer.eps": ("training", 1e-6),
    "optimizer.weight_decay": ("training", 0.0),
    "optimizer.max_grad_norm": ("training", 2.0),
    "optimizer.schedule.kind": ("training", None),
    "optimizer.schedule.warmup": ("training", 0.3),
    "optimizer.schedule.final": ("training", 0.3),
    "optimizer.schedule.decay": ("training", 0.3),
    "optimizer.rewarm_steps": ("training", 7),
    "precision": ("training", "bfloat16"),
    "seeds": ("training", (1,)),
    "evaluation.seq_lens": ("neither", (64, 128)),
    "evaluation.num_tokens": ("neither", 4096),
    "evaluation.every_tokens": ("neither", 4096),
    "evaluation.max_rise": ("neither", 0.5),
    "evaluation.stage_ends": ("neither", False),
    "compute.num_workers": ("neither", 3),
    "compute.groups": ("neither", 3),
    "compute.cpus_per_worker": ("neither", 3),
    "compute.use_gpu": ("neither", True),
    "compute.storage": ("neither", "/elsewhere"),
    "compute.parallelism": ("neither", "fsdp"),
    "compute.activation_checkpointing": ("neither", True),
    "compute.compile": ("neither", True),
    "compute.deterministic": ("neither", True),
    "compute.micro_batch_tokens": ("neither", 512),
    "compute.checkpoint_every_seconds": ("neither", 5),
    "compute.checkpoint_every_tokens": ("neither", 5),
    "compute.keep_checkpoints": ("neither", "all"),
    "compute.calibrate": ("neither", True),
    "compute.log_every_steps": ("neither", 5),
    "compute.wandb_project": ("neither", "other"),
    "compute.wait_seconds": ("neither", 5),
    "search.arm": ("neither", None),
    "search.lengths": ("neither", ((128, 256), (256,))),
    "search.grid": ("neither", 10),
    "search.least": ("neither", 0.1),
    "search.shares": ("neither", {128: (0.2, 0.5)}),
    "search.last": ("neither", (0.3, 1.0)),
    "search.lrs": ("neither", (1e-3, 2e-3)),
    "search.rewarm_steps": ("neither", (0, 10)),
    "search.positions": ("neither", (Extrapolation(), Yarn())),
    "search.method": ("neither", "random"),
    "search.num_trials": ("neither", 5),
    "search.seed": ("neither", 5),
    "search.max_behind": ("neither", 0.1),
    "search.confirm": ("neither", 3),
    "search.confirm_seeds": ("neither", 5),
    "calibration.step_microseconds": ("training", {128: 11, 256: 22, 64: 5}),
}

SOURCES = (StdlibCorpus, TextCorpus, JsonlCorpus, ParquetCorpus, ArrowCorpus)
UNIONS = {
    "corpus": (*SOURCES, MixtureCorpus),
    "corpus.sources.0.corpus": SOURCES,
    "tokenizer": (BpeTokenizer, TokenizerFile),
    "model": (GPTNeoXModel, LlamaModel),
    "arms.0.positions": (Extrapolation, Interpolation, NtkAware, BaseFrequencies, Yarn),
    "optimizer.schedule": (CosineSchedule, LinearSchedule, StableDecaySchedule),
}
NESTED: dict[str, type[BaseModel]] = {
    "corpus.sources.0": SourceSpec,
    "arms.0": ArmSpec,
    "arms.0.stages.0": StageSpec,
    "start": Fork,
    "budget": BudgetSpec,
    "optimizer": OptimizerSpec,
    "evaluation": EvaluationSpec,
    "compute": ComputeSpec,
    "search": SearchSpec,
    "calibration": CalibrationSpec,
}
LISTS = {"corpus.sources": "corpus.sources.0", "arms": "arms.0", "arms.0.stages": "arms.0.stages.0"}


def leaf_paths(model: type[BaseModel], prefix: str = "") -> set[str]:
    paths: set[str] = set()
    for name in model.model_fields:
        path = f"{prefix}{name}"
        path = LISTS.get(path, path)
        if path in UNIONS:
            paths |= {leaf for cls in UNIONS[path] for leaf in leaf_paths(cls, f"{path}.")}
        elif path in NESTED:
            paths |= leaf_paths(NESTED[path], f"{path}.")
        else:
            paths.add(path)
    return paths


def test_every_field_is_listed_with_its_fingerprint() -> None:
    assert leaf_paths(PipelineSpec) == set(FIELDS)


POSITIONS: dict[str, PositionsSpec] = {
    "arms.0.positions.relative_to": Yarn(),
    "arms.0.positions.thetas": BaseFrequencies(thetas=(100.0, 200.0)),
}


def base(path: str) -> dict[str, Any]:
    """A valid declaration in which ``path`` exists."""
    lines = JsonlCorpus(paths=("a.jsonl",))
    corpus: JsonlCorpus | MixtureCorpus = lines
    if path.startswith("corpus.sources") or path.endswith(".weights"):
        corpus = MixtureCorpus(sources=(SourceSpec(name="one", weight=1, corpus=lines),))
    of_llama = path in ("model.num_kv_heads", "model.tie_embeddings")
    model = LlamaModel if of_llama else GPTNeoXModel
    spec = PipelineSpec(
        name="identity",
        corpus=corpus,
        tokenizer=TokenizerFile(path="tokenizer.json")
        if path in ("tokenizer.path", "tokenizer.eos_token")
        else BpeTokenizer(vocab_size=512),
        model=None
        if path == "init" or path.startswith("start.")
        else model(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=64),
        init="folder" if path == "init" else None,
        start=Fork(run="parent") if path.startswith("start.") else None,
        arms=(
            ArmSpec(
                name="arm",
                stages=(StageSpec(seq_len=128), StageSpec(seq_len=256)),
                positions=POSITIONS.get(path, Extrapolation()),
            ),
        ),
        budget=BudgetSpec(tokens=10**6) if path == "budget.tokens" else BudgetSpec(seconds=60),
        ratios_in="seconds",
        tokens_per_batch=4096,
        chunk_len=256,
        optimizer=OptimizerSpec(
            lr=1e-3,
            schedule=StableDecaySchedule()
            if path == "optimizer.schedule.decay"
            else CosineSchedule(),
        ),
        evaluation=EvaluationSpec(seq_lens=(128,), num_tokens=128),
        calibration=CalibrationSpec(step_microseconds={64: 5, 128: 10, 256: 20}),
        search=SearchSpec(arm="arm") if path.startswith("search.") else None,
    )
    return spec.model_dump()


def fingerprints(declared: dict[str, Any]) -> tuple[str, str]:
    spec = PipelineSpec.model_validate(declared)
    tokens = fingerprint(
        tokens_identity(
            documents_sha256="d" * 64,
            heldout_fraction=spec.heldout_fraction,
            tokenizer_sha256="t" * 64,
            eos_id=0,
        )
    )
    # As PreparedCorpus.identity gives it, of token blocks that stay the same.
    sources = [{"fingerprint": "tokens", "weight": source.weight} for source in spec.sources]
    training = fingerprint(training_identity(spec, spec.arms[0], spec.seeds[0], sources))
    return tokens, training


@pytest.mark.parametrize("path", [p for p, (_, value) in FIELDS.items() if value is not None])
def test_a_field_changes_the_fingerprint_that_it_belongs_to(path: str) -> None:
    belongs, value = FIELDS[path]
    before = base(path)
    after = base(path)
    node: Any = after
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    assert node[last] != value
    node[last] = value
    changed = [a != b for a, b in zip(fingerprints(before), fingerprints(after), strict=True)]
    assert changed == [belongs == "tokens", belongs == "training"]


def test_another_kind_of_schedule_is_another_identity() -> None:
    schedule = base("")
    schedule["optimizer"]["schedule"] = LinearSchedule().model_dump()
    assert fingerprints(schedule)[1] != fingerprints(base(""))[1]


@pytest.mark.parametrize("kind", [Interpolation, NtkAware, Yarn])
def test_another_kind_of_positions_is_another_identity(
    kind: type[Interpolation | NtkAware | Yarn],
) -> None:
    positions = base("")
    positions["arms"][0]["positions"] = kind().model_dump()
    assert fingerprints(positions)[1] != fingerprints(base(""))[1]


def test_another_kind_of_model_is_another_identity() -> None:
    llama = base("")
    llama["model"] = base("model.num_kv_heads")["model"]
    assert fingerprints(llama)[1] != fingerprints(base(""))[1]


def test_a_pipeline_that_declares_nothing_for_its_stages_keeps_its_fingerprint() -> None:
    # As they were before stages could: runs that were trained then go on.
    assert fingerprints(base("")) == ("24717bbe2ce5ec12", "fe937eb9d88720b6")
    assert fingerprints(base("budget.tokens")) == ("24717bbe2ce5ec12", "9dad0b6814c5f5cc")


def own_stage(source: str = "one", **own: object) -> dict[str, Any]:
    """One source of this name, and a first stage that declares more."""
    declared = base("arms.0.stages.0.weights")
    declared["corpus"]["sources"][0]["name"] = source
    declared["arms"][0]["stages"] = [{"seq_len": 128, **own}, {"seq_len": 256}]
    return declared


def test_a_stage_that_declares_what_its_pipeline_has_is_the_same_run() -> None:
    same = own_stage(tokens_per_batch=4096, lr_factor=1, weights={"one": 1})
    assert fingerprints(same) == fingerprints(base(""))


def test_the_name_of_a_source_that_a_stage_weights_is_no_part_of_the_identity() -> None:
    one, other = own_stage(weights={"one": 2}), own_stage("other", weights={"other": 2})
    assert fingerprints(one) == fingerprints(other) != fingerprints(base(""))


def test_an_arms_own_rate_is_part_of_its_runs_identity_as_the_pipelines_would_be() -> None:
    own, pipelines, same = base(""), base(""), base("")
    own["arms"][0]["lr"] = 0.5
    pipelines["optimizer"]["lr"] = 0.5
    same["arms"][0]["lr"] = same["optimizer"]["lr"]
    assert fingerprints(own) == fingerprints(pipelines)
    assert fingerprints(same) == fingerprints(base(""))


def test_the_content_of_the_folder_that_runs_start_from_is_part_of_the_training_identity() -> None:
    spec = PipelineSpec.model_validate(base("init"))
    one, other = (training_identity(spec, spec.arms[0], 0, [], init_sha256=sha) for sha in "ab")
    assert fingerprint(one) != fingerprint(other)
    assert differences(one, other) == ['init: "a" → "b"']


def test_a_parent_counts_by_its_fingerprint_and_step() -> None:
    spec = PipelineSpec.model_validate(base("start.run"))
    parent: dict[str, object] = {"fingerprint": "ab" * 8, "step": 12}
    identity = training_identity(spec, spec.arms[0], 0, [], parent=parent)
    assert fingerprint(identity) == "42d3413d520c1354"
    other = training_identity(spec, spec.arms[0], 0, [], parent=parent | {"step": 13})
    assert differences(identity, other) == ["parent.step: 12 → 13"]


@pytest.mark.parametrize(
    "changed", ["documents_sha256", "heldout_fraction", "tokenizer_sha256", "eos_id"]
)
def test_documents_split_and_tokenizer_are_the_tokens_identity(changed: str) -> None:
    identity: dict[str, Any] = {
        "documents_sha256": "d" * 64,
        "heldout_fraction": 0.05,
        "tokenizer_sha256": "t" * 64,
        "eos_id": 0,
    }
    other = {"documents_sha256": "e" * 64, "heldout_fraction": 0.1, "tokenizer_sha256": "u" * 64}
    after = identity | {changed: (other | {"eos_id": 1})[changed]}
    assert tokens_identity(**after) != tokens_identity(**identity)


def test_the_order_of_sources_is_part_of_the_training_identity() -> None:
    spec = PipelineSpec.model_validate(base(""))
    two = [{"fingerprint": name, "weight": 1} for name in "ab"]
    one_way, other_way = (
        fingerprint(training_identity(spec, spec.arms[0], 0, tokens)) for tokens in (two, two[::-1])
    )
    assert one_way != other_way


def test_the_calibration_counts_only_where_seconds_decide_and_only_the_arms_lengths() -> None:
    declared = base("")
    more = base("")
    more["calibration"]["step_microseconds"][512] = 99
    assert fingerprints(more) == fingerprints(declared)
    for spec in (declared, more):
        spec["budget"] = {"tokens": 10**6}
        spec["ratios_in"] = "tokens"
    more["calibration"] = None
    assert fingerprints(more) == fingerprints(declared)


def test_differences_name_the_leaf_and_both_values() -> None:
    old = {"seed": 0, "optimizer": {"lr": 0.1, "eps": 1}}
    new = {"seed": 0, "optimizer": {"lr": 0.2, "eps": 1}}
    assert differences(old, new) == ["optimizer.lr: 0.1 → 0.2"]
