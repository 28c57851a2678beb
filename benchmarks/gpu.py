"""What only a GPU shows: a run through Ray Train that is killed and resumed, and MFU by length.

    python benchmarks/gpu.py [--work DIR]

First a pipeline on one GPU through TorchTrainer, in bfloat16 and compiled, killed by SIGKILL once
and resumed; its log is kept beside the result. Then Pythia-160M: MFU of a step at each length from
128 to 16,384, in batches of 16,384 tokens and in the largest that fit, and how large those are.
Without a GPU it all runs at toy size, which the result says: that only shows that the script works.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS, keep
from glray.model.flops import training_flops_per_token
from glray.run.profile import own_setting
from glray.spec import PYTHIA_160M, GPTNeoXModel, PipelineSpec, to_yaml
from glray.train.context import WorkerContext
from glray.train.parallel import release_models
from glray.train.probe.memory import gpu_budget_bytes
from glray.train.probe.peak import matmul_peak
from glray.train.probe.profile import ProfiledModel

BATCH_TOKENS = 16_384
VOCAB_SIZE = 50_304
TOY = GPTNeoXModel(num_layers=2, hidden_size=64, num_heads=2, intermediate_size=128)


def pipeline(storage: Path, *, gpu: bool) -> PipelineSpec:
    """128 → 512 on the standard library's text: long enough to be killed in between."""
    arms = [{"name": "grow", "stages": [{"seq_len": 128}, {"seq_len": 512}]}]
    return PipelineSpec.model_validate(
        {
            "name": "gpu",
            "corpus": {"kind": "stdlib"},
            "tokenizer": {"kind": "bpe", "vocab_size": 4096},
            "model": (PYTHIA_160M if gpu else TOY).model_dump(),
            "arms": arms,
            "budget": {"tokens": (2000 if gpu else 100) * BATCH_TOKENS},
            "tokens_per_batch": BATCH_TOKENS,
            "optimizer": {"lr": 6e-4},
            "precision": "bfloat16",
            "evaluation": {"seq_lens": (128, 512, 1024), "num_tokens": 65_536},
            "compute": {
                "storage": str(storage),
                "use_gpu": gpu,
                "compile": True,
                "micro_batch_tokens": "auto",
                "checkpoint_every_tokens": (100 if gpu else 5) * BATCH_TOKENS,
            },
        }
    )


def killed_and_resumed(work: Path, *, gpu: bool) -> dict[str, Any]:
    """``glray run``, killed after its first checkpoint and given again."""
    (work / "spec.yaml").write_text(to_yaml(pipeline(work / "runs", gpu=gpu)))
    run = work / "runs" / "gpu" / "grow-seed0"
    log_path = RESULTS / ("gpu-run.log" if gpu else "gpu-run-toy.log")
    command = [sys.executable, "-m", "glray", "run", str(work / "spec.yaml")]
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and not any(run.glob("checkpoints/*/COMMITTED")):
            time.sleep(0.05)
        if process.poll() is None:
            log.write("--- SIGKILL\n")
            log.flush()  # what runs next writes to the same file
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        resumed = subprocess.run(command, stdout=log, stderr=log, check=False)
    # The log is kept: its paths are of the machine that it ran on.
    log_path.write_text(log_path.read_text(encoding="utf-8").replace(str(work), "WORK"))
    events = (run.parent / "events.log").read_text(encoding="utf-8")
    return {
        "exit_status": resumed.returncode,
        "resumed": "resumed at step" in events,
        "bit_identity_ends": "bit-identity ends" in events,
        "log": log_path.name,
    }


def step_seconds(model: ProfiledModel, seq_len: int, tokens: int) -> float:
    """The fastest of several whole optimizer steps of ``tokens`` tokens at once."""
    release_models()
    trainee = model.at_once(tokens).trainee()
    batch = trainee.random_batch(seq_len)
    return min([trainee.step_seconds(batch) for _ in range(6)][2:])


def by_length(ctx: WorkerContext, *, gpu: bool) -> dict[str, Any]:
    """MFU at each length, and the largest batch."""
    spec = pipeline(Path("/nowhere"), gpu=gpu)
    spec = spec.derive(model={"vocab_size": VOCAB_SIZE if gpu else 4096})
    lengths = [2**n for n in range(7, 15)] if gpu else [128, 256]
    peak = matmul_peak(ctx, "bfloat16")
    table: dict[str, Any] = {}
    for seq_len in lengths:
        model = ProfiledModel.under(own_setting(spec), spec, [seq_len])
        flops = training_flops_per_token(model.config, seq_len)
        batches = {"16384": BATCH_TOKENS if gpu else 1024}
        if gpu:
            budget = gpu_budget_bytes(ctx.device)
            batches["largest"] = model.largest_batch_tokens(seq_len, budget) or seq_len
        row: dict[str, Any] = {}
        for name, tokens in batches.items():
            seconds = step_seconds(model, seq_len, tokens)
            row[name] = {
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "mfu_of_measured": flops * tokens / seconds / peak.measured,
                "mfu_of_nominal": peak.nominal and flops * tokens / seconds / peak.nominal,
            }
            print(seq_len, name, row[name], flush=True)
        table[str(seq_len)] = row
    figures: dict[str, Any] = {"matmul_flops_per_second": vars(peak), "lengths": table}
    if gpu:
        most = [table[str(n)]["largest"]["tokens"] for n in (lengths[-1], lengths[0])]
        figures["largest_batch_at_16384_over_128"] = most[0] / most[1]
    return figures


def main() -> None:
    """Run, measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the run; default: a temporary one")
    parser.add_argument("--no-ray", action="store_true", help="leave the run through Ray Train out")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    ctx = WorkerContext(device=torch.device("cuda" if gpu else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        run = None if arguments.no_ray else killed_and_resumed(work, gpu=gpu)
    figures = by_length(ctx, gpu=gpu)
    keep("gpu" if gpu else "gpu-toy", {"gpu": gpu, "run": run, **figures})


if __name__ == "__main__":
    main()
