"""The loop against a bare PyTorch loop and Hugging Face's Trainer; what Ray Train adds to it.

    python benchmarks/loop.py [--steps 40]

The same GPT-NeoX model, optimizer, tokens and precision, with batches in memory and one worker, at
128, 512, 1024 and 2048 tokens per window. The three take turns, one step each, in an order that
changes every round, and everything from the start of one step to the start of the next is counted.
The bare loop is what a person would write: logits, ``cross_entropy``, fused AdamW, clipping.
glray's loop does all that a run does: the checksum, metrics, the learning rate, the plan's events.
(The Trainer needs ``accelerate``, from the extra ``dev``.)

Then what surrounds the steps, on Ray: the seconds from the command to the first step of a resumed
run and what of it is Ray's. What a checkpoint costs is measured by ``checkpoint.py``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import kill_processes_of, processes_of, start_glray_run
from benchmarks.record import keep
from benchmarks.turns import Turns
from glray.data.corpus import PreparedCorpus, run_corpus
from glray.data.windows import Batch, StageReads, local_batches
from glray.model.config import config_of
from glray.model.decoder import build_model
from glray.ray.cluster import connect
from glray.ray.train import RayContext, WorkerGroups
from glray.run.run import Run
from glray.run.start import record_start
from glray.spec import GPTNeoXModel, PipelineSpec, to_yaml
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.loop import train
from tests.planned import planned
from tests.tiny import tiny_spec
from tests.tokens import periodic_corpus

LENGTHS = (128, 512, 1024, 2048)
TOKENS_PER_BATCH = 4096
WARM_UP_STEPS = 3
MODEL = GPTNeoXModel(
    num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, vocab_size=1024
)


# ---- the three loops, in one process


def pipeline(storage: Path, seq_len: int, num_steps: int) -> PipelineSpec:
    """One arm of ``num_steps`` steps at ``seq_len``."""
    return tiny_spec(
        storage,
        name=f"loop-{seq_len}-{time.time_ns()}",
        model=MODEL,
        arms=[{"name": "fixed", "stages": [{"seq_len": seq_len}]}],
        chunk_len=max(LENGTHS),
        tokens_per_batch=TOKENS_PER_BATCH,
        budget={"tokens": num_steps * TOKENS_PER_BATCH},
        optimizer={"lr": 1e-3},
        evaluation={"seq_lens": (64,), "num_tokens": 64},
        compute={"storage": str(storage)},
    )


@dataclass
class BatchesInMemory(WorkerContext):
    """A worker whose batches are read before the first step, and who takes turns."""

    turns: Turns = field(default_factory=lambda: Turns(("glray",)))

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Generator[Batch]:
        """See WorkerContext."""
        for batch in list(local_batches(corpus, segments)):
            self.turns.next("glray")
            yield batch


def glray_loop(run: Run, turns: Turns) -> None:
    """glray's own loop, whole."""
    ctx = BatchesInMemory(turns=turns)
    executed = execution(run.spec, ctx)
    run.directory.mkdir(parents=True)
    record_start(run, {}, executed, 0)
    train(run, run_corpus(run), ctx, executed, peak=1e12)


def tensors_of(run: Run) -> list[torch.Tensor]:
    """The run's batches as int64[rows, seq_len + 1]."""
    stage, corpus = run.plan.stages[0], run_corpus(run)
    offsets = corpus.order(run.plan.chunk_len, run.seed).window_offsets(
        first_token=0,
        num_steps=stage.num_steps,
        tokens_per_batch=TOKENS_PER_BATCH,
        seq_len=stage.seq_len,
        rank=0,
        world_size=1,
    )
    reads = iter([StageReads(0, stage.seq_len, TOKENS_PER_BATCH, offsets)])
    return [torch.from_numpy(b.tokens.astype("int64")) for b in local_batches(corpus, reads)]


def bare_loop(run: Run, turns: Turns) -> None:
    """A bare PyTorch loop."""
    model = fresh_model(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for tokens in tensors_of(run):
        turns.next("bare")
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def trainer_loop(run: Run, turns: Turns) -> None:
    """Hugging Face's Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class TakesTurns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.next("trainer")

    class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self) -> None:
            self.rows = torch.cat(tensors_of(run))

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            # The model shifts its labels itself, so a window's last target is lost. The work is
            # the same.
            return {"input_ids": self.rows[row, :-1], "labels": self.rows[row, :-1]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=TOKENS_PER_BATCH // run.plan.stages[0].seq_len,
            max_steps=run.plan.num_steps,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        model, callbacks = fresh_model(run), [TakesTurns()]
        Trainer(model, arguments, train_dataset=Windows(), callbacks=callbacks).train()


def fresh_model(run: Run) -> torch.nn.Module:
    """The run's model with the attention that ``transformers`` takes by itself."""
    model = build_model(
        config_of(run.manifest.architecture, run.name), run.seed, torch.device("cpu")
    )
    model.set_attn_implementation("sdpa")
    return model.train()


LOOPS: dict[str, Callable[[Run, Turns], None]] = {
    "glray": glray_loop,
    "bare": bare_loop,
    "trainer": trainer_loop,
}


def compared(corpus: PreparedCorpus, work: Path, num_steps: int) -> dict[str, Any]:
    """Median tokens per second of each loop by length, and glray's over the others' in each round:
    median, and first and third quartile. The first rounds warm up and do not count."""
    figures: dict[str, Any] = {}
    for seq_len in LENGTHS:
        turns = Turns(tuple(LOOPS))

        def work_of(name: str, seq_len: int = seq_len, turns: Turns = turns) -> None:
            torch.set_num_threads(1)
            (run,) = planned(pipeline(work / name, seq_len, num_steps), corpus)
            try:
                LOOPS[name](run, turns)
            finally:
                turns.leave(name)

        with ThreadPoolExecutor(max_workers=len(LOOPS)) as pool:
            for done in [pool.submit(work_of, name) for name in LOOPS]:
                done.result()
        counted = {name: values[WARM_UP_STEPS:] for name, values in turns.seconds.items()}
        ratios = {
            other: quantiles(
                [b / a for a, b in zip(counted["glray"], counted[other], strict=False)], n=4
            )
            for other in ("bare", "trainer")
        }
        figures[str(seq_len)] = {
            "tokens_per_second": {
                name: round(TOKENS_PER_BATCH / median(values)) for name, values in counted.items()
            },
            "glray_over": {
                other: {"median": round(q2, 3), "quartiles": [round(q1, 3), round(q3, 3)]}
                for other, (q1, q2, q3) in ratios.items()
            },
            "rounds": min(len(values) for values in counted.values()),
        }
        print(seq_len, json.dumps(figures[str(seq_len)]), flush=True)
    return figures


# ---- what surrounds the steps


def _timed(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext, path: Path) -> None:
    """Ray Train's worker with a clock around whatever the loop asks of Ray while it counts."""
    from glray.train.worker import train_all

    asked: dict[str, list[float]] = {"stop_requested": [], "preempted": []}

    def timed(name: str, method: Callable[[], bool]) -> Callable[[], bool]:
        def call() -> bool:
            start = time.perf_counter()
            answer = method()
            asked[name].append(time.perf_counter() - start)
            return answer

        return call

    for name in asked:
        setattr(ctx, name, timed(name, getattr(ctx, name)))
    train_all(spec, corpus, ctx)
    path.write_text(json.dumps(asked))


def rays_share(corpus: PreparedCorpus, work: Path) -> dict[str, float]:
    """What Ray takes of a run's training seconds: the waits for its batches and its answers."""
    spec = pipeline(work, 1024, 200)
    path = work / "asked.json"
    WorkerGroups(partial(_timed, path=path), spec, corpus).run()
    (run,) = planned(spec, corpus)
    lines = [json.loads(x) for x in (run.directory / "metrics.jsonl").read_text().splitlines()]
    training = lines[-1]["measured_seconds"] - lines[0]["measured_seconds"]
    waits = sum(line["data_wait_seconds"] for line in lines[1:])
    asked = {name: sum(values) for name, values in json.loads(path.read_text()).items()}
    return {
        "training_seconds": round(training, 2),
        "data_wait_share": round(waits / training, 5),
        **{f"{name}_share": round(seconds / training, 5) for name, seconds in asked.items()},
        "share": round((waits + sum(asked.values())) / training, 5),
    }


def restart_seconds(work: Path) -> dict[str, float]:
    """Seconds from the command that resumes a killed run to its first step, and where they go."""
    text = work / "text"
    text.mkdir()
    for document in range(60):
        words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(500))
        (text / f"{document:02d}.txt").write_text(words)
    spec = pipeline(work / "runs", 1024, 100_000).derive(
        name="restarted",
        corpus={"kind": "text", "paths": [str(text)]},
        tokenizer={"kind": "bpe", "vocab_size": 300},
        compute={
            "storage": str(work / "runs"),
            "log_every_steps": 1,
            "checkpoint_every_tokens": 5 * TOKENS_PER_BATCH,
        },
    )
    (work / "spec.yaml").write_text(to_yaml(spec))
    run = work / "runs" / "restarted" / "fixed-seed0"
    metrics = run / "metrics.jsonl"
    for attempt in range(2):
        start = time.perf_counter()
        size = metrics.stat().st_size if attempt else 0
        process = start_glray_run(work / "spec.yaml", work)
        seen: dict[str, float] = {}
        events = run.parent / "events.log"
        while "first step" not in seen and process.poll() is None:
            now = time.perf_counter() - start
            children = processes_of(work).values()
            if any("gcs_server" in command for command in children):
                seen.setdefault("Ray begins to start", now)
            if any("RayTrainWorker" in command for command in children):
                seen.setdefault("Ray Train's worker process is there", now)
            if attempt and "resumed at step" in (events.read_text() if events.exists() else ""):
                seen.setdefault("the checkpoint is loaded", now)
            ready = attempt == 0 or "the checkpoint is loaded" in seen
            if ready and metrics.exists() and metrics.stat().st_size != size:
                seen["first step"] = now
            time.sleep(0.25)  # to look costs, too
        if attempt == 0:
            while not any(run.glob("checkpoints/*/COMMITTED")):
                time.sleep(0.1)
        kill_processes_of(work, process)
    return {name: round(seconds, 1) for name, seconds in seen.items()}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each loop at each length")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = periodic_corpus(work / "tokens")
        figures: dict[str, Any] = {"threads": 1, "tokens_per_batch": TOKENS_PER_BATCH}
        figures["loops"] = compared(corpus, work / "loops", arguments.steps)
        figures["restart"] = restart_seconds(work)
        connect(pipeline(work, 128, 1).compute, print)
        figures["ray"] = rays_share(corpus, work / "ray")
    keep("loop", figures)


if __name__ == "__main__":
    main()
