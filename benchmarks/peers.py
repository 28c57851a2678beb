"""How fast other data loaders deliver a token stream: one peer and one sequence length per run.

    python benchmarks/peers.py datasets --stream tokens.bin --seq-len 1024 --work peers \
        --batches 2000 --warmup 200

The stream is a flat little-endian uint16 file of token ids on local disk. Each peer delivers its
windows of seq_len + 1 tokens in shuffled order, to one process, as batches of 16,384 tokens:
torch.int64[16384 // seq_len, seq_len + 1]. A peer first writes the windows in its own format to
WORK/NAME-SEQ_LEN if that does not exist (so give another stream another WORK), in a process of its
own and outside the measured time. Then it is opened as its documentation recommends for speed.

The result is one JSON object on stdout. With ``--check`` the program says instead how one epoch
differs from the stream, with exit status 1 if it does.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

BATCH_TOKENS = 16_384


class Windows:
    """A stream's windows: window i is stream[i * seq_len : i * seq_len + seq_len + 1].

    Pickles as the file's name: each process maps the stream itself.
    """

    def __init__(self, stream: Path, seq_len: int) -> None:
        self.stream = stream
        self.seq_len = seq_len
        tokens = np.asarray(np.memmap(stream, dtype="<u2", mode="r"))
        self.array = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]
        """uint16[windows, seq_len + 1], a view of the mapped file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self.stream, self.seq_len)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint16[seq_len + 1]."""
        return self.array[index]

    @property
    def rows(self) -> int:
        """Windows a batch."""
        return BATCH_TOKENS // self.seq_len


class Peer(ABC):
    """A data loader: writes a stream's windows once, then delivers them epoch after epoch."""

    distribution: str
    """What pip installs."""
    module: str
    """What Python imports."""
    faster_workers: int
    """Reader processes, 0 or 2, with which it delivers more on two cores."""

    def __init__(self, windows: Windows, directory: Path, workers: int, seed: int) -> None:
        self.windows = windows
        self.directory = directory
        self.workers = workers
        self.seed = seed

    def library(self) -> Any:
        """The peer's module."""
        return import_module(self.module)

    def write(self, directory: Path) -> None:  # noqa: B027 - some read the stream as it is
        """Write the windows in the peer's own format to ``directory``, which is there, empty."""

    @abstractmethod
    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        """Open the dataset; then each epoch's batches, without end.

        The last batch of an epoch may have fewer rows.
        """


class Memmap(Peer):
    """NumPy: a mapped file, a permutation of its windows, one thread. The limit for the others."""

    distribution = module = "numpy"
    faster_workers = 0

    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        while True:
            order = rng.permutation(len(self.windows))
            starts = range(self.windows.rows, len(order), self.windows.rows)
            yield map(self._batch, np.split(order, starts))

    def _batch(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.windows.array[indices].astype(np.int64))


class HuggingFaceDatasets(Peer):
    """Hugging Face Datasets: an Arrow column of fixed-size lists, queried a batch at a time."""

    distribution = module = "datasets"
    faster_workers = 0

    def write(self, directory: Path) -> None:
        datasets = self.library()
        pyarrow = import_module("pyarrow")
        length = self.windows.seq_len + 1
        tokens = pyarrow.FixedSizeListArray.from_arrays(self.windows.array.reshape(-1), length)
        datasets.Dataset.from_dict({"tokens": tokens}).save_to_disk(directory)

    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        dataset = self.library().load_from_disk(self.directory).with_format("numpy")
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(self.seed))
        loader = DataLoader(
            dataset,
            sampler=BatchSampler(order, self.windows.rows, drop_last=False),
            batch_size=None,  # so that the dataset sees a batch's indices at once
            collate_fn=_column_to_batch,  # type: ignore[arg-type]  # of one sample, the batch
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        while True:
            yield loader


class MosaicStreaming(Peer):
    """MosaicML Streaming: MDS shards with one fixed-size array a sample."""

    distribution, module = "mosaicml-streaming", "streaming"
    faster_workers = 2

    def library(self) -> Any:
        if self.module not in sys.modules:
            _declare_torchvision_operators()
        return super().library()

    def write(self, directory: Path) -> None:
        columns = {"tokens": f"ndarray:uint16:{self.windows.seq_len + 1}"}
        with self.library().MDSWriter(out=str(directory), columns=columns) as shards:
            for window in self.windows.array:
                shards.write({"tokens": window})

    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        streaming = self.library()
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(
            local=str(self.directory),
            shuffle=True,
            shuffle_seed=self.seed,
            batch_size=self.windows.rows,
        )
        loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=self.windows.rows,
            collate_fn=_columns_to_batch,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        while True:
            yield loader


class LitData(Peer):
    """LitData: chunks of tokens that its TokensLoader cuts into blocks, here one a window."""

    distribution = module = "litdata"
    faster_workers = 2

    def library(self) -> Any:
        os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
        return super().library()

    def write(self, directory: Path) -> None:
        litdata = self.library()
        length = self.windows.seq_len + 1
        litdata.optimize(
            fn=partial(_block_tokens, self.windows),
            inputs=list(range(0, len(self.windows), _ITEM_WINDOWS)),
            output_dir=str(directory),
            item_loader=litdata.TokensLoader(block_size=length),
            chunk_bytes="64MB",
            num_workers=1,
            verbose=False,
        )

    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        litdata = self.library()
        dataset = litdata.StreamingDataset(
            str(self.directory),
            item_loader=litdata.TokensLoader(block_size=self.windows.seq_len + 1),
            shuffle=True,
            seed=self.seed,
            item_shuffle_window="full",
        )
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=self.windows.rows,
            collate_fn=_arrays_to_batch,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        while True:
            yield loader


class Grain(Peer):
    """Grain: a MapDataset over the mapped stream, shuffled by an index permutation."""

    distribution = module = "grain"
    faster_workers = 0

    def epochs(self) -> Iterator[Iterable[torch.Tensor]]:
        grain = self.library()
        dataset = (
            grain.MapDataset.source(self.windows)
            .shuffle(seed=self.seed)
            .batch(self.windows.rows, batch_fn=_stack)
        )
        # The stream is in the page cache: threads would only contend for the interpreter's lock.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        batches = dataset.repeat().to_iter_dataset(options)
        if self.workers:
            processes = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=16)
            batches = batches.mp_prefetch(processes)
        iterator = map(torch.from_numpy, batches)
        while True:
            yield islice(iterator, len(dataset))


_ITEM_WINDOWS = 1024
"""Windows that LitData writes at a time; it reads them one by one."""


def _stack(windows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(windows).astype(np.int64)


def _arrays_to_batch(windows: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(_stack(windows))


def _columns_to_batch(samples: Sequence[dict[str, np.ndarray]]) -> torch.Tensor:
    return _arrays_to_batch([sample["tokens"] for sample in samples])


def _column_to_batch(columns: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(columns["tokens"].astype(np.int64))


def _block_tokens(windows: Windows, start: int) -> torch.Tensor:
    return torch.from_numpy(windows.array[start : start + _ITEM_WINDOWS].reshape(-1))


def _declare_torchvision_operators() -> None:
    """Let torchvision, which Streaming imports, load beside a CPU build of torch.

    Its own library can't be loaded there if it was built for CUDA, and its import then fails for
    want of two operators.
    """
    found = find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    try:
        torch.ops.load_library(next(package.glob("_C*.so")))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou) -> Tensor"
            )


def write_once(peer: Peer) -> None:
    """Have the peer's own format in its directory; how long this took goes to stderr."""
    if type(peer).write is Peer.write or peer.directory.exists():
        return
    partial_directory = peer.directory.with_name(peer.directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    started = time.perf_counter()
    writer = multiprocessing.get_context("spawn").Process(
        target=peer.write, args=(partial_directory,)
    )
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{peer.directory.name}: could not be written")
    partial_directory.rename(peer.directory)
    print(f"{peer.directory}: written in {time.perf_counter() - started:.1f} s", file=sys.stderr)


def measure(peer: Peer, batches: int, warmup: int) -> dict[str, float]:
    """What the consumer sees who does nothing but take ``batches``, after the ``warmup`` first."""
    peer.library()
    opened = time.perf_counter()
    stream = chain.from_iterable(peer.epochs())
    next(stream)
    first = time.perf_counter() - opened
    for _ in range(warmup):
        next(stream)
    waits = np.empty(batches)
    tokens = 0
    before = time.perf_counter()
    for number in range(batches):
        tokens += len(next(stream)) * peer.windows.seq_len
        now = time.perf_counter()
        waits[number] = now - before
        before = now
    p50, p99 = np.percentile(waits, [50, 99]) * 1e3
    return {
        "tokens_per_second": round(tokens / waits.sum()),
        "first_batch_seconds": round(first, 3),
        "p50_wait_ms": round(p50, 3),
        "p99_wait_ms": round(p99, 3),
        "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def compare(peer: Peer) -> dict[str, int]:
    """How the first epoch differs from the stream, in windows."""
    expected = Counter(window.tobytes() for window in peer.windows.array)
    delivered = Counter(
        row.tobytes() for batch in next(peer.epochs()) for row in batch.numpy().astype(np.uint16)
    )
    extra = delivered - expected
    return {
        "missing": (expected - delivered).total(),
        "repeated": sum(count for window, count in extra.items() if window in expected),
        "wrong": sum(count for window, count in extra.items() if window not in expected),
    }


PEERS: dict[str, type[Peer]] = {
    "memmap": Memmap,
    "datasets": HuggingFaceDatasets,
    "streaming": MosaicStreaming,
    "litdata": LitData,
    "grain": Grain,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--stream", type=Path, required=True, help="flat uint16 token ids")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens")
    parser.add_argument("--work", type=Path, required=True, help="where peers write their formats")
    parser.add_argument("--batches", type=int, default=1000, help="timed")
    parser.add_argument("--warmup", type=int, default=100, help="batches before these")
    parser.add_argument("--workers", type=int, help="reader processes; by default the faster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare an epoch with the stream")
    options = parser.parse_args()

    kind = PEERS[options.name]
    peer = kind(
        Windows(options.stream, options.seq_len),
        options.work / f"{options.name}-{options.seq_len}",
        kind.faster_workers if options.workers is None else options.workers,
        options.seed,
    )
    write_once(peer)
    result = {
        "peer": options.name,
        "version": version(peer.distribution),
        "seq_len": options.seq_len,
        "workers": peer.workers,
    }
    if options.check:
        differences = compare(peer)
        print(json.dumps(result | {"windows": len(peer.windows)} | differences))
        sys.exit(any(differences.values()))
    print(json.dumps(result | measure(peer, options.batches, options.warmup)))


if __name__ == "__main__":
    main()
