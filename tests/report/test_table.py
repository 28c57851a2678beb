from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from glray.report.render import terminal
from glray.report.sheets import Sheet, summary
from glray.run.run import open_runs
from tests.report.written import write_run


def rendered(parts: Iterable[Sheet | str]) -> str:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(*parts))
    return console.export_text()


def rows_of(text: str, name: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split()[:1] == [name]]


def test_each_run_has_its_figures_and_its_losses(pipeline: Path) -> None:
    text = rendered(summary(open_runs([pipeline])))

    assert rows_of(text, "grow") == [
        ["grow", "4-8", "15", "480", "20.0", "20.0"],
        ["grow", "4.600", "4.450", "4.500*", "1.113"],  # 4.45 / 4 bits per byte at 8 tokens
    ]
    assert rows_of(text, "fixed4")[1] == ["fixed4", "4.500", "4.670*", "6.500*", "1.167"]


def test_tables_with_long_names_many_seeds_and_eight_lengths_keep_within_80_columns(
    tmp_path: Path,
) -> None:
    losses = {2**power: 10.0 for power in range(2, 10)}
    for seed in (0, 11):
        write_run(tmp_path / "toy", "growlength-slow", [(4, 10), (8, 5)] * 4, losses, seed=seed)

    text = rendered(summary(open_runs([tmp_path / "toy"])))

    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("10.000") == 2 * 8
    assert "…" not in text


def test_an_unfinished_run_shows_its_steps_and_its_latest_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {4: 4.6, 8: 5.0}, steps_done=12)

    text = rendered(summary(open_runs([tmp_path / "toy"])))

    assert rows_of(text, "grow")[0] == ["grow", "4-8", "12/15", "384", "14.0", "14.0"]
    assert rows_of(text, "grow")[1][1:3] == ["5.600", "6.000"]
    assert "(step 10)" in text
