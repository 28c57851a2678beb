"""The commands as a person gives them: exit statuses, what they print, what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from glray.cli import main
from glray.data.blocks.snapshot import find_prepared
from glray.files import read_json
from glray.ray import train as ray_train
from glray.run.checkpoint import committed_checkpoints
from glray.spec.loading import load_pipeline
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from ..command import start_glray, status_of

PIPELINE = """
from glray.spec import *


def pipeline():
    return PipelineSpec(
        name="tiny",
        corpus=TextCorpus(paths=("text",)),
        heldout_fraction=0.2,
        tokenizer=BpeTokenizer(vocab_size=300),
        model=GPTNeoXModel(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32),
        arms=(
            ArmSpec(name="grow", stages=(16, 32)),
            ArmSpec(name="fixed32", stages=(32,)),
        ),
        budget=BudgetSpec(seconds=0.3),
        ratios_in="seconds",
        tokens_per_batch=128,
        optimizer=OptimizerSpec(lr=1e-2),
        evaluation=EvaluationSpec(seq_lens=(16, 32, 64), num_tokens=1024),
        compute=ComputeSpec(groups=1),
        search=SearchSpec(arm="grow", num_trials=2),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and its text: 60 documents of about a thousand bytes."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.py").write_text(PIPELINE)
    (folder / "text").mkdir()
    for document in range(60):
        words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(150))
        (folder / "text" / f"{document:02d}.txt").write_text(words)
    return folder


def persons_environment() -> dict[str, str]:
    """Without what the tests' own Ray has set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def glray(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "glray", *arguments],
        cwd=folder,
        env=persons_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], undrawn: None
) -> Command:
    """``glray`` within this process: most of a short command is a new Python and its imports."""

    def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["glray", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, printed.out, printed.err)

    return command


@pytest.fixture
def own_ray(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' Ray in place of the one that a command starts: a start is seconds of two cores. As
    there, one worker trains in the command's own process."""
    monkeypatch.setattr(ray_train, "is_own_cluster", lambda: True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    """The first ``glray run``, which trains; what comes after it needs its folder."""
    done = glray(folder, "run", "tiny.py")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


trained = pytest.mark.usefixtures("first")


def trials_of_tune() -> list[int]:
    """The processes that follow a run for Ray Tune."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (entry / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc.train"):
                found.append(int(entry.name))
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
def test_run_trains_evaluates_and_reports_every_arm(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.stderr == ""
    for arm in ("grow", "fixed32"):
        result = read_json(folder / "runs" / "tiny" / f"{arm}-seed0" / "result.json")
        assert 0 < result["calibrated_seconds"] <= 0.3
    page = (folder / "runs" / "tiny" / "report.html").read_text()
    assert "grow" in page
    assert "fixed32" in page


@pytest.mark.ray
@trained
@pytest.mark.parametrize(
    "pipeline", ["tiny.py", "runs/tiny/spec.yaml", "runs/tiny/grow-seed0/spec.yaml"]
)
def test_a_finished_pipeline_trains_nothing_again(
    folder: Path, here: Command, pipeline: str
) -> None:
    before = metrics(folder / "runs" / "tiny" / "grow-seed0")
    again = here(folder, "run", pipeline)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to train" in again.stdout
    assert "not applied" not in again.stdout
    assert metrics(folder / "runs" / "tiny" / "grow-seed0") == before


@pytest.mark.ray
@trained
def test_what_is_set_for_finished_runs_is_said_not_to_be_applied(
    folder: Path, here: Command
) -> None:
    changed = ("evaluation.seq_lens=[16,32]", "compute.log_every_steps=3", "compute.groups=null")
    again = here(folder, "run", "tiny.py", *(f"--set={field}" for field in changed))
    assert again.returncode == 0, again.stdout + again.stderr
    (line,) = [line for line in again.stdout.splitlines() if "not applied" in line]
    fields = "compute.groups, compute.log_every_steps, evaluation.seq_lens"
    assert line.startswith(f"not applied to runs that have ended: {fields}: they stay as they were")
    assert "nothing to train" in again.stdout


@pytest.mark.ray
@trained
def test_another_identity_under_the_same_name_is_refused(folder: Path, here: Command) -> None:
    before = metrics(folder / "runs" / "tiny" / "grow-seed0")
    other = here(folder, "run", "tiny.py", "--set", "optimizer.lr=0.5")
    assert other.returncode == 2
    assert "optimizer.lr: 0.01 → 0.5" in other.stderr
    assert metrics(folder / "runs" / "tiny" / "grow-seed0") == before


@pytest.mark.ray
@trained
def test_data_shows_windows_within_a_terminals_width(folder: Path, here: Command) -> None:
    looked = here(folder, "data", "tiny.py", "--step", "1", "--seq-len", "16", "--rows", "2")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "Step 1 at seq_len 16" in looked.stdout
    assert "word" in looked.stdout
    assert max(map(len, looked.stdout.splitlines())) <= 80


@pytest.mark.ray
@trained
def test_eval_export_and_report_take_a_finished_run(folder: Path, here: Command) -> None:
    grow = folder / "runs" / "tiny" / "grow-seed0"
    scored = here(folder, "eval", "runs/tiny/grow-seed0", "--seq-lens", "16,64")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "64" in scored.stdout

    exported = here(folder, "export", "runs/tiny/grow-seed0", "model")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        exported_file, own_file = folder / "model" / name, grow / "model" / name
        assert exported_file.read_bytes() == own_file.read_bytes()

    table = here(folder, "report", "runs/tiny", "--out", "again")
    assert table.returncode == 0, table.stdout + table.stderr
    assert (folder / "again" / "report.html").exists()


@pytest.mark.ray
@trained
def test_moved_runs_are_read_and_found_finished_without_their_text(
    folder: Path, here: Command, tmp_path: Path
) -> None:
    """In a copy, without the folder that it was copied from: nothing is looked for there."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(folder / "runs", home / "elsewhere")
    shutil.copy(folder / "tiny.py", home)
    away = folder.rename(folder.with_name("away"))
    try:
        for arguments in (
            ("eval", "elsewhere/tiny/grow-seed0", "--seq-lens", "16,32"),
            ("export", "elsewhere/tiny/grow-seed0", "model"),
            ("report", "elsewhere/tiny"),
            ("run", "elsewhere/tiny/spec.yaml"),
            ("data", "elsewhere/tiny/grow-seed0/spec.yaml"),
        ):
            done = here(home, *arguments)
            assert done.returncode == 0, done.stdout + done.stderr
            assert ("nothing to train" in done.stdout) is (arguments[0] == "run")
        gone = here(home, "run", "tiny.py", "--set", "compute.storage=elsewhere")
        assert gone.returncode == 2  # this text was never read here, and may be another
        assert f"{home}/text" in gone.stderr
        assert not folder.exists()
    finally:
        away.rename(folder)
    names = ["elsewhere", "model", "report", "tiny.py"]
    assert sorted(path.name for path in home.iterdir()) == names

    moved = here(folder, "run", "tiny.py", "--set", f"compute.storage={home}/elsewhere")
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert "nothing to train" in moved.stdout


@pytest.mark.ray
@trained
def test_compare_judges_finished_runs_and_scores_long_documents_once(
    folder: Path, here: Command
) -> None:
    (folder / "both.py").write_text(
        "import runpy\n"
        "from glray.spec import *\n"
        "pipeline = runpy.run_path('tiny.py')['pipeline']()\n"
        "def both():\n"
        "    return ComparisonSpec(\n"
        "        name='both', title='Both arms',\n"
        "        arms=(ComparedArm(pipeline=pipeline, arm='grow', label='grown'),\n"
        "              ComparedArm(pipeline=pipeline, arm='fixed32', label='fixed')),\n"
        "        claims=(ClaimSpec(says='Growing is better', arm='grown', against='fixed'),\n"
        "                ClaimSpec(says='and on long documents', arm='grown', against='fixed',\n"
        "                          measure='long_loss', at=64)),\n"
        "        context=ContextSpec(seq_lens=(16, 64), num_tokens=256, stride=16))\n"
    )
    trained_before = metrics(folder / "runs" / "tiny" / "grow-seed0")
    first = here(folder, "compare", "both.py:both")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "nothing to train" in first.stdout
    assert "Growing is better: INCONCLUSIVE" in " ".join(first.stdout.split())
    assert max(map(len, first.stdout.split("Both arms")[1].splitlines()[1:-2])) <= 80
    assert first.stdout.count("long documents, ") == 4  # two arms, whole and sliding windows
    left = folder / "runs" / "comparisons" / "both"
    record = read_json(left / "comparison.json")
    assert [claim["verdict"] for claim in record["claims"]] == ["inconclusive"] * 2
    assert [arm["label"] for arm in record["arms"]] == ["grown", "fixed"]
    assert len(record["long_documents"]) == 4
    page = (left / "report.html").read_text()
    assert "Growing is better: INCONCLUSIVE" in page

    again = here(folder, "compare", "both.py:both")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "long documents, " not in again.stdout
    assert metrics(folder / "runs" / "tiny" / "grow-seed0") == trained_before

    (left / "long_documents" / "fixed-seed0-whole.json").write_text("{")
    damaged = here(folder, "compare", "both.py:both")
    assert damaged.returncode == 2
    assert "fixed-seed0-whole.json: damaged" in damaged.stderr


@pytest.mark.ray
@trained
@pytest.mark.usefixtures("own_ray")
def test_compare_tunes_each_arms_rate_before_it_judges_and_finds_all_again(
    folder: Path, here: Command
) -> None:
    (folder / "rates.py").write_text(
        "import runpy\n"
        "from glray.spec import *\n"
        "tiny = runpy.run_path('tiny.py')['pipeline']()\n"
        "def tuned():\n"
        "    budget = {'tokens': 12 * 128, 'seconds': None}\n"
        "    arms = tiny.derive(budget=budget, ratios_in='tokens')['grow', 'fixed32']\n"
        "    return ComparisonSpec(name='tuned', title='Tuned', arms=arms,\n"
        "                          claims=[lower('grow', 'fixed32')],\n"
        "                          rates=RateGrid(lrs=(1e-3, 1e-2), seed=7))\n"
    )
    tuned = here(folder, "compare", "rates.py:tuned")
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    record = read_json(folder / "runs" / "comparisons" / "tuned" / "comparison.json")
    assert record["spec"]["rates"] == {"lrs": [1e-3, 1e-2], "seed": 7}
    rates = {rate["label"]: rate for rate in record["rates"]}
    assert list(rates) == ["grow", "fixed32"]
    runs = folder / "runs" / "tiny-rates"
    expected = []
    for arm, rate in zip(record["arms"], rates.values(), strict=True):
        # Of two rates the best is an end, so one beyond it was trained: 1e-4 or 1e-1.
        tried = [tried["lr"] for tried in rate["losses"]]
        assert tried in ([1e-4, 1e-3, 1e-2], [1e-3, 1e-2, 1e-1])
        assert rate["sentence"] in " ".join(tuned.stdout.split())
        losses = {tried["lr"]: tried["loss"] for tried in rate["losses"]}
        assert losses[rate["lr"]] == min(losses.values())
        names = {lr: f"{rate['label']}-lr{lr:.0e}".replace("e-0", "e-") for lr in tried}
        expected += [f"{name}-seed7" for name in names.values()]
        assert (arm["pipeline"], arm["arm"], arm["lr"]) == (
            "tiny-rates",
            names[rate["lr"]],
            rate["lr"],
        )
        expected.append(f"{arm['arm']}-seed0")
        # Each run trains at its rate, from which the schedule starts to fall at its second step.
        for lr in tried:
            logged = [line["lr"] for line in metrics(runs / f"{names[lr]}-seed7")]
            assert 0.9 * lr < max(logged) <= lr
    assert sorted(path.parent.name for path in runs.glob("*/result.json")) == sorted(expected)

    ended = {path: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}
    again = here(folder, "compare", "rates.py:tuned")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("nothing to train") == 3  # the grid, beyond it, and the compared
    assert ended == {path: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}

    # The pipeline's own runs lie elsewhere: neither call has touched or refused them.
    own = here(folder, "run", "tiny.py")
    assert own.returncode == 0, own.stdout + own.stderr
    assert "nothing to train" in own.stdout


@pytest.mark.ray
@trained
@pytest.mark.usefixtures("own_ray")
def test_a_diverged_run_is_said_with_status_3_and_not_trained_again(
    folder: Path, here: Command
) -> None:
    """By run, beside an arm that trains on; then by a comparison of the two."""
    (folder / "wild.py").write_text(
        "import runpy\n"
        "from glray.spec import *\n"
        "tiny = runpy.run_path('tiny.py')['pipeline']()\n"
        "grow = tiny.arm('grow').derive(lr=1e6)\n"
        "def pipeline():\n"
        "    return tiny.derive(name='wild', arms=(grow, tiny.arm('fixed32')), search=None,\n"
        "                       budget={'tokens': 12 * 128, 'seconds': None}, ratios_in='tokens')\n"
        "def both():\n"
        "    return ComparisonSpec(name='wild', title='Wild', arms=pipeline()['grow', 'fixed32'],\n"
        "                          claims=[lower('grow', 'fixed32')])\n"
    )
    wild = folder / "runs" / "wild"
    ended = here(folder, "run", "wild.py")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    diverged = read_json(wild / "grow-seed0" / "diverged.json")
    said = (
        f"grow-seed0: diverged at step {diverged['step']} (seq_len 16): its {diverged['what']} is "
        "not finite; no checkpoint came before, and the run is not trained again: set "
        "arms.grow.lr (or the rates.lrs that it is chosen from) below 1e6 under another name "
        "(--set name=…; for a comparison in another folder, --set compute.storage=…), or delete "
        f"{wild / 'grow-seed0'} to train it again\n"
    )
    assert ended.stdout.endswith(said)
    assert (wild / "fixed32-seed0" / "result.json").exists()
    assert "Diverged and not compared: grow-seed0" in (wild / "report.html").read_text()

    before = (wild / "grow-seed0" / "metrics.jsonl").stat().st_mtime_ns
    for arguments in (("run", "wild.py"), ("compare", "wild.py:both")):
        again = here(folder, *arguments)
        assert again.returncode == 3, again.stdout + again.stderr
        assert "every run is finished or has diverged, nothing to train" in again.stdout
        assert again.stdout.endswith(said)
    assert (wild / "grow-seed0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "INCONCLUSIVE" in again.stdout
    assert "diverged: grow-seed0" in " ".join(again.stdout.split())
    left = [*wild.rglob("*.json*"), *(folder / "runs" / "comparisons" / "wild").glob("*.json")]
    for path in left:
        text = path.read_text()
        for value in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(value, parse_constant=pytest.fail)


@pytest.mark.ray
@trained
def test_a_truncated_block_is_refused_before_anything_starts(folder: Path, here: Command) -> None:
    (block,) = folder.glob("runs/tokens/*/blocks/00000.arrow")
    content = block.read_bytes()
    block.write_bytes(content[:-8])
    try:
        truncated = here(folder, "run", "tiny.py", "--set", "name=other")
    finally:
        block.write_bytes(content)
    assert truncated.returncode == 2
    assert f"{len(content) - 8:,} bytes, the manifest says {len(content):,}" in truncated.stderr
    assert not (folder / "runs" / "other").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
@trained
@pytest.mark.usefixtures("own_ray")
def test_a_search_confirms_its_best_which_runs_as_its_trial_did(
    folder: Path, here: Command
) -> None:
    searched = ["--set", "name=search", "--set", "search.num_trials=1"]
    searched += ["--set", "search.last=[0.6, 1]", "--set", "search.confirm_seeds=1"]
    searched += ["--set", "calibration={step_microseconds: {16: 900, 32: 1000}}"]
    tuned = here(folder, "tune", "tiny.py", *searched)
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert "3 trials, by tree out of 8 schedules over 16-32" in tuned.stdout
    assert "3 of 3 trials: " in tuned.stdout  # with the baselines
    assert "search-confirm: The best schedules of the search on fresh seeds" in tuned.stdout
    storage = folder / "runs"
    confirmed = list((storage / "search-confirm").glob("*-seed*"))
    assert {path.name.rpartition("-")[2] for path in confirmed} == {"seed1"}
    best = load_pipeline(storage / "search" / "best.yaml")
    torch.set_num_threads(best.compute.cpus_per_worker)  # as in a worker: the same sums
    corpus = find_prepared(best)
    assert corpus is not None
    train_all(best, corpus, WorkerContext())
    (run,) = (storage / "search-best").glob("*-seed0")
    winner = [step["loss"] for step in metrics(run)]
    assert winner == [step["loss"] for step in metrics(storage / "search-search" / run.name)]


@pytest.mark.soak  # two kills, each of which costs a start of Ray
@pytest.mark.timeout(900)
def test_a_killed_search_ends_with_the_table_of_an_undisturbed_one(
    folder: Path, here: Command
) -> None:
    arguments = ["tune", "tiny.py", "--set", "search.num_trials=4", "--set", "search.confirm=0"]
    arguments += ["--set", "calibration={step_microseconds: {16: 900, 32: 1000}}"]
    arguments += ["--set", "budget.seconds=4"]
    undisturbed = here(folder, *arguments, "--set", "name=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    killed = [*arguments, "--set", "name=killed"]
    runs, log = folder / "runs", folder / "killed.log"
    for least in (0, 2):  # so many of its runs are finished at the kill
        process = start_glray(folder, log, persons_environment(), *killed)
        deadline = time.monotonic() + 120
        while len(list(runs.glob("killed-search/*/result.json"))) <= least:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert status_of(process, log, 60) == -signal.SIGKILL
    log = folder / "again.log"
    process = start_glray(folder, log, persons_environment(), *killed)
    while not (followers := trials_of_tune()):
        assert process.is_alive(), log.read_text()
        time.sleep(0.05)
    os.kill(followers[0], signal.SIGKILL)  # only followed: its run goes on
    assert status_of(process, log, 240) == 0, log.read_text()

    def losses(name: str) -> dict[str, list[float]]:
        found = sorted((runs / f"{name}-search").glob("*-seed0"))
        return {run.name: [step["loss"] for step in metrics(run)] for run in found}

    assert losses("killed") == losses("undisturbed")
    assert len(losses("killed")) == 6  # with the baselines
    tables = [
        [line for line in said.splitlines() if line.startswith(("16x", "32x"))]
        for said in (undisturbed.stdout, log.read_text())
    ]
    assert tables[0] == tables[1]


@pytest.mark.ray
@trained
@pytest.mark.usefixtures("own_ray")
def test_ctrl_c_stops_at_a_checkpoint(folder: Path, here: Command) -> None:
    """How a process of its own ends that has its own Ray to stop: test_survival.py, by SIGTERM."""
    run = folder / "runs" / "stopped" / "grow-seed0"
    over = threading.Event()

    def interrupt() -> None:
        while not (run / "metrics.jsonl").exists():
            if over.wait(0.1):
                return
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    arguments = ["run", "tiny.py", "--set", "name=stopped", "--set", "budget.seconds=600"]
    arguments += ["--set", "calibration={step_microseconds: {16: 900, 32: 1000}}"]
    try:
        stopped = here(folder, *arguments)
    finally:
        over.set()
        interrupting.join()
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert "the same command resumes" in stopped.stdout
    (checkpoint,) = committed_checkpoints(run / "checkpoints")
    steps = int(checkpoint.name.removeprefix("step-"))
    assert metrics(run)[-1]["step"] == steps
    assert not (run / "result.json").exists()
    assert not (folder / "runs" / "stopped" / "STOP").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "nosuch.py"), ("nosuch.py",)),
        (("plan", "tiny.py", "--set", "optimizer.lrr=1"), ("lrr",)),
        (("run", "tiny.py", "--set", "corpus.paths=[nosuch]"), ("nosuch",)),
        (("run", "tiny.py", "--set", "corpus.paths=[empty]"), ("empty",)),
        (
            ("run", "tiny.py", "--set", "corpus={kind: parquet, paths: [nosuch.parquet]}"),
            ("nosuch.parquet",),
        ),
        (("run", "tiny.py", "--set", "compute.storage=s3://bucket"), ("s3://bucket",)),
        (("eval", "text", "--seq-lens", "16"), ("text", "run.json")),
        (("eval", "text", "--seq-lens", "16,x"), ("16,x",)),
        (("export", "text", "model"), ("text", "run.json")),
        (("report", "text"), ("text",)),
        (("compare", "tiny.py"), ("FILE.py:NAME",)),
        (("compare", "tiny.py:pipeline"), ("PipelineSpec, not a ComparisonSpec",)),
        (("plan", "tiny.py:nosuch"), ("no function nosuch()",)),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_status_2(
    folder: Path, here: Command, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    before = sorted(folder.rglob("*"))
    done = here(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert sorted(folder.rglob("*")) == before


# To a shell, and with all that a new process's imports could print: one command loads the model's
# libraries, as the first `run` does without a word on stderr, the other none.
@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "tiny.py", "--set", "optimizer.lrr=1"),
        pytest.param(("eval", "text", "--seq-lens=16"), marks=pytest.mark.soak),
    ],
)
def test_a_process_of_its_own_prints_that_one_line_and_no_more(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    done = glray(folder, *arguments)
    assert done.returncode == 2
    waits = "importing the model's code"  # said where that takes more than 5 s
    assert [line for line in done.stdout.splitlines() if not line.startswith(waits)] == []
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_plan_imports_neither_torch_nor_ray(folder: Path) -> None:
    code = (
        "import sys; sys.argv = ['glray', 'plan', 'tiny.py']\n"
        "from glray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
