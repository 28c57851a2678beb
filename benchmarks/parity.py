"""What Ray costs: glray on Ray against the same training loop under ``torchrun``.

    python benchmarks/parity.py [--sessions 2] [--rounds 24] [--workers 1 2] [--out DIR]

Both train the same pipeline (4 layers of width 128) from the same token blocks with the same code,
``glray.train.worker.train_all``, one thread for each worker, gloo, or NCCL and one GPU for each
worker where there are GPUs. What differs:

* on Ray, Ray Train starts the workers (a lone one trains in the command's own process, as it does
  in ``glray run``), Ray Data reads the batches in processes of its own, and the loop asks an actor
  whether to stop, Ray Train whether a node is drained, and shows Prometheus how the run stands;
* under torchrun each worker reads its batches itself and asks nobody.

In a session both train side by side, but never at once: they take turns of a few steps, in an order
that is drawn anew every round, and whoever is not at its turn waits. So both meet the same machine.
Ray's other processes cannot wait: what they take of a CPU slows both alike, and is measured apart.
Neither a checkpoint nor an evaluation falls into a session, and no read either: Ray Data reads a
segment of 2^24 tokens ahead, which ``stream.py`` measures. Every session starts both anew.

The share by CPU is of the workers' own processes and needs no quiet machine; the share by wall time
does, as processes that wait for a core wait for other reasons than Ray.

``--minutes M`` trains on Ray alone for so long and samples what Ray's processes hold: whether the
head grows. What is measured is kept at once; the same command goes on where it was ended. The last
line is one JSON object.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measures import Measures
from benchmarks.processes import MARK, kill_processes_of, processes_of
from benchmarks.record import RESULTS, keep
from glray.data.corpus import PreparedCorpus, open_corpus
from glray.data.windows import Batch, StageReads
from glray.files import write_text
from glray.spec import GPTNeoXModel, PipelineSpec, to_yaml
from glray.spec.loading import load_pipeline
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.tiny import tiny_spec
from tests.tokens import write_tokens

SEQ_LEN = 512
TOKENS_PER_BATCH = 2048
TURN_STEPS = 5
"""Steps of a turn, and of a logging interval: each turn has one."""
WARM_UP_TURNS = 8
"""Meanwhile Ray Data reads the first two segments, 2^25 tokens of each worker."""
SAMPLE_SECONDS = 10.0
HEAD = ("gcs_server", "raylet", "dashboard", "monitor", "agent")
"""What the command of a head's process has in it."""
MODEL = GPTNeoXModel(
    num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, vocab_size=1024
)
CONTENDERS = ("ray", "torchrun")


# ---- a worker, of either contender


class Line:
    """JSON values, a line each, between a worker and the referee."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rw")

    def tell(self, value: Any) -> None:
        """Send a value."""
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def hear(self) -> Any:
        """The next value, which is waited for. Raises ValueError if the other side is gone."""
        return json.loads(self._file.readline())


class Asked:
    """The seconds and this thread's CPU seconds that a worker spends in its surroundings' code."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """What the method returns; its time is counted."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return method(*arguments)
        finally:
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.thread_time() - cpu


def train_in_turns(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, *, port: int
) -> None:
    """Train as every worker does, when it is its turn, and tell what each turn has taken."""
    asked, batches = Asked(), ctx.batches
    for name in ("stop_requested", "preempted", "report"):
        setattr(ctx, name, partial(asked.call, getattr(ctx, name)))

    def in_turns(corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
        stream = batches(corpus, segments)
        referee = Line(socket.create_connection(("127.0.0.1", port)))
        referee.tell({"rank": ctx.rank, "pid": os.getpid()})
        batch = asked.call(next, stream, None)
        while batch is not None:
            num_steps = referee.hear()
            asked.seconds = asked.cpu_seconds = 0.0
            begin, cpu, loop_cpu = time.perf_counter(), time.process_time(), time.thread_time()
            waited, steps = 0.0, []
            for _ in range(num_steps):
                start = time.perf_counter()
                yield batch
                before = asked.seconds
                batch = asked.call(next, stream, None)
                waited += asked.seconds - before
                steps.append(time.perf_counter() - start)
            if ctx.device.type == "cuda":
                torch.cuda.synchronize(ctx.device)
            seconds, loop_cpu = time.perf_counter() - begin, time.thread_time() - loop_cpu
            cpu = time.process_time() - cpu
            turn = {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "asked_cpu_seconds": asked.cpu_seconds,
                "other_threads_cpu_seconds": cpu - loop_cpu,
                "waited_seconds": waited,
                "step_seconds": steps,
            }
            referee.tell(turn)

    setattr(ctx, "batches", in_turns)  # noqa: B010 (a method, as far as mypy knows)
    train_all(spec, corpus, ctx)


def train_on_ray(spec: PipelineSpec, corpus: PreparedCorpus, port: int) -> None:
    """The driver of a worker group of Ray Train."""
    from glray.ray.cluster import connect
    from glray.ray.stream import start_reader
    from glray.ray.train import RayContext, WorkerGroups

    def work(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext) -> None:
        start_reader()
        train_in_turns(spec, corpus, ctx, port=port)

    connect(spec.compute, print)
    WorkerGroups(work, spec, corpus).run()


def train_under_torchrun(spec: PipelineSpec, corpus: PreparedCorpus, port: int) -> None:
    """One worker that torchrun has started."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if spec.compute.use_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if spec.compute.use_gpu else "gloo")
    torch.set_num_threads(spec.compute.cpus_per_worker)
    ctx = WorkerContext(rank, world_size, device)
    train_in_turns(spec, corpus, ctx, port=port)


# ---- the referee


class Contender:
    """One way to start the pipeline's workers, which then wait for their turns."""

    def __init__(self, name: str, work: Path, num_workers: int) -> None:
        self.name, self.num_workers = name, num_workers
        self.work = work / name
        self.work.mkdir(parents=True)
        spec = pipeline(self.work / "runs", name, num_workers)
        write_text(self.work / "spec.yaml", to_yaml(spec))
        script = [__file__, "--contender", name, "--work", str(self.work)]
        python = [sys.executable]
        if name == "torchrun":
            python += ["-m", "torch.distributed.run", "--standalone"]
            python += [f"--nproc-per-node={num_workers}"]
        start = time.perf_counter()
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._process = subprocess.Popen(
                [*python, *script, "--port", str(server.getsockname()[1])],
                env=os.environ | {MARK: str(self.work)},
                stdout=(self.work / "log").open("w"),
                stderr=subprocess.STDOUT,
            )
            self._lines = self._accepted(server)
        self.turn(1)
        self.seconds_to_first_step = time.perf_counter() - start

    def turn(self, num_steps: int = TURN_STEPS) -> list[dict[str, Any]]:
        """Have it train some steps; what each worker tells of them."""
        for line in self._lines:
            line.tell(num_steps)
        return [line.hear() for line in self._lines]

    def helpers(self) -> dict[int, str]:
        """The processes that are not its workers, by their commands."""
        return {
            pid: command
            for pid, command in processes_of(self.work).items()
            if pid not in self._workers
        }

    def end(self) -> None:
        """Kill all that it has started."""
        kill_processes_of(self.work, self._process)

    def _accepted(self, server: socket.socket) -> list[Line]:
        """The lines to all workers. Raises RuntimeError if the process ends before."""
        lines: list[Line] = []
        server.settimeout(1.0)
        while len(lines) < self.num_workers:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    log = (self.work / "log").read_text()
                    raise RuntimeError(f"{self.name} has ended: {log[-2000:]}") from None
            else:
                connection.settimeout(None)
                lines.append(Line(connection))
        self._workers = {line.hear()["pid"] for line in lines}
        return lines


def pipeline(storage: Path, name: str, num_workers: int) -> PipelineSpec:
    """One arm of more steps than a session takes."""
    return tiny_spec(
        storage,
        name=name,
        model=MODEL,
        arms=[{"name": "fixed", "stages": [{"seq_len": SEQ_LEN}]}],
        tokens_per_batch=TOKENS_PER_BATCH,
        budget={"tokens": 10**6 * TOKENS_PER_BATCH},
        optimizer={"lr": 1e-3},
        evaluation={"seq_lens": (64,), "num_tokens": 64},
        compute={
            "storage": str(storage),
            "num_workers": num_workers,
            "use_gpu": torch.cuda.is_available(),
            "log_every_steps": TURN_STEPS,
            "checkpoint_every_seconds": 10**6,
        },
    )


def write_corpus(work: Path) -> None:
    """Four blocks of random tokens in ``work/tokens``."""
    rng = np.random.default_rng(0)
    stream = rng.integers(1, 256, size=4 * 2**20)
    write_tokens(work / "tokens", stream, [rng.integers(1, 256, size=80) for _ in range(3)])


def session(work: Path, num_workers: int, rounds: int, seed: int) -> dict[str, Any]:
    """Both contenders, started one after the other, in turns."""
    rng = random.Random(seed)
    folder = work / f"session-{num_workers}-{seed}"
    contenders: dict[str, Contender] = {}
    turns: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    try:
        for name in rng.sample(CONTENDERS, 2):
            contenders[name] = Contender(name, folder, num_workers)
        for index in range(WARM_UP_TURNS + rounds):
            if index == WARM_UP_TURNS:
                begin = time.perf_counter()
                used = {name: _cpu_seconds(c.helpers()) for name, c in contenders.items()}
                at_first = _mib(contenders["ray"].helpers())
            for name in rng.sample(CONTENDERS, 2):
                turns[name].append(contenders[name].turn())
        seconds = time.perf_counter() - begin
        return {
            "seconds_to_first_step": {
                name: round(c.seconds_to_first_step, 1) for name, c in contenders.items()
            },
            **{name: _figures(turns[name][WARM_UP_TURNS:]) for name in CONTENDERS},
            "turn_seconds": {
                name: [round(_slowest(turn), 5) for turn in turns[name][WARM_UP_TURNS:]]
                for name in CONTENDERS
            },
            "helpers_cpu_share_of_a_core": {
                name: round((_cpu_seconds(c.helpers()) - used[name]) / seconds, 4)
                for name, c in contenders.items()
            },
            "helpers_mib": {name: _mib(c.helpers()) for name, c in contenders.items()},
            "rays_helpers_mib_before": at_first,
        }
    finally:
        for contender in contenders.values():
            contender.end()


def _slowest(turn: list[dict[str, Any]]) -> float:
    """The seconds of a turn: those of the worker that took longest."""
    return max(worker["seconds"] for worker in turn)


def _figures(turns: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """One contender's turns, all workers of it."""
    steps = [step for turn in turns for step in turn[0]["step_seconds"]]
    seconds = sum(map(_slowest, turns))
    workers = [worker for turn in turns for worker in turn]
    cpu = sum(worker["cpu_seconds"] for worker in workers)

    def share(name: str, of: float) -> float:
        return round(sum(worker[name] for worker in workers) / of, 6)

    tokens = len(turns) * TURN_STEPS * TOKENS_PER_BATCH / len(turns[0])
    return {
        "tokens_per_second_per_device": round(tokens / seconds),
        "step_ms": {"p50": round(median(steps) * 1e3, 2), "max": round(max(steps) * 1e3, 2)},
        "data_wait_share": share("waited_seconds", sum(w["seconds"] for w in workers)),
        "cpu_seconds_per_step": round(cpu / len(workers) / TURN_STEPS, 6),
        "asked_share_of_cpu": share("asked_cpu_seconds", cpu),
        "other_threads_share_of_cpu": share("other_threads_cpu_seconds", cpu),
    }


def long_run(work: Path, num_workers: int, minutes: float) -> dict[str, Any]:
    """Ray alone: what its processes hold, every ``SAMPLE_SECONDS``."""
    contender = Contender("ray", work / f"long-{num_workers}", num_workers)
    samples = []
    try:
        begin = next_sample = time.perf_counter()
        while (now := time.perf_counter()) - begin < minutes * 60:
            if now >= next_sample:
                held = _mib(contender.helpers())
                samples.append({"seconds": round(now - begin), **held})
                next_sample += SAMPLE_SECONDS
            contender.turn()
    finally:
        contender.end()
    half = samples[len(samples) // 2 :]
    growth = np.polyfit([s["seconds"] for s in half], [s["head"] for s in half], 1)[0]
    per_hour = round(float(growth) * 3600, 1)
    return {"head_mib_per_hour_in_the_second_half": per_hour, "samples": samples}


def _mib(processes: dict[int, str]) -> dict[str, float]:
    """Proportional memory of processes: of the head's, and of all of them."""
    held = {"head": 0.0, "all": 0.0}
    for pid, command in processes.items():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        mib = next((int(n.split()[1]) / 1024 for n in lines if n.startswith("Pss:")), 0.0)
        held["all"] += mib
        held["head"] += mib if any(name in command for name in HEAD) else 0.0
    return {name: round(mib, 1) for name, mib in held.items()}


def _cpu_seconds(processes: dict[int, str]) -> float:
    """CPU seconds that the processes that live have used."""
    ticks = 0
    for pid in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rays_share(sessions: list[dict[str, Any]]) -> dict[str, Any]:
    """What Ray adds to a step, of all sessions of a number of workers.

    ``by_wall``: the median over rounds of the seconds of Ray's turn over torchrun's, minus 1, with
    a bootstrapped 95% interval. ``by_cpu``: of the CPU seconds of a worker's process on Ray, those
    in what its loop asks its surroundings (batches too) and in threads other than the loop's, minus
    the same share under torchrun; ``by_cpu_at_most`` does not subtract.
    """
    pairs = [
        (ray, torchrun)
        for taken in sessions
        for ray, torchrun in zip(*(taken["turn_seconds"][n] for n in CONTENDERS), strict=True)
    ]
    excess = [ray / torchrun - 1 for ray, torchrun in pairs]
    interval = bootstrap((excess,), np.median, rng=np.random.default_rng(0)).confidence_interval
    parts = ("asked_share_of_cpu", "other_threads_share_of_cpu")
    cpu = {n: median(sum(s[n][part] for part in parts) for s in sessions) for n in CONTENDERS}
    return {
        "by_wall": {
            "median": round(median(excess), 5),
            "interval": [round(float(interval.low), 5), round(float(interval.high), 5)],
            "rounds": len(excess),
        },
        "by_cpu": round(cpu["ray"] - cpu["torchrun"], 6),
        "by_cpu_at_most": round(cpu["ray"], 6),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take all measures, and say Ray's share of each number of workers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ctx = WorkerContext(device=device)
    measures = Measures("parity", arguments.out, ctx, seconds=24 * 3600)
    with tempfile.TemporaryDirectory(prefix="glray-parity-") as folder:
        work = Path(folder)
        write_corpus(work)
        for seed in range(arguments.sessions):
            for num_workers in arguments.workers:
                name = f"{num_workers} workers, {arguments.rounds} rounds, session {seed}"
                measures.take(name, partial(session, work, num_workers, arguments.rounds, seed))
        if arguments.minutes:
            most = max(arguments.workers)
            name = f"{most} workers, {arguments.minutes:g} minutes"
            measures.take(name, partial(long_run, work, most, arguments.minutes))
    figures = {
        "seq_len": SEQ_LEN,
        "tokens_per_batch": TOKENS_PER_BATCH,
        "turn_steps": TURN_STEPS,
        "rays_share": {
            str(n): rays_share(taken) for n in arguments.workers if (taken := _of(measures, n))
        },
        "measures": measures.taken,
    }
    keep("parity", figures, ctx, arguments.out)
    return figures


def _of(measures: Measures, num_workers: int) -> list[dict[str, Any]]:
    """The sessions of a number of workers."""
    return [
        taken
        for name, taken in measures.taken.items()
        if name.startswith(f"{num_workers} workers") and "turn_seconds" in taken
    ]


def main() -> None:
    """Measure, or be one of the contenders' processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=2, help="of each number of workers")
    parser.add_argument(
        "--rounds", type=int, default=24, help=f"of a session, after {WARM_UP_TURNS}"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--minutes", type=float, default=0.0, help="of a long run on Ray alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of parity.json")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        figures = measure(arguments)
        print(json.dumps({name: figures[name] for name in figures if name != "measures"}))
        return
    spec = load_pipeline(arguments.work / "spec.yaml")
    tokens = arguments.work.parents[1] / "tokens"
    corpus = open_corpus(spec, [str(tokens)])
    train = train_on_ray if arguments.contender == "ray" else train_under_torchrun
    train(spec, corpus, arguments.port)


if __name__ == "__main__":
    main()
