"""An exported folder in ``transformers`` 4.57, in an environment of its own: the same logits and
tokens as in the version that is installed, and as in training."""

import json
import shutil
import subprocess
import venv
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from glray.data.blocks.tokenizer import encode, train_bpe
from glray.data.corpus import PreparedCorpus
from glray.run.run import Run
from glray.spec import (
    BaseFrequencies,
    EvaluationSpec,
    Extrapolation,
    GPTNeoXModel,
    Interpolation,
    LlamaModel,
    NtkAware,
    PositionsSpec,
    Yarn,
)
from glray.spec.model import ModelSpec
from glray.train.context import WorkerContext
from glray.train.export import export_tokenizer, latest_model
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm, tiny_spec

from ..disk import here

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

VERSION = "4.57.1"

POSITIONS: dict[str, PositionsSpec] = {
    "extrapolation": Extrapolation(),
    "interpolation": Interpolation(),
    "previous": Interpolation(relative_to="previous"),
    "ntk": NtkAware(),
    "theta": BaseFrequencies(thetas=(100.0, 2_000.0, 40_000.0)),
    "yarn": Yarn(),
    "yarn of 20": Yarn(relative_to=20),
}
SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 64, "intermediate_size": 64}
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(**SHAPE, num_heads=2),  # 8 of 32 dimensions turn
    "gpt_neox, half, of 500": GPTNeoXModel(
        **SHAPE, num_heads=2, rotary_fraction=0.5, rope_theta=500
    ),
    "llama of 500": LlamaModel(**SHAPE, num_heads=4, num_kv_heads=2, rope_theta=500),
    "tied llama": LlamaModel(**SHAPE, num_heads=4, num_kv_heads=1, tie_embeddings=True),
}
OLD_NAMES = ("rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct", "torch_dtype")
TOKENS = torch.arange(96)[None] * 7 % 300
"""Beyond the 64 that were trained as well."""

TEXTS = [
    "def grow(seq_len):\n    return 2 * seq_len  # ein schöner Tag\n",
    "  leading, trailing and   many spaces \n\n",
    "it 's not cleaned up , is it ?",
    "🦙 and <|endoftext|> as text",
    "",
]

READER = """
import json, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
asked = json.loads(Path(sys.argv[1]).read_text())
logits = {}
for folder in asked["models"]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits[folder] = model(torch.tensor(asked["tokens"])).logits
save_file(logits, asked["logits"])
read = {}
for folder in asked["tokenizers"]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in asked["texts"]]
    plain = [tokenizer(text, split_special_tokens=True).input_ids for text in asked["texts"]]
    texts = [tokenizer.decode(own) for own in plain]
    read[folder] = [ids, plain, texts, tokenizer.eos_token_id, tokenizer.model_max_length]
for folder in asked["models"]:
    if folder in read:
        given = AutoTokenizer.from_pretrained(folder)("word", return_tensors="pt")
        model = AutoModelForCausalLM.from_pretrained(folder)
        new = model.generate(**given, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        read[folder].append(new[0].tolist())
Path(asked["read"]).write_text(json.dumps(read))
assert transformers.__version__ == asked["version"]
"""


@pytest.fixture(scope="module")
def python_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with that version and its own dependencies, but the torch that is installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"transformers=={VERSION}"], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "installed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus
) -> dict[tuple[str, str], Path]:
    """A run for each shape and choice of positions, by their names: what it exports in ``model``,
    and in ``bare`` the same without what only version 4 reads."""
    storage, found = tmp_path_factory.mktemp("runs"), {}
    for number, (shape, kind) in enumerate(product(MODELS, POSITIONS)):
        arms = (arm("grow", 16, 32, 64, positions=POSITIONS[kind]),)
        spec = tiny_spec(
            storage / str(number),
            model=MODELS[shape],
            arms=arms,
            evaluation=EvaluationSpec(seq_lens=(64,), num_tokens=64),
        )
        train_all(spec, corpus, WorkerContext())
        (run,) = planned(spec, corpus)
        found[shape, kind] = here(run.directory)
        bare = found[shape, kind] / "bare"
        shutil.copytree(here(run.directory) / "model", bare)
        config = json.loads((bare / "config.json").read_text())
        kept = {name: value for name, value in config.items() if name not in OLD_NAMES}
        (bare / "config.json").write_text(json.dumps(kept))
    return found


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Tokenizer]:
    """Folders, and the tokenizers that training used."""
    folder, found = tmp_path_factory.mktemp("tokenizers"), {}
    plain = train_bpe(TEXTS * 5, 300)
    begun = Tokenizer.from_str(plain.to_str())
    begun.add_special_tokens(["<s>", "</s>"])
    begun.add_tokens([AddedToken("seq_len", special=False)])
    begun.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 300), ("</s>", 301)]
    )
    spaced = json.loads(plain.to_str())
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    for name, tokenizer in {
        "plain": plain,
        "begun": begun,
        "spaced": Tokenizer.from_str(json.dumps(spaced)),
    }.items():
        (folder / name).mkdir()
        export_tokenizer(tokenizer, 0, 64, folder / name)
        found[folder / name] = tokenizer
    return found


@pytest.fixture(scope="module")
def read_by_4(
    python_4: Path,
    models: dict[tuple[str, str], Path],
    tokenizers: dict[Path, Tokenizer],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Logits by folder, and what the tokenizers make of ``TEXTS``."""
    folder = tmp_path_factory.mktemp("read")
    exported = [str(directory / "model") for directory in models.values()]
    asked: dict[str, Any] = {
        "version": VERSION,
        "models": exported + [str(directory / "bare") for directory in models.values()],
        "tokens": TOKENS.tolist(),
        "logits": str(folder / "logits.safetensors"),
        "tokenizers": [str(path) for path in tokenizers] + exported[:: len(POSITIONS)],
        "texts": TEXTS,
        "read": str(folder / "read.json"),
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "reader.py").write_text(READER)
    done = subprocess.run(
        [python_4, folder / "reader.py", folder / "asked.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return load_file(asked["logits"]), json.loads(Path(asked["read"]).read_text()), done.stderr


def test_logits_are_those_of_training_and_of_the_installed_version(
    models: dict[tuple[str, str], Path],
    read_by_4: tuple[dict[str, torch.Tensor], dict[str, Any], str],
) -> None:
    by_4, _, said = read_by_4
    assert "Unrecognized keys" not in said
    furthest = 0.0
    for directory in models.values():
        network = latest_model(Run.open(directory), torch.device("cpu"))[0].network.eval()
        installed = AutoModelForCausalLM.from_pretrained(directory / "model").eval()
        with torch.no_grad():
            trained, read = network(TOKENS).logits, installed(TOKENS).logits
        torch.testing.assert_close(read, trained, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_4[str(directory / "model")], trained, rtol=0, atol=1e-5)
        furthest = max(furthest, (by_4[str(directory / "model")] - trained).abs().max().item())
    print(f"largest difference {furthest:.1e}")


def test_without_the_names_of_version_4_its_logits_are_others(
    models: dict[tuple[str, str], Path],
    read_by_4: tuple[dict[str, torch.Tensor], dict[str, Any], str],
) -> None:
    """So the test above would see it."""
    by_4, _, _ = read_by_4
    nearest = min(
        (by_4[str(directory / "model")] - by_4[str(directory / "bare")]).abs().max().item()
        for (_, kind), directory in models.items()
        if kind != "extrapolation"
    )
    print(f"smallest difference {nearest:.1e}")
    assert nearest > 1e-3


def test_tokens_are_those_of_training_and_of_the_installed_version(
    tokenizers: dict[Path, Tokenizer],
    read_by_4: tuple[dict[str, torch.Tensor], dict[str, Any], str],
) -> None:
    _, read, _ = read_by_4
    for folder, (ids, plain, texts, eos_id, longest, *generated) in read.items():
        own = AutoTokenizer.from_pretrained(folder)
        assert ids == [own(text).input_ids for text in TEXTS]
        assert plain == [own(text, split_special_tokens=True).input_ids for text in TEXTS]
        assert (eos_id, longest) == (0, 64)
        for new in generated:
            given = own("word", return_tensors="pt")
            model = AutoModelForCausalLM.from_pretrained(folder)
            args = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
            assert new == model.generate(**given, **args)[0].tolist()
        assert len(generated) == (Path(folder) not in tokenizers)
        if Path(folder) in tokenizers:
            assert plain == encode(tokenizers[Path(folder)], TEXTS)
        assert [text.lstrip(" ") for text in texts] == [text.lstrip(" ") for text in TEXTS]
