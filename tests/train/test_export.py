"""What an exported folder says of itself, to whoever reads it, and how its tokenizer encodes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glray.data.blocks.tokenizer import encode, load_tokenizer, prepended_ids, train_bpe
from glray.data.corpus import PreparedCorpus
from glray.files import read_json
from glray.run.run import Run
from glray.spec import (
    GPTNeoXModel,
    Interpolation,
    LlamaModel,
    PositionsSpec,
    TokenizerFile,
    Yarn,
)
from glray.spec.model import ModelSpec
from glray.train.context import WorkerContext
from glray.train.export import export_run, export_tokenizer, latest_model
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm

from ..disk import here
from ..tiny import tiny_spec

SHAPE: dict[str, Any] = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 32}
NEOX = GPTNeoXModel(**SHAPE, num_heads=2)
LLAMA = LlamaModel(**SHAPE, num_heads=4, num_kv_heads=2, tie_embeddings=True, rope_theta=500)


def stopped(
    tmp_path: Path, corpus: PreparedCorpus, model: ModelSpec, positions: PositionsSpec, flushes: int
) -> tuple[int, Path, PreTrainedModel]:
    """A run through 8, 16 and 32 tokens, 4 steps each, stopped at the end of one; what it would
    export."""
    arms = (arm("grow", 8, 16, 32, positions=positions),)
    spec = tiny_spec(tmp_path / "runs", model=model, arms=arms)
    asked = iter([False] * flushes)
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked, True)))
    (run,) = planned(spec, corpus)
    folder = tmp_path / "exported"
    step = export_run(run.directory, folder)
    network = latest_model(run, torch.device("cpu"))[0].network.eval()
    return step, folder, network


def assert_same_logits(folder: Path, network: PreTrainedModel) -> None:
    read = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(48)[None]  # beyond what was trained as well
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, network(tokens).logits, rtol=0, atol=1e-5)


def test_an_unfinished_run_exports_the_length_and_the_scaling_that_it_has_reached(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    step, folder, network = stopped(tmp_path, corpus, LLAMA, Yarn(), flushes=4)
    assert step == 8  # the end of the stage of 16
    config = read_json(folder / "config.json")
    assert config.pop("transformers_version").startswith("5.")
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 0,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "pad_token_id": None,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "factor": 2.0,
            "original_max_position_embeddings": 8,
            "rope_theta": 500.0,
            "rope_type": "yarn",
        },
        "rope_scaling": {
            "factor": 2.0,
            "original_max_position_embeddings": 8,
            "rope_type": "yarn",
        },
        "rope_theta": 500.0,
        "tie_word_embeddings": True,
        "tokens_by_seq_len": {"8": 256, "16": 256},
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 384,
    }
    assert read_json(folder / "tokenizer_config.json")["model_max_length"] == 16
    assert_same_logits(folder, network)


def test_a_finished_gpt_neox_says_the_same_in_the_words_of_both_versions(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    step, folder, network = stopped(tmp_path, corpus, NEOX, Interpolation(), flushes=99)
    assert step == 12
    config = read_json(folder / "config.json")
    assert {name: config[name] for name in config if name[0] == "r" or "max" in name} == {
        "max_position_embeddings": 32,
        "rope_parameters": {
            "factor": 4.0,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10_000.0,
            "rope_type": "linear",
        },
        "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
        "rotary_emb_base": 10_000.0,
        "rotary_pct": 0.25,
    }
    assert read_json(folder / "tokenizer_config.json") == {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 32,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = read_json(folder / "generation_config.json")
    del generation["transformers_version"]
    assert generation == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 0
    assert_same_logits(folder, network)


# ---- the tokenizer

TEXTS = ["low lower lowest\n", "  new newer  newest\n", "ein schöner Tag , it 's\n"] * 4


def read_back(tokenizer: Tokenizer, path: Path, eos_id: int = 0) -> PreTrainedTokenizerBase:
    export_tokenizer(tokenizer, eos_id, 64, path)
    (path / "config.json").write_text('{"model_type": "llama"}')  # which has a class of its own
    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    tokenizer = train_bpe(TEXTS, 300)
    return tokenizer, read_back(tokenizer, tmp_path_factory.mktemp("plain"))


@given(st.text() | st.sampled_from(TEXTS))
def test_a_text_becomes_the_tokens_of_training_and_the_text_again(
    plain: tuple[Tokenizer, PreTrainedTokenizerBase], text: str
) -> None:
    tokenizer, read = plain
    ids = read(text, split_special_tokens=True).input_ids
    assert ids == encode(tokenizer, [text])[0]
    assert read.decode(ids) == text


def begun(tokenizer: Tokenizer) -> Tokenizer:
    """With <s> before a text and </s> after it."""
    begun = Tokenizer.from_str(tokenizer.to_str())
    begun.add_special_tokens(["<s>", "</s>"])
    begun.add_tokens([AddedToken("newer", special=False)])
    begun.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, begun.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return begun


def test_no_token_is_added_that_training_has_not_seen(
    plain: tuple[Tokenizer, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = begun(plain[0])
    assert prepended_ids(tokenizer) == [tokenizer.token_to_id("<s>")]
    assert prepended_ids(plain[0]) == []
    read = read_back(tokenizer, tmp_path)
    assert read("  new newer").input_ids == encode(tokenizer, ["  new newer"])[0]
    assert read("low", "new").input_ids == [*read("low").input_ids, *read("new").input_ids]
    assert read.convert_tokens_to_ids(["<s>", "</s>"]) == [
        tokenizer.token_to_id("<s>"),
        tokenizer.token_to_id("</s>"),
    ]
    assert (read.bos_token_id, read.eos_token_id) == (0, 0)
    assert read("<|endoftext|>low").input_ids == [0, *read("low").input_ids]
    assert read.decode(read("low newer").input_ids) == "low newer"


def test_a_post_processor_that_adds_nothing_stays(
    plain: tuple[Tokenizer, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str(plain[0].to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    export_tokenizer(tokenizer, 0, 64, tmp_path)
    assert read_json(tmp_path / "tokenizer.json") == json.loads(tokenizer.to_str())


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_spaces_normal_forms_and_lengths_are_those_of_training(
    plain: tuple[Tokenizer, PreTrainedTokenizerBase], tmp_path: Path, add_prefix_space: bool
) -> None:
    given_file = tmp_path / "given.json"
    tokenizer = Tokenizer.from_str(plain[0].to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(given_file))
    trained = Tokenizer.from_str(load_tokenizer(TokenizerFile(path=str(given_file))).tokenizer_json)
    read = read_back(trained, tmp_path)
    for text in TEXTS:
        assert read(text).input_ids == encode(trained, [text])[0]
    assert len(read(TEXTS[0]).input_ids) > 3
    assert read.add_prefix_space is add_prefix_space
    assert read("low").input_ids == encode(trained, ["low"])[0]


def test_a_pipeline_that_starts_from_an_export_goes_on_with_its_tokens(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    folder = tmp_path / "start"
    shutil.copytree(here(finished[0].directory) / "model", folder)
    spec = tiny_spec(tmp_path / "runs", model=None, init=str(folder), only=("grow",))
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert run.is_finished
    ours, theirs = (read_json(path / "config.json") for path in (run.directory / "model", folder))
    for config in (ours, theirs):
        del config["tokens_by_seq_len"], config["classifier_dropout"]  # without is trained
    assert ours == theirs
