"""Renders ``docs/scale.md`` from ``docs/scale.md.j2`` and what ``benchmarks/results`` measured.

python docs/scale.py
"""

import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS
from glray.files import read_json, write_text
from glray.model.flops import training_flops_per_token

DOCS = Path(__file__).parent

MODEL = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
"""The shape of Llama 3 8B."""
GPUS, TOKENS, BATCH = 1024, 10**12, 2**22
SEQ_LENS = (4096, 8192, 32_768, 131_072)
PEAK, MFU = 989e12, 0.4
"""FLOP/s of an H100 in bfloat16 as NVIDIA states it, and the share of it that is assumed."""
MEMORY_BYTES = 70e9
"""Of the 80 GB of a GPU, for activations; the rest is for what FSDP2 gathers and for CUDA."""
NETWORK_BYTES = 50e9
"""A second, of one GPU: 400 Gbit/s, reached in full."""
STATE_BYTES = 12
"""Of a parameter and its moments, in float32."""


def page() -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(DOCS),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    measured = {
        name: read_json(RESULTS / f"{name}.json", "measure it again")
        for name in ("checkpoint", "losses", "parity", "prepare", "scale", "startup", "stream")
    }
    return environment.get_template("scale.md.j2").render(
        gpus=GPUS,
        batch=BATCH,
        per_rank=BATCH // GPUS,
        start_seconds=_start_seconds(measured["parity"]),
        **estimates(measured),
        **measured,
    )


def parameters() -> int:
    """Of the model, its embedding and its untied output head included; norms are left out."""
    embedding = MODEL.vocab_size * MODEL.hidden_size
    matrices = training_flops_per_token(MODEL, 0) - 6 * MODEL.num_hidden_layers * MODEL.hidden_size
    return matrices // 6 + embedding


def activation_bytes(*, recomputed: bool) -> int:
    """Of a token: 34 bytes for each layer and value of its width in 16 bits with fused attention
    (Korthikanti et al. 2022, arXiv:2205.05198, equation 2 without its quadratic term); recomputed,
    the input of each block and one block's own."""
    width, layers = MODEL.hidden_size, MODEL.num_hidden_layers
    return (2 * layers + 34) * width if recomputed else 34 * layers * width


def estimates(measured: dict[str, Any]) -> dict[str, Any]:
    """Every number of the page that is computed and not measured."""
    rate = GPUS * PEAK * MFU
    lengths = [_length(n, rate) for n in SEQ_LENS]
    step_seconds = lengths[0]["step_seconds"]
    state = parameters() * STATE_BYTES
    share = state / GPUS
    checkpoint, stream, prepare = (measured[n] for n in ("checkpoint", "stream", "prepare"))
    bytes_per_second = checkpoint["gigabytes"] * 1e9 / checkpoint["written_beside_steps_seconds"]
    slowest = min(stream["mtok_per_second"]["glray"].values()) * 1e6
    rounds = [r["mtok_per_second"]["glray"] for r in prepare["rounds"]]
    per_core = sorted(rounds)[len(rounds) // 2] * 1e6 / prepare["processors"]
    gathered = 8 * parameters()
    return {
        "parameters": parameters(),
        "lengths": lengths,
        "tokens_per_second": BATCH / step_seconds,
        "per_gpu": BATCH / step_seconds / GPUS,
        "slowest_stream": slowest,
        "prepare_core_hours": TOKENS / per_core / 3600,
        "prepare_per_core": per_core,
        "state_gb": state / 1e9,
        "share_mb": share / 1e6,
        "copy_seconds": checkpoint["blocked_seconds"]["median_of_the_others"]
        * share
        / (checkpoint["gigabytes"] * 1e9),
        "write_seconds": share / bytes_per_second,
        "gathered_gb": gathered / 1e9,
        "network_seconds": gathered / NETWORK_BYTES,
        "step_seconds": step_seconds,
        "memory_plain": MEMORY_BYTES / activation_bytes(recomputed=False),
        "memory_recomputed": MEMORY_BYTES / activation_bytes(recomputed=True),
        "plain_mb": activation_bytes(recomputed=False) / 1e6,
        "recomputed_mb": activation_bytes(recomputed=True) / 1e6,
        "memory_gb": MEMORY_BYTES / 1e9,
        "polls": GPUS / 0.5,
        "mfu": MFU,
    }


def _start_seconds(parity: dict[str, Any] | None) -> float | None:
    """From the command to the first step of two workers on Ray, the longest that was kept."""
    sessions = [] if parity is None else parity["measures"].items()
    found = [
        taken["seconds_to_first_step"]["ray"]
        for name, taken in sessions
        if name.startswith("2 workers") and "seconds_to_first_step" in taken
    ]
    return max(found, default=None)


def _length(seq_len: int, rate: float) -> dict[str, Any]:
    """A run and a step at one length, and how many GPUs have a window."""
    flops = training_flops_per_token(MODEL, seq_len)
    windows = BATCH // seq_len
    return {
        "seq_len": seq_len,
        "gigaflops": flops / 1e9,
        "windows": windows,
        "busy": min(1.0, windows / GPUS),
        "step_seconds": BATCH * flops / rate / min(1.0, windows / GPUS),
        "days": TOKENS * flops / rate / min(1.0, windows / GPUS) / 86_400,
    }


if __name__ == "__main__":
    write_text(DOCS / "scale.md", page())
