"""Sources on a real S3-compatible server, on loopback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from glray.data.read.documents import Document, read_part, split_file
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.spec.corpus import JsonlCorpus, ParquetCorpus, SourceCorpus, TextCorpus


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket ``texts``, which a URI without options reaches."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "glray",
        "AWS_SECRET_ACCESS_KEY": "glray",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{endpoint}",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="texts")
    yield bucket
    bucket.objects.delete()
    bucket.delete()


def put(bucket: Any, *keys: str) -> None:
    for key in keys:
        bucket.put_object(Key=key, Body=key.encode())


def uris(*paths: str) -> list[str]:
    return [file.uri for file in list_source(TextCorpus(paths=paths))]


def contents(corpus: SourceCorpus, part_bytes: int = 2**60) -> list[object]:
    return [
        item.content
        for file in list_source(corpus)
        for part in split_file(file, corpus, part_bytes)
        for item in read_part(part, corpus)
        if isinstance(item, Document)
    ]


def test_objects_folders_and_globs_give_each_object_once_in_order(bucket: Any) -> None:
    put(bucket, "b.txt", "deep/a.txt", "deep/c.md", "deep/er/d.txt", "e.txt.gz")
    assert uris("s3://texts/deep/a.txt", "s3://texts/deep", "s3://texts/deep/*.txt") == [
        "s3://texts/deep/a.txt",
        "s3://texts/deep/er/d.txt",
    ]
    assert uris("s3://texts") == [
        "s3://texts/b.txt",
        "s3://texts/deep/a.txt",
        "s3://texts/deep/er/d.txt",
        "s3://texts/e.txt.gz",
    ]
    assert uris("s3://texts/**/*.txt") == uris("s3://texts")[:3]
    assert uris("s3://texts/*/[a-c].*") == ["s3://texts/deep/a.txt", "s3://texts/deep/c.md"]


@pytest.mark.parametrize("key", ["two words.txt", "a%20b.txt", "what?.txt", "ä#1+1=2&c.txt"])
def test_any_key_is_listed_and_read(bucket: Any, key: str) -> None:
    put(bucket, key)
    assert contents(TextCorpus(paths=("s3://texts",))) == [key]


def test_a_uri_can_name_its_endpoint(
    bucket: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "a.txt", "b/c.txt")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    query = f"?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    assert contents(TextCorpus(paths=(f"s3://texts{query}",))) == ["a.txt", "b/c.txt"]
    assert uris(f"s3://texts/b/*{query}") == [f"s3://texts/b/c.txt{query}"]


def test_lines_and_tables_are_read_in_pieces(bucket: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [str(number) * 20 for number in range(100)]
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    bucket.put_object(Key="a.jsonl", Body=lines.encode())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)
    bucket.upload_file(str(tmp_path / "a.parquet"), "a.parquet")
    assert contents(JsonlCorpus(paths=("s3://texts",)), part_bytes=700) == texts
    assert contents(ParquetCorpus(paths=("s3://texts",)), part_bytes=700) == texts


def test_a_replaced_object_is_another_version(bucket: Any) -> None:
    corpus = TextCorpus(paths=("s3://texts",))
    put(bucket, "a.txt")
    before = list_source(corpus)
    assert list_source(corpus) == before
    bucket.put_object(Key="a.txt", Body=b"longer than before")
    assert list_source(corpus) != before


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("s3://texts/absent.txt", "absent.txt does not exist"),
        ("s3://absent/a.txt", "s3://absent/a.txt"),
        ("s3://texts/*.md", r"s3://texts/\*.md matches no file"),
        ("s3://texts/deep", r"s3://texts/deep holds no file \*.txt"),
        ("s3://te*ts/a.txt", r"s3://te\*ts/a.txt does not exist"),
    ],
)
def test_what_is_not_there_is_one_line(bucket: Any, uri: str, problem: str) -> None:
    put(bucket, "a.txt", "deep/b.md")
    with pytest.raises(UserError, match=problem):
        uris(uri)


def test_a_store_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "glray")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "glray")
    uri = "s3://texts/a.txt?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(UserError, match=r"s3://texts/a.txt.* cannot be reached: .*connect"):
        uris(uri)
