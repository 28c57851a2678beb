"""Specs as people write them: lengths for stages, numbers as text, and one spec from another."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    CosineSchedule,
    Extrapolation,
    Interpolation,
    LinearSchedule,
    OptimizerSpec,
    StableDecaySchedule,
    StageSpec,
    TokenizerFile,
    Yarn,
    fixed,
    grow,
    load_pipeline,
)
from glray.spec.loading import describe
from glray.spec.training import rate_text
from tests.tiny import arm, tiny_spec

QUICKSTART = "pipelines/quickstart.py"


# ---- stages


@pytest.mark.parametrize(
    ("written", "stages"),
    [
        ((128, 1024), [(128, 1.0), (1024, 1.0)]),
        ([128, 128], [(128, 1.0), (128, 1.0)]),
        ({128: 3, 1024: 1}, [(128, 3.0), (1024, 1.0)]),
        ({"128": 3, "1024": 0.5}, [(128, 3.0), (1024, 0.5)]),
        ([{"seq_len": 128, "ratio": 2}, 256], [(128, 2.0), (256, 1.0)]),
        ((StageSpec(seq_len=8, ratio=2.0), "16"), [(8, 2.0), (16, 1.0)]),
    ],
)
def test_stages_are_lengths_ratios_by_length_or_specs(
    written: Any,
    stages: list[tuple[int, float]],
) -> None:
    arm = ArmSpec(name="arm", stages=written)
    assert [(stage.seq_len, stage.ratio) for stage in arm.stages] == stages


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ((0,), r"stages\.0\.seq_len: Input should be greater than or equal to 1 \(it is 0\)"),
        ({128: 0}, r"stages\.0\.ratio: Input should be greater than 0 \(it is 0\)"),
        ((128, "long"), r"stages\.1\.seq_len: .*integer.*\(it is 'long'\)"),
        ((128, None), r"stages\.1: .*\(it is None\)"),
        ((), "stages: .*at least 1 item"),
        (128, r"stages: Input should be a valid tuple \(it is 128\)"),
    ],
)
def test_a_wrong_stage_is_named(written: Any, line: str) -> None:
    with pytest.raises(ValidationError) as error:
        ArmSpec(name="arm", stages=written)
    assert re.match(line, describe(error.value))


@pytest.mark.parametrize("text", ["{128: 3, 1024: 1}", '{"128": 3, "1024": 1}'])
def test_ratios_by_length_from_the_command_line(text: str) -> None:
    spec = load_pipeline(QUICKSTART, [f"arms.growlength.stages={text}"])
    assert spec.arm("growlength") == ArmSpec(
        name="growlength",
        stages=(StageSpec(seq_len=128, ratio=3.0), StageSpec(seq_len=1024, ratio=1.0)),
    )


def test_lengths_from_the_command_line() -> None:
    spec = load_pipeline(QUICKSTART, ["arms.growlength.stages=[128, 1024]"])
    assert spec.arm("growlength").seq_lens == (128, 1024)


def test_fixed_and_grow_are_arms() -> None:
    assert fixed(1024) == arm("llm1024", 1024)
    assert fixed(1024, name="long") == arm("long", 1024)
    assert grow(128, 256) == arm("growlength", 128, 256)
    assert grow(8, 16, name="a", positions=Yarn()) == arm("a", 8, 16, positions=Yarn())
    assert fixed(1024, lr=6e-3).lr == grow(128, 256, lr=6e-3).lr == 6e-3


@pytest.mark.parametrize(
    ("lr", "text"),
    [
        (6e-3, "6e-3"),
        (0.012, "1.2e-2"),
        (7.5e-4, "7.5e-4"),
        (0.1 + 0.2, "3.0000000000000004e-1"),
        (1.0, "1e0"),
        (20.0, "2e1"),
    ],
)
def test_a_rate_is_written_with_all_its_digits(lr: float, text: str) -> None:
    assert rate_text(lr) == text
    assert float(text) == lr


# ---- numbers


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        (1e9, 10**9),
        ("1e9", 10**9),
        (360_000_000, 360_000_000),
        ("360_000_000", 360_000_000),
        (0.36e9, 360_000_000),
        ("0.36e9", 360_000_000),
        ("1.5E6", 1_500_000),
    ],
)
def test_numbers_are_read_as_people_write_them(
    tmp_path: Path, written: float | str, tokens: int
) -> None:
    spec = tiny_spec(tmp_path, budget={"tokens": written})
    assert spec.budget.tokens == tokens
    assert isinstance(spec.budget.tokens, int)


@pytest.mark.parametrize(
    ("text", "tokens"), [("1e9", 10**9), ("360_000_000", 36 * 10**7), ("0.36e9", 36 * 10**7)]
)
def test_numbers_from_the_command_line(text: str, tokens: int) -> None:
    spec = load_pipeline(QUICKSTART, [f"budget={{tokens: {text}}}", "ratios_in=tokens"])
    assert spec.budget.tokens == tokens


@pytest.mark.parametrize("written", [0.5, "5e-1", 1e9 + 0.5])
def test_part_of_a_token_is_an_error(tmp_path: Path, written: float | str) -> None:
    with pytest.raises(ValidationError) as error:
        tiny_spec(tmp_path, budget={"tokens": written})
    assert "budget.tokens: Input should be a valid integer" in describe(error.value)
    assert "fractional part" in describe(error.value)


@pytest.mark.parametrize("written", ["many", "e", "1e999", "inf", "1e-400e"])
def test_a_number_that_is_none(tmp_path: Path, written: str) -> None:
    with pytest.raises(ValidationError, match=r"budget\.tokens"):
        tiny_spec(tmp_path, budget={"tokens": written})


def test_a_choice_of_a_number_or_a_word(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path).derive(compute={"micro_batch_tokens": "1e4"})
    assert spec.compute.micro_batch_tokens == 10_000
    auto = spec.derive(compute={"micro_batch_tokens": "auto"})
    assert auto.compute.micro_batch_tokens == "auto"
    with pytest.raises(ValidationError) as error:
        spec.derive(compute={"micro_batch_tokens": "most"})
    assert describe(error.value).startswith("compute.micro_batch_tokens: Input should be")


# ---- one spec from another


def test_mappings_merge_at_every_depth_and_the_rest_replaces(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, optimizer=OptimizerSpec(lr=1, schedule=CosineSchedule(final=0.5)))
    derived = spec.derive(
        name="other",
        compute={"groups": 1},
        budget={"tokens": None, "seconds": 5},
        optimizer={"schedule": {"warmup": 0.1}},
        arms=spec.arms[:1],
    )
    assert derived.name == "other"
    assert derived.compute == spec.compute.derive(groups=1)
    assert derived.compute.storage == str(tmp_path)
    assert (derived.budget.tokens, derived.budget.seconds) == (None, 5.0)
    assert derived.optimizer.lr == 1
    assert derived.optimizer.schedule == CosineSchedule(warmup=0.1, final=0.5)
    assert derived.arms == spec.arms[:1]
    assert derived.derive() == derived
    assert spec.name == "tiny"


def test_a_spec_replaces_what_was_there_as_does_another_kind(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, optimizer=OptimizerSpec(lr=1, schedule=CosineSchedule(final=0.5)))
    derived = spec.derive(optimizer=OptimizerSpec(lr=2))
    assert derived.optimizer == OptimizerSpec(lr=2)
    linear = spec.derive(optimizer={"schedule": {"kind": "linear"}})
    assert linear.optimizer == OptimizerSpec(lr=1, schedule=LinearSchedule())
    same = spec.derive(optimizer={"schedule": {"kind": "cosine", "warmup": 0.0}})
    assert same.optimizer.schedule == CosineSchedule(warmup=0.0, final=0.5)
    assert spec.derive(tokenizer={"vocab_size": 400}).tokenizer == BpeTokenizer(vocab_size=400)
    from_file = spec.derive(tokenizer={"kind": "file", "path": "t.json"})
    assert from_file.tokenizer == TokenizerFile(path="t.json")
    assert grow(8, 16, positions=Interpolation()).derive(positions={"kind": "yarn"}) == grow(
        8, 16, positions=Yarn()
    )
    assert grow(8, 16, positions=Yarn()).derive(positions=Extrapolation()) == grow(8, 16)


def test_a_mapping_declares_what_was_none(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    assert spec.search is None
    searched = spec.derive(search={"arm": "grow"})
    assert searched.search is not None
    assert searched.search.num_trials == 8
    calibrated = spec.derive(calibration={"step_microseconds": {8: 1}})
    again = calibrated.derive(calibration={"step_microseconds": {16: 1}})
    assert again.calibration is not None
    assert again.calibration.step_microseconds == {16: 1}
    assert again.derive(calibration=None) == spec


def test_what_a_search_would_drop_is_refused(tmp_path: Path) -> None:
    stages = [8, {"seq_len": 16, "tokens_per_batch": 128}]
    spec = tiny_spec(tmp_path, arms=[{"name": "grow", "stages": stages}], chunk_len=32)
    with pytest.raises(ValidationError, match=r"search.arm 'grow' has stages with their own"):
        spec.derive(search={"arm": "grow"})


def test_what_is_derived_is_validated(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    for changes, words in (
        ({"compute": {"gruops": 1}}, "compute.gruops: unknown key"),
        ({"nosuch": 1}, "nosuch: unknown key"),
        ({"budget": {"seconds": 5}}, "budget.tokens is 768 and budget.seconds is 5.0"),
        ({"tokens_per_batch": 65}, "tokens_per_batch 65 is not a multiple of chunk_len 32"),
        ({"model": {"num_heads": 3}}, "num_heads 3"),
        ({"model": {"kind": "llama"}}, "model.num_layers: Field required"),
        ({"optimizer": {"schedule": {"decay": 1}}}, "optimizer.schedule.decay: unknown key"),
    ):
        with pytest.raises(ValidationError) as error:
            spec.derive(**changes)
        assert words in describe(error.value)
    schedule = StableDecaySchedule(warmup=0.5)
    with pytest.raises(ValidationError, match=r"more than the whole budget"):
        schedule.derive(decay=0.6)


@pytest.mark.parametrize("seconds", [{"budget": {"seconds": 60}}, {"ratios_in": "seconds"}])
def test_seconds_and_a_number_of_workers_that_changes_are_refused(
    tmp_path: Path, seconds: dict[str, Any]
) -> None:
    elastic = {"compute": {"storage": str(tmp_path), "num_workers": (2, 4)}}
    tiny_spec(tmp_path, **elastic)  # nothing is in seconds
    with pytest.raises(ValidationError, match=r"compute\.num_workers \(2, 4\): seconds decide"):
        tiny_spec(tmp_path, **elastic, **seconds)


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"storage": "a\0b"}},
        {"corpus": {"kind": "text", "paths": ["fine", "a\0b"]}},
        {"tokenizer": {"kind": "file", "path": "a\0b"}},
    ],
)
def test_no_text_of_a_spec_has_a_nul_character(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"'a\\x00b' has a NUL character"):
        load_pipeline(QUICKSTART).derive(**changes)
