"""Arrow IPC files: committed whole, and mapped instead of read."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from glray.files import AnyPath, committed, local_copy


@contextmanager
def committed_batches(path: AnyPath, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """A writer of the record batches of ``path``, which is there once the block ends."""
    with committed(path) as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


def mapped_batches(path: AnyPath) -> list[pa.RecordBatch]:
    """The record batches of a file as memory-mapped views; of one in a store, as views of a copy
    that goes with them. Raises OSError and pa.ArrowInvalid."""
    with local_copy(path) as here, pa.memory_map(str(here)) as source:
        return batches_in(source)


def batches_in(content: pa.NativeFile | np.ndarray) -> list[pa.RecordBatch]:
    """The record batches of a file's content, as views. Raises pa.ArrowInvalid."""
    file = pa.ipc.open_file(pa.py_buffer(content) if isinstance(content, np.ndarray) else content)
    return [file.get_batch(index) for index in range(file.num_record_batches)]
