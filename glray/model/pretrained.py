"""A ``transformers`` folder to start from or to score: its architecture, checked, and its hash.

Weights are read from safetensors alone, never from pickles, which can run code when they are read;
nothing is downloaded and no code of the folder is run.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from glray.errors import UserError
from glray.files import read_json, sha256_of
from glray.model.positions import head_dim
from glray.progress import advance, working

ARCHITECTURES = ("gpt_neox", "llama")
"""The ``model_type`` of a ``config.json`` that glray knows."""

FIXED_SCALINGS = ("default", "linear", "yarn", "llama3")
"""The ``rope_type`` whose positions do not depend on a window's own length."""


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder with ``config.json`` and safetensors weights, its architecture known to be one of
    ``ARCHITECTURES``."""

    path: Path
    config: PreTrainedConfig
    """As the folder has it, but in float32, without dropout (a resumed run must be the same run)
    and without padding (whose embedding would not be trained)."""
    weight_files: tuple[Path, ...]

    @cached_property
    def sha256(self) -> str:
        """Of the names and contents of ``config.json`` and the weight files: reads them all."""
        digest = hashlib.sha256()
        files = (self.path / "config.json", *self.weight_files)
        with working(f"hashing {self.path}", sum(file.stat().st_size for file in files)):
            for file in files:
                digest.update(f"{sha256_of(file)}  {file.name}\n".encode())
                advance(file.stat().st_size)
        return digest.hexdigest()


def read_pretrained(folder: str) -> PretrainedFolder:
    """The model of a folder; of its weights only the headers are read. Raises UserError."""
    path = Path(folder).expanduser()
    return PretrainedFolder(path, _config(path / "config.json"), _weight_files(path))


def check_unchanged(folder: PretrainedFolder, sha256: str) -> None:
    """Raises UserError unless the folder is still the one of ``sha256``."""
    if folder.sha256 != sha256:
        raise UserError(
            f"init: {folder.path} has SHA-256 {folder.sha256[:12]}…, {sha256[:12]}… when the "
            "pipeline was started: its arms would start from different weights; restore the folder"
        )


def _config(file: Path) -> PreTrainedConfig:
    declared = read_json(file, "restore it")
    if declared is None:
        raise UserError(
            f"{file} does not exist; give a local folder as transformers' save_pretrained "
            "writes it (nothing is downloaded)"
        )
    if problem := _unknown_model(declared):
        raise UserError(f"{file}: {problem}")
    try:
        config = AutoConfig.for_model(**declared)
    except Exception as error:  # the library raises nothing narrower
        problem, kind = " ".join(str(error).split()), declared["model_type"]
        raise UserError(f"{file} is no configuration of a {kind} model: {problem}") from None
    if problem := _impossible_positions(config):
        raise UserError(f"{file}: {problem}")
    for name in ("attention_dropout", "hidden_dropout", "classifier_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.pad_token_id = None
    config.dtype = "float32"
    config.use_cache = False
    return config


def _unknown_model(declared: Any) -> str | None:
    """Why glray cannot compute with the model of a ``config.json``; None if it can."""
    if not isinstance(declared, dict):
        return f"holds {type(declared).__name__}, not a mapping; restore it"
    architecture = declared.get("model_type")
    if architecture not in ARCHITECTURES:
        return (
            f"model_type is {architecture!r}, not {' or '.join(ARCHITECTURES)}: positions may not "
            "be rotary; give a Pythia- or Llama-shaped model"
        )
    if "quantization_config" in declared:
        return "its weights are quantized, which glray cannot use; give an unquantized folder"
    if "auto_map" in declared:
        return (
            "names code of its own (auto_map), which is never run: it might be another model; "
            f"save it again as transformers' own {architecture} model"
        )
    return None


def _impossible_positions(config: PreTrainedConfig) -> str | None:
    """Why windows cannot have rotary positions of the config; None if they can."""
    heads = config.num_attention_heads
    if heads < 1 or head_dim(config) < 2:
        return (
            f"{heads} heads of width {config.hidden_size}: each needs two dimensions at least for "
            "rotary positions to turn; restore the file"
        )
    bounds = {
        "rope_theta": (1.0, math.inf),
        "partial_rotary_factor": (2 / head_dim(config), 1.0),
        "factor": (math.ulp(0.0), math.inf),  # above 0
        "max_position_embeddings": (1, math.inf),
    }
    longest = {"max_position_embeddings": config.max_position_embeddings}
    values = config.rope_parameters | longest
    for name, (least, most) in bounds.items():
        value = values.get(name, least)
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number or not least <= value <= most:
            return f"{name} is {value!r}, which gives no rotary positions; restore the file"
    if values["rope_type"] not in FIXED_SCALINGS:
        return (
            f"positions are scaled by rope_type {values['rope_type']!r}, none of "
            f"{', '.join(FIXED_SCALINGS)}: those of windows of different lengths would differ; "
            "give a model with one of these"
        )
    return None


def _weight_files(path: Path) -> tuple[Path, ...]:
    """``model.safetensors``, or the index of its shards and then these."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        _check_header(whole)
        return (whole,)
    if not index.is_file():
        pickles = sorted(file.name for file in path.glob("*.bin"))
        instead = f", only {pickles[0]}, which could run code when it is read" if pickles else ""
        raise UserError(f"{path} has no model.safetensors{instead}; write it with save_pretrained")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(n).name != n or Path(n).suffix != ".safetensors" for n in names):
            raise ValueError("a shard lies beside its index, and is no pickle")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index} is no index of shards beside it, each a safetensors file (others could run "
            "code when they are read); write the folder with save_pretrained"
        ) from None
    for name in names:
        _check_header(path / name)
    return (index, *(path / name for name in names))


def _check_header(file: Path) -> None:
    try:
        with safe_open(file, framework="numpy"):
            pass
    except FileNotFoundError:
        raise UserError(f"{file} is missing, but its index names it; restore it") from None
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); restore it") from None
