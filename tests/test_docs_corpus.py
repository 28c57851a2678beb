"""The corpus of documentation: what a document is, which are left out, and its hash."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import docs_corpus
from glray.errors import UserError

SOURCE = '''"""Shapes."""
import math

@final
class Circle:
    """Round."""

    def area(self) -> float:
        """Its area,
        in square metres."""
        return math.pi * self.radius**2

    def grow(self):
        self.radius += 1

if True:
    async def draw(
        circle,  # by reference
    ):
        # Slow.
        r"""Draw \\d."""
'''
DOCUMENTATION = '''"""Shapes."""

class Circle:
    """Round."""

    def area(self) -> float:
        """Its area,
        in square metres."""

    async def draw(
        circle,  # by reference
    ):
        # Slow.
        r"""Draw \\d."""'''


def module(*words: int) -> str:
    """A module whose docstring has these ranges of numbers, a thousand to each, as its words."""
    numbers = (
        f"{number:07}" for word in words for number in range(word * 1000, word * 1000 + 1000)
    )
    return f'"""{" ".join(numbers)}"""\n'


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    """A ZIP file of these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_document_is_a_modules_signatures_and_docstrings(line_end: str) -> None:
    assert docs_corpus.documentation(SOURCE.replace("\n", line_end)) == DOCUMENTATION


def test_a_form_feed_ends_no_line() -> None:
    source = '"""A."""\n\x0c\ndef f():\n    """B."""\n'
    assert docs_corpus.documentation(source) == '"""A."""\n\ndef f():\n    """B."""'


def test_long_modules_of_a_wheel_in_order_and_nothing_is_unpacked(tmp_path: Path) -> None:
    long = module(1).encode()
    link = zipfile.ZipInfo("p/link.py")
    link.external_attr = 0o120777 << 16
    path = wheel(
        tmp_path / "p.whl",
        {
            "p/b.py": long,
            "p/a.py": long,
            "../outside.py": long,
            "p/tests/a.py": long,
            "p/short.py": b'"""Short."""',
            "p/template.py": b'"""' + b"x" * 9000 + b'"""\n{{ name }} = 1',
            "p/latin1.py": b'"""' + b"\xe9" * 9000 + b'"""',
            "p/nul.py": b'"""' + b"x" * 9000 + b'\0"""',
            "p/long.rst": long,
        },
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert [name for name, _ in docs_corpus.documents(path)] == [
        "../outside.py",
        "p/a.py",
        "p/b.py",
    ]
    assert [file.name for file in tmp_path.rglob("*")] == ["p.whl"]


def test_a_near_copy_of_what_came_before_is_left_out() -> None:
    found = [
        ("first", module(1, 2, 3, 4, 5, 6, 7)),
        ("copy", module(1, 2, 3, 4, 5, 6, 7)),
        ("quarter", module(7, 8, 9, 10)),
        ("sixth", module(6, 11, 12, 13, 14, 15)),
        ("of two", module(16, 17, 18, 19, 20, 21, 1, 11)),
    ]
    kept = [name for name, _ in docs_corpus.without_near_copies(found)]
    assert kept == ["first", "sixth"]


def test_the_hash_is_of_names_and_texts() -> None:
    kept = [("a.py", "é"), ("b.py", "")]
    assert docs_corpus.sha256_of_documents(kept) == (
        "c91f235ef6e7553a53b38c9336c3543f1522100f421a3356df6d869a1ccf0e3a"
    )  # printf 'a.py\\0é\\0b.py\\0\\0' | sha256sum


@pytest.fixture
def one_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Instead of a download, one small wheel of one document."""
    path = wheel(tmp_path / "p.whl", {"p/a.py": module(1).encode()})
    monkeypatch.setattr(docs_corpus, "download", lambda requirements, folder: [path])
    return docs_corpus.sha256_of_documents(docs_corpus.documents(path))


def test_what_is_built_is_read_back(
    one_wheel: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(docs_corpus, "SHA256", one_wheel)
    out = tmp_path / "docs.parquet"
    docs_corpus.build(out)
    assert pq.read_table(out).to_pylist() == [{"name": "p/a.py", "text": module(1).strip()}]
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"{out}: 1 documents, 8,005 characters, SHA-256 {one_wheel} as pinned"
    )


def test_another_hash_writes_nothing_and_says_both(one_wheel: str, tmp_path: Path) -> None:
    out = tmp_path / "docs.parquet"
    with pytest.raises(UserError) as caught:
        docs_corpus.build(out)
    message = str(caught.value)
    assert one_wheel in message
    assert docs_corpus.SHA256 in message
    assert not out.exists()


def test_a_folder_is_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    command = [sys.executable, docs_corpus.__file__, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: is a folder, the corpus is one file; name it, as "
        f"{tmp_path}/docs.parquet\n"
    )


def test_every_wheel_is_pinned_and_says_its_licence() -> None:
    lines = docs_corpus.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    for pin in pins:
        assert re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}  # \S.*", pin), pin


@pytest.mark.soak  # 345 MB and three minutes
@pytest.mark.download
@pytest.mark.timeout(1800)
def test_the_corpus_is_the_pinned_one(tmp_path: Path) -> None:
    command = [sys.executable, docs_corpus.__file__, str(tmp_path / "docs.parquet")]
    assert subprocess.run(command, check=False).returncode == 0
