"""Several sources: blocks, ledgers and held-out documents of each, and their weights."""

import hashlib
import json
from pathlib import Path

import pytest

from glray.data.blocks.snapshot import find_prepared
from glray.data.blocks.tokenizer import train_bpe
from glray.ray import prepare as prepare_module
from glray.ray.prepare import prepare
from glray.spec import (
    JsonlCorpus,
    MixtureCorpus,
    PipelineSpec,
    SourceSpec,
    TextCorpus,
    TokenizerFile,
)

from .preparing import drawn, prepared, stream, text, texts_pipeline, write_texts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 60 texts."""
    return write_texts(tmp_path / "corpus")


@pytest.fixture
def mixture(corpus: Path) -> PipelineSpec:
    """The folder of 60 texts, three chunks of it to one of 20 others of which five are the same."""
    path = corpus.parent / "more.jsonl"
    lines = [json.dumps({"text": text(number)}) for number in [*range(5), *range(100, 115)]]
    path.write_text("\n".join(lines))
    tokenizer = corpus.parent / "tokenizer.json"
    train_bpe([text(0)], 280).save(str(tokenizer))
    sources = (
        SourceSpec(name="texts", weight=3, corpus=TextCorpus(paths=(str(corpus),))),
        SourceSpec(name="more", weight=1, corpus=JsonlCorpus(paths=(str(path),))),
    )
    return texts_pipeline(
        corpus,
        corpus=MixtureCorpus(sources=sources),
        tokenizer=TokenizerFile(path=str(tokenizer)),
    )


def weighted(spec: PipelineSpec, *weights: int) -> PipelineSpec:
    declared = spec.model_dump()
    for source, weight in zip(declared["corpus"]["sources"], weights, strict=True):
        source["weight"] = weight
    return PipelineSpec.model_validate(declared)


def test_each_source_has_its_own_blocks_and_ledger(mixture: PipelineSpec) -> None:
    corpus = prepare(mixture, lambda line: None)
    texts, more = corpus.sources
    assert [(s.name, s.weight, s.blocks.documents) for s in (texts, more)] == [
        ("texts", 3, 60),
        ("more", 1, 20),
    ]
    assert more.blocks.bytes == sum(
        len(text(number).encode()) for number in [*range(5), *range(100, 115)]
    )
    assert [source.blocks.num_tokens for source in corpus.sources] == [
        len(stream(source.blocks)) for source in corpus.sources
    ]
    assert more.blocks.at_least(1) == (more.blocks.training_documents, more.blocks.num_tokens)


def test_a_document_of_two_sources_is_held_out_once(mixture: PipelineSpec) -> None:
    corpus = prepare(mixture, lambda line: None)
    hashes = [document.sha256 for document in corpus.heldout()]
    contents = [text(number) for number in [*range(60), *range(100, 115)]]
    returned = {sha256 for source in corpus.sources for sha256 in source.blocks.returned}
    expected = {hashlib.sha256(c.encode()).hexdigest() for c in contents if drawn(c)} - returned
    assert len(hashes) == len(set(hashes))
    assert set(hashes) == expected


def test_a_new_weight_tokenizes_nothing(
    mixture: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(mixture, lambda line: None)
    monkeypatch.setattr(prepare_module, "_in_parallel", None)  # would raise if it were called
    after = find_prepared(weighted(mixture, 1, 2))
    assert after is not None
    assert after.directories == before.directories
    assert after.identity != before.identity
    order = after.order(chunk_len=8, seed=0)
    assert order.chunks(0, 6).source.tolist() == [1, 0, 1, 1, 0, 1]


def test_a_new_source_tokenizes_itself_alone(mixture: PipelineSpec) -> None:
    alone = mixture.derive(corpus=mixture.sources[0].corpus)
    blocks = prepared(alone)
    changed = blocks.file_path(0).stat().st_mtime_ns
    corpus = prepare(mixture, lambda line: None)
    assert corpus.sources[0].blocks == blocks
    assert blocks.file_path(0).stat().st_mtime_ns == changed


def test_a_trained_tokenizer_learns_equally_from_each_source(mixture: PipelineSpec) -> None:
    spec = mixture.derive(tokenizer={"kind": "bpe", "vocab_size": 300})
    lines: list[str] = []
    corpus = prepare(spec, lines.append)
    both = [text(n) for n in [*range(60), *range(5), *range(100, 115)] if not drawn(text(n))]
    assert corpus.vocabulary.tokenizer_path.read_text() == train_bpe(both, 300).to_str()
    assert sum("trained a byte-level BPE" in line for line in lines) == 1
