"""A folder that glray exported, as a GGUF file for llama.cpp.

    python docs/to_gguf.py LLAMA_CPP MODEL --outfile model.gguf --outtype f32

runs ``convert_hf_to_gguf.py`` of the llama.cpp source in ``LLAMA_CPP`` and tells it what it does
not find out: the pre-tokenizer of a vocabulary that is new, as it knows tokenizers by a hash of
what they make of a text, and the positions of a GPT-NeoX model, which it silently leaves out.
"""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

folder = Path(sys.argv.pop(1)).resolve()
sys.path[:0] = [str(folder), str(folder / "gguf-py")]

import gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402
from conversion.gptneox import GPTNeoXModel  # noqa: E402

OF_GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""The pre-tokenizer of every vocabulary that glray trains."""


def pre_tokenizer(
    self: Any, tokenizer: Any, own: Callable[[Any, Any], str] = TextModel.get_vocab_base_pre
) -> str:
    """llama.cpp's name of the pre-tokenizer."""
    declared = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    is_gpt_2 = declared.items() >= OF_GPT_2.items()
    return "gpt-2" if is_gpt_2 else own(self, tokenizer)


def parameters(self: Any, own: Callable[[Any], None] = GPTNeoXModel.set_gguf_parameters) -> None:
    """GPT-NeoX's, with θ and the scaling of positions."""
    own(self)
    rope, writer = self.rope_parameters, self.gguf_writer
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


TextModel.get_vocab_base_pre = pre_tokenizer
GPTNeoXModel.set_gguf_parameters = parameters
runpy.run_path(str(folder / "convert_hf_to_gguf.py"), run_name="__main__")
