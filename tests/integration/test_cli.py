"""The commands as a person gives them: exit statuses, what they print, what they leave."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glray.files import read_json
from glray.training.checkpoint import committed_checkpoints

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.py"

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
            ArmSpec(name="grow", stages=(StageSpec(seq_len=16), StageSpec(seq_len=32))),
            ArmSpec(name="fixed32", stages=(StageSpec(seq_len=32),)),
        ),
        budget=BudgetSpec(seconds=0.3),
        ratios_share="seconds",
        tokens_per_batch=128,
        optimizer=OptimizerSpec(lr=1e-2),
        evaluation=EvaluationSpec(seq_lens=(16, 32, 64), num_tokens=1024),
        search=SearchSpec(arm="grow", num_trials=2),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pipeline and its text: 60 documents of about a thousand bytes."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.py").write_text(PIPELINE)
    (folder / "text").mkdir()
    for document in range(60):
        words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(150))
        (folder / "text" / f"{document:02d}.txt").write_text(words)
    return folder


def glray(folder: Path, *arguments: str, timeout: float = 240):
    return subprocess.run(
        [sys.executable, "-m", "glray", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_run_again_eval_export_and_a_searchs_winner(folder):
    first = glray(folder, "run", "tiny.py")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    grow = folder / "runs" / "tiny" / "grow-seed0"
    for run in (grow, folder / "runs" / "tiny" / "fixed32-seed0"):
        result = read_json(run / "result.json")
        assert 0 < result["charged_seconds"] <= 0.3
    page = (folder / "runs" / "tiny" / "report.html").read_text()
    assert "grow" in page
    assert "fixed32" in page

    # The resolved YAML is the same runs: finished, so it returns at once and trains nothing.
    steps = metrics(grow)
    again = glray(folder, "run", "runs/tiny/spec.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to train" in again.stdout
    assert metrics(grow) == steps
    own = glray(folder, "run", "runs/tiny/grow-seed0/spec.yaml")
    assert "nothing to train" in own.stdout

    # Another identity under the same name is refused, and nothing is touched.
    other = glray(folder, "run", "tiny.py", "--set", "optimizer.lr=0.5")
    assert other.returncode == 2
    assert "optimizer.lr: 0.01 → 0.5" in other.stderr
    assert metrics(grow) == steps

    looked = glray(folder, "data", "tiny.py", "--step", "1", "--seq-len", "16", "--rows", "2")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "Step 1 at seq_len 16" in looked.stdout
    assert "word" in looked.stdout
    assert max(map(len, looked.stdout.splitlines())) <= 80

    scored = glray(folder, "eval", "runs/tiny/grow-seed0", "--seq-lens", "16,64")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "64" in scored.stdout

    exported = glray(folder, "export", "runs/tiny/grow-seed0", "model")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        exported_file, own_file = folder / "model" / name, grow / "model" / name
        assert exported_file.read_bytes() == own_file.read_bytes()

    # A truncated block is refused before anything starts.
    (block,) = folder.glob("runs/tokens/*/blocks/00000.arrow")
    content = block.read_bytes()
    block.write_bytes(content[:-8])
    truncated = glray(folder, "run", "tiny.py", "--set", "name=other")
    assert truncated.returncode == 2
    assert f"{len(content) - 8:,} bytes, the manifest says {len(content):,}" in truncated.stderr
    assert not (folder / "runs" / "other").exists()
    block.write_bytes(content)

    table = glray(folder, "report", "runs/tiny", "--out", "again")
    assert table.returncode == 0, table.stdout + table.stderr
    assert (folder / "again" / "report.html").exists()

    tuned = glray(folder, "tune", "tiny.py")
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    best = glray(folder, "run", "runs/tiny/best.yaml")
    assert best.returncode == 0, best.stdout + best.stderr
    winner = metrics(folder / "runs" / "tiny-best" / "grow-seed0")
    losses = [
        [m["loss"] for m in metrics(trial)]
        for trial in sorted((folder / "runs" / "tiny" / "tune").glob("tiny-trial*/grow-seed0"))
    ]
    assert len(losses) == 2
    assert [m["loss"] for m in winner] in losses


@pytest.mark.ray
def test_ctrl_c_stops_at_a_checkpoint(folder):
    command = [sys.executable, "-m", "glray", "run", "tiny.py"]
    command += ["--set", "name=stopped", "--set", "budget.seconds=600"]
    with (folder / "stopped.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    run = folder / "runs" / "stopped" / "grow-seed0"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (folder / "stopped.log").read_text()
    assert "the same command resumes" in (folder / "stopped.log").read_text()
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
    ],
)
def test_what_a_person_can_mend_is_one_line_and_status_2(folder, arguments, words):
    (folder / "empty").mkdir(exist_ok=True)
    before = sorted(folder.rglob("*"))
    done = glray(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_plan_imports_neither_torch_nor_ray(folder):
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
