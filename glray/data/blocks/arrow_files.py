"""Arrow IPC files: committed whole, and mapped instead of read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from glray.files import committed


@contextmanager
def committed_batches(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """A writer of the record batches of ``path``, which is there once the block ends."""
    with committed(path) as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


def mapped_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a file as memory-mapped views. Raises OSError and pa.ArrowInvalid."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        return [file.get_batch(index) for index in range(file.num_record_batches)]
