"""Files here and in object stores: whole or not at all, one writer at a time, logs of lines."""

from glray.files.commits import (
    REMEDY,
    chunks,
    committed,
    copy_file,
    copy_tree,
    files_below,
    local_copy,
    naming,
    new_directory,
    read_json,
    remove_tree,
    sha256_of,
    write_bytes,
    write_json,
    write_new,
    write_text,
)
from glray.files.locks import sole_writer
from glray.files.logs import LineLog, NewLines, Outbox, add_line, read_log, write_log
from glray.files.paths import AnyPath, StorePath, as_path, read_range

__all__ = [
    "REMEDY",
    "AnyPath",
    "LineLog",
    "NewLines",
    "Outbox",
    "StorePath",
    "add_line",
    "as_path",
    "chunks",
    "committed",
    "copy_file",
    "copy_tree",
    "files_below",
    "local_copy",
    "naming",
    "new_directory",
    "read_json",
    "read_log",
    "read_range",
    "remove_tree",
    "sha256_of",
    "sole_writer",
    "write_bytes",
    "write_json",
    "write_log",
    "write_new",
    "write_text",
]
