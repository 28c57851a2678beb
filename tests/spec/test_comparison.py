"""Comparisons from files, and what a person gets to read when one is wrong."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from glray.errors import UserError
from glray.spec import (
    ArmSpec,
    ClaimSpec,
    ComparedArm,
    ComparisonSpec,
    ContextSpec,
    RateGrid,
    StageSpec,
    faster,
    load_pipeline,
    lower,
    same,
)
from glray.spec.loading import describe, load_comparison

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.py"
PAPER = Path(__file__).parents[2] / "pipelines" / "paper.py"


def compared(arm: str = "growlength", label: str | None = None, **fields: object) -> ComparedArm:
    pipeline = load_pipeline(QUICKSTART).derive(**fields)
    return ComparedArm(pipeline=pipeline, arm=arm, label=label or arm)


def wrong(**fields: object) -> str:
    """The one line that a comparison with ``fields`` is refused with."""
    arms = (compared(), compared("llm1024"))
    with pytest.raises(ValidationError) as refused:
        ComparisonSpec.model_validate({"name": "c", "title": "t", "arms": arms} | fields)
    return describe(refused.value)


def test_pipelines_come_once_and_with_the_compared_arms_alone() -> None:
    arms = (compared(), compared("llm128"), compared("growlength", "other", name="other"))
    spec = ComparisonSpec(name="c", title="t", arms=arms)
    assert [(p.name, p.only) for p in spec.pipelines] == [
        ("quickstart", ("growlength", "llm128")),
        ("other", ("growlength",)),
    ]
    # llm128 alone would be cut from chunks of 128, and nothing else could join its calibration.
    alone = ComparisonSpec(name="c", title="t", arms=(compared("llm128"),)).pipelines[0]
    assert [arm.name for arm in alone.trained_arms] == ["llm128"]
    assert alone.chunk_tokens == 1024
    assert alone.all_seq_lens == (128, 256, 512, 1024)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"arms": (compared(), compared())},
            ("2 arms have the label 'growlength'", "rename one of them"),
        ),
        ({"arms": (compared("nosuch", "x"),)}, ("'nosuch'", "growlength, llm1024, llm128")),
        (
            {"arms": (compared(), compared("llm1024", tokens_per_batch=8192))},
            ("two different pipelines have the name 'quickstart'", "rename one"),
        ),
        (
            {"arms": (compared(), compared("llm1024", name="b", seeds=(0, 1)))},
            ("'b' has seeds (0, 1)", "'quickstart' has (0,)"),
        ),
        (
            {"arms": (compared(), compared("llm1024", name="b", compute={"storage": "/b"}))},
            ("'b' has compute.storage '/b'", "'quickstart' has 'runs'"),
        ),
        (
            {"claims": (ClaimSpec(says="s", arm="growlength", against="llm4096"),)},
            ("no arm has the label 'llm4096'", "known: growlength, llm1024"),
        ),
        (
            {"claims": (ClaimSpec(says="s", arm="growlength", against="growlength"),)},
            ("'growlength' is compared with itself",),
        ),
        (
            {
                "claims": (
                    ClaimSpec(
                        says="s", arm="growlength", against="llm1024", measure="long_loss", at=512
                    ),
                ),
                "context": ContextSpec(seq_lens=(1024, 2048), num_tokens=4096, stride=64),
            },
            ("at 512", "1024, 2048", "add it"),
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    message = wrong(**fields)
    for word in words:
        assert word in message


# ---- peak rates


RATES = RateGrid(lrs=(1.5e-3, 3e-3, 6e-3, 1.2e-2))


@pytest.mark.parametrize(
    ("best", "beyond"), [(1.5e-3, 7.5e-4), (3e-3, None), (6e-3, None), (1.2e-2, 2.4e-2)]
)
def test_an_end_of_the_grid_goes_on_by_its_ratio(best: float, beyond: float | None) -> None:
    assert RATES.beyond(best) == beyond


def test_a_rate_beyond_the_grid_has_few_digits() -> None:
    assert RateGrid(lrs=(3e-3, 1e-2)).beyond(1e-2) == 0.0333333


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lrs": (1e-3,)}, "lrs: Tuple should have at least 2 items"),
        ({"lrs": (1e-3, 3e-3, 2e-3)}, "lrs lists 0.002 after 0.003, but rates must ascend"),
        ({"lrs": (1e-3, 1e-3)}, "lrs lists 0.001 after 0.001"),
        ({"lrs": (1e-3, 1e300)}, "lrs ends with 1e+300, beyond which inf would be tried"),
        ({"lrs": (1e-3, 1.0000001e-3)}, "lrs ends with 0.001, beyond which 0.001 would be tried"),
        ({"lrs": (0, 1e-3)}, "lrs.0: Input should be greater than 0"),
        ({"lrs": (1e-3, 2e-3), "seed": -1}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_a_grid_that_is_none_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RateGrid(**fields)
    assert describe(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rates": RATES.derive(seed=0)}, ("rates.seed 0 is one of the seeds (0,)", "another")),
        (
            {"arms": (compared(evaluation={"seq_lens": (128, 256)}),), "rates": RATES},
            ("'growlength' is trained up to 1024", "evaluated: 128, 256", "add it"),
        ),
        (
            {"arms": (compared(name="n" * 78),), "rates": RATES},
            ("name", "at most 80 characters"),
        ),
    ],
)
def test_rates_that_could_not_be_tuned_are_refused(
    fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = wrong(**fields)
    for word in words:
        assert word in message


def test_tuned_arms_lie_in_a_pipeline_of_their_own() -> None:
    arms = (compared(), compared("llm1024"), compared("growlength", "other", name="other"))
    claim = lower("growlength", "llm1024")
    spec = ComparisonSpec(name="c", title="t", arms=arms, claims=(claim,), rates=RATES)
    tuned = spec.at_rates({"growlength": 6e-3, "llm1024": 3e-3, "other": 6e-3})
    assert tuned.claims == (claim,)
    assert [(arm.label, arm.pipeline.name, arm.arm, arm.spec.lr) for arm in tuned.arms] == [
        ("growlength", "quickstart-rates", "growlength-lr6e-3", 6e-3),
        ("llm1024", "quickstart-rates", "llm1024-lr3e-3", 3e-3),
        ("other", "other-rates", "growlength-lr6e-3", 6e-3),
    ]
    assert [(p.name, p.only, p.seeds) for p in tuned.pipelines] == [
        ("quickstart-rates", ("growlength-lr6e-3", "llm1024-lr3e-3"), (0,)),
        ("other-rates", ("growlength-lr6e-3",), (0,)),
    ]
    # All else is the pipeline's own, so that one calibration and the same chunks serve every rate.
    for pipeline, its in zip(tuned.pipelines, (arms[0].pipeline, arms[2].pipeline), strict=True):
        assert pipeline.all_seq_lens == its.all_seq_lens
        assert pipeline.arms[:3] == its.arms
        assert pipeline.derive(name=its.name, arms=its.arms, only=None) == its


def test_the_pilot_is_each_arm_at_each_rate_under_its_own_seed_without_a_guard() -> None:
    guarded = compared(evaluation={"max_rise": 0.1})
    spec = ComparisonSpec(name="c", title="t", arms=(guarded,), rates=RATES)
    pilot = spec.pilot({"growlength": (3e-3, 6e-3)})
    assert pilot.seeds == (100,)
    assert [arm.label for arm in pilot.arms] == ["growlength-lr3e-3", "growlength-lr6e-3"]
    assert [p.only for p in pilot.pipelines] == [("growlength-lr3e-3", "growlength-lr6e-3")]
    assert pilot.pipelines[0].evaluation.max_rise is None
    assert spec.at_rates({"growlength": 3e-3}).pipelines[0].evaluation.max_rise == 0.1


def test_overrides_of_the_rates_are_the_comparisons(tmp_path: Path) -> None:
    path = tmp_path / "rates.py"
    path.write_text(
        "from glray.spec import ComparisonSpec, RateGrid, load_pipeline\n"
        "def both():\n"
        f"    arms = load_pipeline({str(QUICKSTART)!r})['growlength', 'llm1024']\n"
        "    rates = RateGrid(lrs=(3e-3, 6e-3))\n"
        "    return ComparisonSpec(name='both', title='t', arms=arms, rates=rates)\n"
    )
    spec = load_comparison(f"{path}:both", ["rates.lrs=[1e-3, 2e-3]", "rates.seed=7"])
    assert spec.rates == RateGrid(lrs=(1e-3, 2e-3), seed=7)
    assert load_comparison(f"{path}:both", ["rates=null"]).rates is None


# ---- from files


def test_overrides_and_seeds_reach_every_pipeline() -> None:
    spec = load_comparison(f"{PAPER}:mini.figure3", ["budget.seconds=7"], num_seeds=4)
    assert len(spec.pipelines) == 3
    for pipeline in spec.pipelines:
        assert pipeline.budget.seconds == 7
        assert pipeline.seeds == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budget.tokens=5", ("llm128: budget: budget.tokens is 5", "set exactly one")),
        ("name=x", ("--set name=x", "compute.storage")),
        ("context.stride=4", ("context.stride", "has no fields")),
    ],
)
def test_a_wrong_override_is_said_once(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        load_comparison(f"{PAPER}:mini.figure1", [override])
    for word in words:
        assert word in str(refused.value)
    assert len(str(refused.value)) < 250


def test_a_pipeline_by_the_name_of_its_function(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(
        "class Family:\n"
        "    def small(self):\n"
        f"        from glray.spec import load_pipeline\n"
        f"        return load_pipeline({str(QUICKSTART)!r}, ['name=small'])\n"
        "family = Family()\n"
        "small = family.small\n"
    )
    assert load_pipeline(f"{path}:small").name == "small"
    assert load_pipeline(f"{path}:family.small").name == "small"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":nosuch", ("defines no function nosuch()",)),
        (":mini.nosuch", ("defines no function mini.nosuch()",)),
        (":", ("defines no function pipeline()",)),
        (":mini.figure1", ("mini.figure1() returned ComparisonSpec, not a PipelineSpec",)),
        ("", ("defines no function pipeline()",)),
    ],
)
def test_what_a_file_does_not_have_is_said(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        load_pipeline(f"{PAPER}{name}")
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("reference", "word"),
    [
        (str(PAPER), "write it as FILE.py:NAME"),
        (f"{PAPER}:mini.equal_time", "not a ComparisonSpec"),
        ("nosuch.py:mini.figure1", "no such pipeline file"),
    ],
)
def test_what_is_no_comparison_is_said(reference: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load_comparison(reference)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"measure": "jump", "arm": "growlength", "against": "llm1024"}, ("never grows",)),
        ({"measure": "jump", "arm": "unmarked", "against": "growlength"}, ("mark_end=False",)),
        (
            {"measure": "jump", "arm": "odd", "against": "growlength"},
            ("grows over 128, 256, 512, 1024 tokens", "longest evaluated length 512"),
        ),
        ({"measure": "seconds", "at": 128}, ("has no length", "remove at=128")),
        ({"at": 96}, ("at 96 tokens", "128, 256, 512, 1024, 2048", "evaluation.seq_lens")),
        ({"measure": "long_loss"}, ("give at=",)),
        ({"at": 2048}, ("trained only up to 1024", "at 2048", "leave at= out")),
    ],
)
def test_a_claim_of_what_is_not_measured_is_refused(
    claim: dict[str, Any], words: tuple[str, ...]
) -> None:
    fields = {"says": "s", "arm": "growlength", "against": "llm1024"} | claim
    stages = (StageSpec(seq_len=128, mark_end=False), StageSpec(seq_len=1024))
    quickstart = load_pipeline(QUICKSTART).arms
    unmarked = [*quickstart, ArmSpec(name="unmarked", stages=stages)]
    others = [
        compared("unmarked", arms=unmarked, name="other"),
        compared("growlength", "odd", name="odd", evaluation={"seq_lens": (128, 512)}),
    ]
    arms = (compared(), compared("llm1024"), *others)
    message = wrong(arms=arms, claims=(ClaimSpec(**fields),))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"seq_lens": (0, 1024)}, "has 0"),
        ({"seq_lens": (-4, 1024)}, "has -4"),
        ({"seq_lens": (96, 1024)}, "has 96"),
        ({"num_tokens": 512}, "512 is less than one window"),
        ({"stride": 2048}, "2048 is more than the longest"),
    ],
)
def test_a_context_that_cannot_be_scored_is_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ContextSpec.model_validate(
            {"seq_lens": (128, 1024), "num_tokens": 4096, "stride": 64} | fields
        )
    assert word in describe(refused.value)


def test_overrides_of_the_context_are_the_comparisons() -> None:
    spec = load_comparison(f"{PAPER}:full.figure4", ["context.num_tokens=8192"])
    assert spec.context is not None
    assert spec.context.num_tokens == 8192


# ---- sentences and labels


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (lower("a", "b", at=1024), "a has a lower held-out loss than b at 1,024 tokens"),
        (lower("a", "b"), "a has a lower held-out loss than b, each at its own length"),
        (
            lower("a", "b", at=4096, measure="long_loss"),
            "a has a lower loss than b on long documents at 4,096 tokens",
        ),
        (
            lower("a", "b", measure="jump"),
            "a has a lower jump in held-out loss than b at stage boundaries",
        ),
        (faster("a", "b"), "a takes less training time than b"),
        (
            same("a", "b", within=0.02, at=128),
            "a has the same held-out loss as b at 128 tokens, within 0.02 nats per token",
        ),
        (
            same("a", "b", within=0.05, measure="seconds"),
            "a takes the same training time as b, within 5.0%",
        ),
        (
            same("a", "b", within=0.5, at=8, measure="long_loss"),
            "a has the same loss as b on long documents at 8 tokens, within 0.5 nats per token",
        ),
        (
            same("a", "b", within=0.5, measure="jump"),
            "a has the same jump in held-out loss as b at stage boundaries, within 0.5 nats per "
            "token",
        ),
        (lower("a", "b", says="a is better"), "a is better"),
        (same("a", "b", within=1, says="a is as good"), "a is as good"),
        (faster("a", "b", says="a is quicker"), "a is quicker"),
        (ClaimSpec(arm="a", against="b"), lower("a", "b").says),
    ],
)
def test_a_claim_writes_its_own_sentence(claim: ClaimSpec, says: str) -> None:
    assert claim.says == says
    assert ClaimSpec.model_validate(claim.model_dump()) == claim


def test_a_derived_claim_writes_its_sentence_again_unless_it_was_given() -> None:
    assert lower("a", "b").derive(at=8) == lower("a", "b", at=8)
    assert lower("a", "b", says="s").derive(at=8).says == "s"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"arm": "a", "against": "b", "says": ""}, "says: String should have at least 1"),
        ({"arm": "a"}, "against: Field required"),
        ({"arm": "a", "against": "b", "within": 0}, "within: Input should be greater than 0"),
    ],
)
def test_a_wrong_claim_is_one_problem(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as error:
        ClaimSpec(**fields)
    assert describe(error.value).startswith(line)
    assert ";" not in describe(error.value)


def test_arms_of_a_pipeline_are_compared_under_their_own_names() -> None:
    pipeline = load_pipeline(QUICKSTART)
    both = pipeline["llm128", "growlength"]
    assert both == (
        ComparedArm(pipeline=pipeline, arm="llm128", label="llm128"),
        ComparedArm(pipeline=pipeline, arm="growlength", label="growlength"),
    )
    assert pipeline["llm128"] == both[:1]
    assert "pipeline 'quickstart' has no arm 'nosuch'" in wrong(arms=pipeline["nosuch"])
