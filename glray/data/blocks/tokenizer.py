"""Training, loading and measuring tokenizers of the ``tokenizers`` library.

Text is only text here: a document that spells out a special token is encoded as its characters,
and truncation or padding set in a ``tokenizer.json`` is switched off.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from glray.errors import MissingError, UserError
from glray.spec.corpus import TokenizerFile

EOS_TOKEN = "<|endoftext|>"
"""Ends each document in a vocabulary that is trained here; its id is 0."""

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How SentencePiece spells a byte that no other token has."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most ``vocab_size`` entries (Sennrich et al. 2016; GPT-2's alphabet).

    Fewer where the texts yield fewer merges. The same texts give the same vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


@dataclass(frozen=True)
class Encoding:
    """How a document becomes tokens."""

    tokenizer_json: str
    vocab_size: int
    eos_id: int
    sha256: str = ""
    """Of the ``tokenizer.json`` file: the tokens are known by it."""

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """Of the tokens: the smallest that holds every id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"


def read_tokenizer_json(spec: TokenizerFile) -> bytes:
    """The content of the given ``tokenizer.json``. Raises UserError if it does not exist."""
    path = Path(spec.path).expanduser()
    if not path.is_file():
        raise MissingError(f"tokenizer.path: {spec.path} does not exist; give a tokenizer.json")
    return path.read_bytes()


def load_tokenizer(spec: TokenizerFile) -> Encoding:
    """The encoding of a given ``tokenizer.json``. Raises UserError."""
    return encoding_of(read_tokenizer_json(spec), spec.eos_token, f"tokenizer.path: {spec.path}")


def encoding_of(content: bytes, eos_token: str, where: str) -> Encoding:
    """The encoding of a ``tokenizer.json``. Raises UserError, which begins with ``where``."""
    tokenizer = parse_tokenizer(content, where)
    num_ids, eos_id = vocab_size(tokenizer), tokenizer.token_to_id(eos_token)
    if eos_id is None:
        raise UserError(
            f"{where} has no token {eos_token!r} among its {num_ids:,}: documents could not be "
            "told apart; set tokenizer.eos_token to the token that ends a document"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return Encoding(tokenizer.to_str(), num_ids, eos_id, sha256)


def parse_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``. Raises UserError, which begins with ``where``."""
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        problem = " ".join(str(error).split())
        raise UserError(f"{where} is no tokenizer.json: {problem}") from None
    if not tokenizer.get_vocab():
        raise UserError(f"{where} has no token: no text could be encoded; give a tokenizer's own")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocab_size(tokenizer: Tokenizer) -> int:
    """Ids from 0 to the highest one, added tokens and gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, without any special token."""
    tokenizer.encode_special_tokens = True  # as text, that is
    return [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def prepended_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text, such as a BOS; ``encode`` omits it."""
    encoding = tokenizer.encode("0 a A")
    first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    return list(encoding.ids[:first])


def without_additions(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that adds no token to a text, or to two, as ``encode`` adds none."""
    alone = Tokenizer.from_str(tokenizer.to_str())
    if any(alone.num_special_tokens_to_add(is_pair) for is_pair in (False, True)):
        alone.post_processor = None
    return alone


class UnknownCharacters:
    """Which characters of texts a tokenizer loses: it has neither a token nor bytes for them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        declared = json.loads(tokenizer.to_str())
        vocabulary, model = tokenizer.get_vocab(), declared["model"]
        is_byte_level = "ByteLevel" in json.dumps(declared["pre_tokenizer"])
        spelt = pre_tokenizers.ByteLevel.alphabet() if is_byte_level else ()
        if model.get("byte_fallback"):
            spelt = [f"<0x{byte:02X}>" for byte in range(256)]
        self._tokenizer = tokenizer
        self._unk_id = model.get("unk_id", vocabulary.get(model.get("unk_token") or ""))
        self._has_every_byte = bool(spelt) and all(token in vocabulary for token in spelt)
        self._has: dict[str, bool] = {}  # of each character met, alone

    def found(self, text: str, ids: list[int]) -> Counter[str]:
        """How often each character of the text, whose ids these are, is lost; white space, which
        some tokenizers leave out by design, does not count."""
        if self._has_every_byte:
            return Counter()
        for character in set(text) - self._has.keys():
            self._has[character] = character.isspace() or self._keeps(character)
        lacking = [character for character in set(text) if not self._has[character]]
        if self._unk_id is None:  # what it lacks it leaves out
            return Counter({character: text.count(character) for character in lacking})
        if not lacking and self._unk_id not in ids:
            return Counter()
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        kept = np.zeros(len(text), dtype=bool)
        for token_id, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            kept[start:stop] |= token_id != self._unk_id
        lost = (text[place] for place in np.flatnonzero(~kept).tolist())
        return Counter(character for character in lost if not character.isspace())

    def _keeps(self, character: str) -> bool:
        ids = self._tokenizer.encode(character, add_special_tokens=False).ids
        return bool(ids) and self._unk_id not in ids


def token_num_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each token id stands for, int64[vocab_size]; special tokens stand for 0.

    Exact for byte-level vocabularies, where a character of the token is a byte of the text, and for
    SentencePiece's, where ``▁`` is a space and ``<0x0A>`` a byte. Of others it is the length of the
    token decoded alone.
    """
    declared = json.loads(tokenizer.to_str())
    how = json.dumps([declared["pre_tokenizer"], declared["decoder"], declared["normalizer"]])
    byte_level, sentence_piece = "ByteLevel" in how, "\\u2581" in how
    added = tokenizer.get_added_tokens_decoder()
    num_bytes = np.zeros(vocab_size(tokenizer), dtype=np.int64)
    for token, token_id in tokenizer.get_vocab().items():
        if token_id in added:  # spelt as plain text, whatever the vocabulary
            num_bytes[token_id] = 0 if added[token_id].special else len(token.encode())
        elif byte_level:
            num_bytes[token_id] = len(token)
        elif sentence_piece:
            is_byte = BYTE_TOKEN.fullmatch(token) is not None
            num_bytes[token_id] = 1 if is_byte else len(token.replace("▁", " ").encode())
        else:
            num_bytes[token_id] = len(tokenizer.decode([token_id]).encode())
    return num_bytes
