from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from glray.data.blocks.tokenizer import (
    UnknownCharacters,
    encode,
    load_tokenizer,
    token_num_bytes,
    train_bpe,
    vocab_size,
)
from glray.errors import UserError
from glray.spec.corpus import TokenizerFile

TEXTS = ["low lower lowest\n", "new newer newest\n", "ein schöner Tag\n"] * 4
BPE = train_bpe(TEXTS, 300)


def test_eos_is_0_and_all_bytes_have_a_token() -> None:
    assert BPE.token_to_id("<|endoftext|>") == 0
    assert vocab_size(train_bpe(["aaaa"], 257)) == 257


def test_training_is_deterministic() -> None:
    assert train_bpe(TEXTS, 300).to_str() == BPE.to_str()


def test_a_corpus_with_fewer_merges_gives_fewer_entries() -> None:
    assert vocab_size(train_bpe(["ab"], 1000)) == 258  # 256 bytes, EOS and "ab"


@settings(deadline=None)
@given(st.text())
def test_bytes_of_the_tokens_add_up_to_the_text(text: str) -> None:
    (ids,) = encode(BPE, [text])
    assert token_num_bytes(BPE)[np.array(ids, dtype=np.int64)].sum() == len(text.encode())
    assert BPE.decode(ids) == text


def test_a_text_that_spells_eos_is_only_text() -> None:
    (ids,) = encode(BPE, ["a<|endoftext|>b"])
    assert 0 not in ids
    assert BPE.decode(ids) == "a<|endoftext|>b"


def test_special_tokens_have_no_bytes_and_added_text_has_its_own() -> None:
    tokenizer = train_bpe(TEXTS, 300)
    size = vocab_size(tokenizer)
    tokenizer.add_tokens([AddedToken("§§", special=False)])
    tokenizer.add_special_tokens(["<pad>"])
    num_bytes = token_num_bytes(tokenizer)
    assert num_bytes[[0, size, size + 1]].tolist() == [0, 4, 0]


def test_another_vocabulary_is_measured_by_decoding() -> None:
    tokenizer = Tokenizer(models.WordLevel({"ä": 0, "word": 1, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert token_num_bytes(tokenizer).tolist() == [2, 4, 0, 1]  # no token has the id 2


def test_sentencepiece_spells_spaces_and_bytes() -> None:
    pieces = {"<0x0A>": 0, "▁a": 1, "ä": 2, "▁": 3}
    tokenizer = Tokenizer(models.BPE(pieces, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    assert token_num_bytes(tokenizer).tolist() == [1, 2, 2, 1]
    tokenizer.normalizer, tokenizer.decoder = None, None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert token_num_bytes(tokenizer).tolist() == [1, 2, 2, 1]


def test_a_byte_level_vocabulary_needs_no_decoder_to_be_measured() -> None:
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.decoder = None
    assert token_num_bytes(tokenizer).tolist() == token_num_bytes(BPE).tolist()


def test_a_file_is_loaded_without_its_truncation(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 257)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(TokenizerFile(path=str(tmp_path / "tokenizer.json")))
    assert loaded.eos_id == 0
    assert [len(ids) for ids in encode(Tokenizer.from_str(loaded.tokenizer_json), ["abcd"])] == [4]


def test_a_wrong_tokenizer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(TokenizerFile(path=str(path)))
    path.write_text("{}")
    with pytest.raises(UserError, match=str(path)):
        load_tokenizer(TokenizerFile(path=str(path)))
    BPE.save(str(path))
    with pytest.raises(UserError, match=r"has no token '</s>' among its \d+: "):
        load_tokenizer(TokenizerFile(path=str(path), eos_token="</s>"))


# ---- characters without a token


def lost(tokenizer: Tokenizer, text: str) -> dict[str, int]:
    return dict(UnknownCharacters(tokenizer).found(text, encode(tokenizer, [text])[0]))


def characters_bpe(**fields: object) -> Tokenizer:
    """A BPE of the characters a to c, without bytes."""
    vocab = {token: number for number, token in enumerate(["<unk>", "a", "b", "c", "ab"])}
    return Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], **fields))


@pytest.mark.parametrize(
    "fields", [{}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}]
)
def test_characters_without_a_token_are_counted(fields: dict[str, object]) -> None:
    tokenizer = characters_bpe(**fields)
    assert lost(tokenizer, "abc") == {}
    assert lost(tokenizer, "ab\n cééü") == {"é": 2, "ü": 1}  # white space does not count


def test_a_vocabulary_of_words_loses_the_words_that_it_lacks() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "grow": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert lost(tokenizer, "grow now") == {"n": 1, "o": 1, "w": 1}


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_bytes_stand_for_any_character_if_all_are_there(byte_fallback: bool) -> None:
    every_byte = {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    model = models.BPE(
        vocab={"<unk>": 0, **every_byte, "a": 257},
        merges=[],
        unk_token="<unk>",
        byte_fallback=byte_fallback,
    )
    assert lost(Tokenizer(model), "aé€") == ({} if byte_fallback else {"é": 1, "€": 1})


def test_a_byte_level_vocabulary_loses_nothing() -> None:
    assert lost(train_bpe(["ab"], 257), "aé€\n🙂") == {}
