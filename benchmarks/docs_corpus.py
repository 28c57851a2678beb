"""A corpus that anybody can rebuild: what Python packages say of themselves, in long documents.

    python benchmarks/docs_corpus.py docs.parquet

pip downloads the wheels of ``requirements-docs.txt``, 345 MB, and checks their hashes; with the
rest that takes about three minutes. They are read as the ZIP files that they are: nothing is
installed, unpacked or run. A document is a module without its code: its signatures and docstrings
as they stand there, English prose with examples. Documents of fewer than 8,000 characters are left
out, and near-copies of those before, since a copy in training would give away a held-out document.

Every Python from 3.11 on builds the same documents, and the script checks it: the SHA-256 of their
names and texts does not depend on how Parquet was written.
"""

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from glray.errors import UserError
from glray.files import committed

REQUIREMENTS = Path(__file__).with_name("requirements-docs.txt")
SHA256 = "3f24fa9f7a1f79f851fc07abd0e45325287638b32c2e90418f58c90f7bcfb693"
"""Of the documents that these wheels make; see ``sha256_of_documents``."""

MIN_CHARACTERS = 8000
"""About 2,400 tokens of a small vocabulary: most of a document has 1,024 tokens before it."""
TEST_FOLDERS = {"test", "tests"}
GRAM_WORDS = 13
NEAR_COPY = 0.2
"""A document is left out if those before have this share of its 13-grams of words."""
SAMPLED = 8
"""One in as many 13-grams is looked at, chosen by its own hash: some 150 of a short document."""
ROW_GROUP = 256

Document = tuple[str, str]
"""A name, which is its path in the wheel, and a text."""


def download(requirements: Path, folder: Path) -> list[Path]:
    """The wheels of a requirements file, in the order of their names.

    They are those for one platform and one Python, whatever runs this. A source distribution is
    refused: to learn what it requires, pip would run code that it brings. Raises UserError.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--no-deps", "--require-hashes"]
    command += ["--python-version", "3.11", "--implementation", "cp"]
    for glibc in ("2014", "_2_27", "_2_28"):
        command += ["--platform", f"manylinux{glibc}_x86_64"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(
            f"{requirements.name}: pip ended with status {status}, so there is no corpus; what it "
            "said is above, and it keeps what it downloaded, so try again"
        )
    return sorted(folder.glob("*.whl"), key=lambda wheel: wheel.name.lower())


def documentation(source: str) -> str:
    """The signatures and docstrings of a module, in its own lines. Raises SyntaxError."""
    lines = re.split(r"\r\n|\r|\n", source)  # as Python counts them: str.splitlines knows more
    parts = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstring = node.body[0]
            start = getattr(node, "lineno", docstring.lineno)
            parts.append((start, "\n".join(lines[start - 1 : docstring.end_lineno])))
    return "\n\n".join(part for _, part in sorted(parts))


def documents(wheel: Path) -> Iterator[Document]:
    """The long documents of a wheel, in the order of their paths."""
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(archive.namelist()):
            if not path.endswith(".py") or TEST_FOLDERS & set(path.split("/")):
                continue
            try:
                text = documentation(archive.read(path).decode())
            except (SyntaxError, ValueError):  # a template, or not UTF-8
                continue
            if len(text) >= MIN_CHARACTERS:
                yield path, text


def grams(text: str) -> set[int]:
    """The hashes of a sample of the text's 13-grams of words."""
    words = re.findall(r"[A-Za-z0-9]+", text)  # what \w matches differs between Pythons
    starts = range(len(words) - GRAM_WORDS + 1)
    hashes = (zlib.crc32(" ".join(words[i : i + GRAM_WORDS]).encode()) for i in starts)
    return {value for value in hashes if value % SAMPLED == 0}


def without_near_copies(found: Iterable[Document]) -> Iterator[Document]:
    """The documents that share less than a fifth of their 13-grams with those kept before."""
    seen: set[int] = set()
    for name, text in found:
        own = grams(text)
        if len(own & seen) < NEAR_COPY * len(own):
            seen |= own
            yield name, text


def sha256_of_documents(kept: Iterable[Document]) -> str:
    """The SHA-256 of names and texts, each ended by a NUL, which none contains."""
    digest = hashlib.sha256()
    for document in kept:
        for part in document:
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def write(kept: list[Document], path: Path) -> None:
    """The documents as Parquet, in row groups that a reader can share out."""
    names, texts = zip(*kept, strict=True)
    with committed(path) as file:
        pq.write_table(
            pa.table({"name": names, "text": texts}),
            file,
            row_group_size=ROW_GROUP,
            compression="zstd",
        )


def build(out: Path) -> None:
    """Download, extract, check and write. Raises UserError."""
    if out.is_dir():
        raise UserError(
            f"{out}: is a folder, the corpus is one file; name it, as {out}/docs.parquet"
        )
    with tempfile.TemporaryDirectory() as folder:
        wheels = download(REQUIREMENTS, Path(folder))
        num_bytes = sum(wheel.stat().st_size for wheel in wheels)
        found = [document for wheel in wheels for document in documents(wheel)]
    kept = list(without_near_copies(found))
    sha256 = sha256_of_documents(kept)
    if sha256 != SHA256:
        raise UserError(
            f"{out}: not written: the {len(kept):,} documents have SHA-256 {sha256}, not {SHA256} "
            f"as pinned, so results on them could not be compared; undo the changes to "
            f"{Path(__file__).name} and {REQUIREMENTS.name}, or pin the new hash"
        )
    write(kept, out)
    print(
        f"{out}: {len(kept):,} documents, {sum(len(text) for _, text in kept):,} characters, "
        f"SHA-256 {sha256} as pinned; {len(wheels)} wheels of {num_bytes / 1e6:.0f} MB, "
        f"{len(found) - len(kept):,} near-copies left out"
    )


def main() -> None:
    """Build the corpus; what a person can fix is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.parquet")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # of the modules that are read
    try:
        build(arguments.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
