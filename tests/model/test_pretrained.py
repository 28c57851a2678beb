"""Folders that runs start from: what is read of them, and each one that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from glray.errors import UserError
from glray.model.attention import CAUSAL
from glray.model.config import model_config, starting_model
from glray.model.decoder import build_model, load_pretrained
from glray.model.pretrained import check_unchanged, read_pretrained

from ..tiny import tiny_spec

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **SHAPE, hidden_dropout=0.1, attention_dropout=0.1, use_parallel_residual=False
        )
    )


def llama() -> PreTrainedModel:
    """Tied embeddings, grouped queries, a padding token, bfloat16."""
    config = LlamaConfig(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=7, bos_token_id=5
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "llama"
    llama().save_pretrained(path)
    return path


def loaded(path: Path, max_seq_len: int = 32) -> PreTrainedModel:
    folder = read_pretrained(str(path))
    config = model_config(folder, vocab_size=300, eos_id=3, max_seq_len=max_seq_len)
    return load_pretrained(folder, config, CPU)


def change(path: Path, **changes: object) -> None:
    """Change entries of the folder's config.json."""
    declared = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(declared | changes))


@pytest.mark.parametrize("make", [neox, llama])
@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
def test_a_folder_gives_its_architecture_and_its_weights_in_float32(
    tmp_path: Path, make: Callable[[], PreTrainedModel], shard_size: str
) -> None:
    original = make()
    original.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "30KB")
    model = loaded(tmp_path)
    assert type(model) is type(original)
    weights = original.float().state_dict()
    assert model.state_dict().keys() == weights.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name]), name
    tokens = torch.randint(320, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original.eval()(tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected)  # in training mode: no dropout


@pytest.mark.parametrize("make", [neox, llama])
def test_what_is_loaded_is_the_kind_of_model_that_is_built(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    make().save_pretrained(tmp_path)
    one = loaded(tmp_path)
    other = build_model(one.config, 0, CPU)
    assert one.training
    assert other.training
    assert one.config.to_dict() == other.config.to_dict()
    assert one.config._attn_implementation == other.config._attn_implementation == CAUSAL
    assert one.generation_config.to_dict() == other.generation_config.to_dict()
    assert str(tmp_path) not in str(one.config.to_dict())


def test_the_config_is_the_folders_but_for_what_training_here_decides(tmp_path: Path) -> None:
    neox().save_pretrained(tmp_path)
    config = loaded(tmp_path, max_seq_len=32).config
    assert config.use_parallel_residual is False
    assert (config.hidden_dropout, config.attention_dropout) == (0.0, 0.0)
    assert (config.bos_token_id, config.eos_token_id) == (3, 3)
    assert config.max_position_embeddings == 32
    assert loaded(tmp_path, max_seq_len=8).config.max_position_embeddings == 16


def test_the_padding_token_is_trained_as_any_other(folder: Path) -> None:
    model = loaded(folder)
    tokens = torch.full((1, 4), 7)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert model.get_input_embeddings().padding_idx is None
    assert model.get_input_embeddings().weight.grad[7].any()


def test_an_early_pythias_config_is_read(tmp_path: Path) -> None:
    # As EleutherAI published it: rotary_pct and torch_dtype; buffers among the weights.
    neox().save_pretrained(tmp_path)
    declared = json.loads((tmp_path / "config.json").read_text())
    for name in ("rope_parameters", "dtype", "attention_bias"):
        del declared[name]
    declared |= {"rotary_pct": 0.5, "rotary_emb_base": 500, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(declared))
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = loaded(tmp_path).config
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 500


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    model = llama()
    for name in ("one", "other"):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").write_text(name)
    before = read_pretrained(str(tmp_path / "one")).sha256
    assert before == read_pretrained(str(tmp_path / "other")).sha256
    change(tmp_path / "one", rms_norm_eps=1e-5)
    assert read_pretrained(str(tmp_path / "one")).sha256 != before
    weights = tmp_path / "other" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_pretrained(str(tmp_path / "other")).sha256 != before


@pytest.mark.parametrize("number", [1, 2])
def test_each_shard_is_part_of_the_hash(tmp_path: Path, number: int) -> None:
    neox().save_pretrained(tmp_path, max_shard_size="100KB")
    before = read_pretrained(str(tmp_path)).sha256
    shard = sorted(tmp_path.glob("model-*.safetensors"))[number - 1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert read_pretrained(str(tmp_path)).sha256 != before


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers(folder: Path) -> None:
    with pytest.raises(UserError, match=r"has 320 rows, less than the tokenizer's 1,321 ids"):
        model_config(read_pretrained(str(folder)), vocab_size=1321, eos_id=0, max_seq_len=32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, ("'mistral'", "gpt_neox or llama")),
        ({"model_type": None}, ("None", "gpt_neox or llama")),
        ({"model_type": ["llama"]}, ("['llama']", "gpt_neox or llama")),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            ("dynamic", "none of default, linear"),
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantized",)),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, ("code of its own", "never run")),
        ({"hidden_size": 33}, ("no configuration of a llama model", "33")),
        ({"num_hidden_layers": "two"}, ("no configuration of a llama model", "two")),
    ],
)
def test_an_architecture_that_glray_does_not_know_is_refused(
    folder: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    change(folder, **changes)
    with pytest.raises(UserError) as error:
        read_pretrained(str(folder))
    message = str(error.value)
    assert "\n" not in message
    for word in (str(folder / "config.json"), *words):
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "words"), [("", "not JSON"), ("\xff", "not JSON"), ("[]", "list, not a mapping")]
)
def test_a_damaged_config_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        read_pretrained(str(folder))


def test_a_folder_with_scaled_positions_may_be_scored_but_not_trained(
    folder: Path, tmp_path: Path
) -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    change(folder, rope_parameters=scaled)
    assert read_pretrained(str(folder)).config.rope_parameters == scaled
    with pytest.raises(UserError, match="rope_type 'linear', only 'default' can be trained"):
        starting_model(tiny_spec(tmp_path, model=None, init=str(folder)))


def test_a_name_on_a_hub_is_no_folder() -> None:
    with pytest.raises(
        UserError, match=r"pythia-14m/config\.json does not exist.*nothing is downl"
    ):
        read_pretrained("EleutherAI/pythia-14m")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin, .*; write it with save_pretr"):
        read_pretrained(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"llama has no model\.safetensors; write it with"):
        read_pretrained(str(folder))


def test_cut_or_missing_weights_are_refused(tmp_path: Path) -> None:
    neox().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{shard.name} is damaged"):
        read_pretrained(str(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is missing"):
        read_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="is no index of shards"):
        read_pretrained(str(tmp_path))


NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({NORM: None}, f"lacks 1 of the weights that its config.json asks for, such as {NORM}"),
        ({NORM: torch.ones(3)}, rf"{NORM} has shape \[3\], but config.json asks for \[32\]"),
        (
            {"lm_head.bias": torch.ones(3)},
            "has 1 weights that .* does not ask for, such as lm_head",
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    folder: Path, changed: dict[str, Any], words: str
) -> None:
    weights = load_file(folder / "model.safetensors") | changed
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=words):
        loaded(folder)


def test_a_folder_that_changed_since_the_pipeline_was_started_is_refused(folder: Path) -> None:
    before = read_pretrained(str(folder))
    sha256 = before.sha256
    change(folder, rms_norm_eps=1e-5)
    with pytest.raises(UserError, match=rf"has SHA-256 \w{{12}}…, {sha256[:12]}… when"):
        check_unchanged(read_pretrained(str(folder)), sha256)


@pytest.mark.parametrize(
    "names", [["pytorch_model.bin"], ["../model.safetensors"], [7], []], ids=str
)
def test_an_index_leads_to_safetensors_beside_it_alone(
    folder: Path, names: list[str | int]
) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {str(n): name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"no safetensors file|no index of shards"):
        read_pretrained(str(folder))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2", "rope_theta": 1e4}}, "factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 3}},
            "partial_rotary_factor",
        ),
        ({"num_attention_heads": -4, "num_key_value_heads": -4}, "-4 heads"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": -7}, "max_position_embeddings"),
    ],
)
def test_positions_that_cannot_be_are_refused(
    folder: Path, changes: dict[str, Any], name: str
) -> None:
    change(folder, **changes)
    with pytest.raises(UserError, match=rf"config\.json: {name}|no configuration"):
        read_pretrained(str(folder))


def test_a_model_without_heads_is_refused(tmp_path: Path) -> None:
    neox().save_pretrained(tmp_path)
    change(tmp_path, num_attention_heads=0)
    with pytest.raises(UserError, match=r"config\.json: 0 heads|no configuration"):
        read_pretrained(str(tmp_path))


def test_what_transformers_cannot_load_is_one_line(folder: Path) -> None:
    change(folder, hidden_act="nope")
    with pytest.raises(UserError, match="transformers cannot load it"):
        loaded(folder)
