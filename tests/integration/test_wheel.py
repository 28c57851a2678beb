"""The built wheel, installed and used outside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SMALL = ["budget.seconds=4", "evaluation.num_tokens=4096", "evaluation.every_tokens=null"]


@pytest.mark.soak
def test_the_quickstart_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    built, installed, work = (tmp_path / name for name in ("built", "installed", "work"))
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    source = tmp_path / "source"  # building writes into the folder that is built
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    shutil.copytree(CHECKOUT, source, ignore=ignored)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(built), str(source)], check=True)
    (wheel,) = built.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "-t", str(installed), str(wheel)], check=True)
    assert (installed / "glray" / "py.typed").exists()
    assert not (installed / "tests").exists()

    work.mkdir()
    shutil.copy(CHECKOUT / "pipelines" / "quickstart.py", work)
    glray = [sys.executable, "-m", "glray", "run", "quickstart.py"]
    changes = [argument for change in SMALL for argument in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [*glray, *changes], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "runs/quickstart/report.html").exists()
    for arm in ("growlength", "llm1024", "llm128"):
        model = work / f"runs/quickstart/{arm}-seed0/model"
        assert (model / "model.safetensors").exists()
