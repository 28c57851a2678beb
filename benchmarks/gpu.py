"""What only a GPU shows, in parts, each for itself: docs/gpu.md says what to expect.

    python benchmarks/gpu.py [--part loss] [--part steps] … [--out DIR] [--max-seconds N]

``loss``: the loss, the blocks, attention and the peak of matrix products, each alone, and where a
step's time goes. ``steps``: MFU of Pythia-160M by length and batch, and what flushing metrics costs
the loop. ``run``: a pipeline through Ray Train that is killed by SIGKILL and resumed, beside one
that is not. ``largest``: the largest batch at each length. Only ``run`` needs Ray.

Each measure is written as soon as it is taken, to DIR/gpu-PART.json; a second call goes on where
the first has ended. Several parts each have a process, and so the GPU, to themselves; one that is
still measuring after its seconds is ended. Without a GPU it all runs at toy size, which the names
of the files say: that only shows that the script works.
"""

import argparse
import math
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_parts import PARTS, TOY, Scale
from benchmarks.measures import Measures
from benchmarks.record import RESULTS
from glray.train.context import WorkerContext

MOST_SECONDS = {"loss": 360, "steps": 480, "run": 540, "largest": 600}
"""Of each part, by default; in the order in which they are run."""


def measure_part(part: str, out: Path, seconds: float) -> None:
    """Take the measures of a part in this process. Exits with 1 if one of them is missing."""
    gpu = torch.cuda.is_available()
    ctx = WorkerContext(device=torch.device("cuda" if gpu else "cpu"))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds))  # ends this process, also out of a wait for the device
    measures = Measures(f"gpu-{part}" if gpu else f"gpu-toy-{part}", out, ctx, seconds)
    with tempfile.TemporaryDirectory() as work:
        PARTS[part](measures, Scale() if gpu else TOY, Path(work))
    signal.alarm(0)
    if not measures.is_complete:
        sys.exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep. Exits with 1 if anything failed or was left out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=MOST_SECONDS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--max-seconds", type=float, help=f"of each part; default: {MOST_SECONDS}")
    asked = parser.parse_args(arguments)
    parts = [part for part in MOST_SECONDS if part in (asked.part or MOST_SECONDS)]
    asked.out.mkdir(parents=True, exist_ok=True)
    works = [
        partial(measure_part, part, asked.out, asked.max_seconds or MOST_SECONDS[part])
        for part in parts
    ]
    if len(works) == 1:
        works[0]()
        return
    # Forked before anything has touched the GPU: no part finds the memory of another one.
    context, failed = multiprocessing.get_context("fork"), []
    for part, work in zip(parts, works, strict=True):
        process = context.Process(target=work)
        process.start()
        process.join()
        if process.exitcode:
            failed.append(part)
            how = "ended by its time limit" if process.exitcode == -signal.SIGALRM else "incomplete"
            print(f"{part}: {how}; the same command goes on", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
