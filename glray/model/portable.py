"""A ``config.json`` that ``transformers`` 4 and 5, and tools that read the file themselves, take
for the same model.

``transformers`` 5 writes ``rope_parameters`` and ``dtype``. Version 4 silently drops the
former and computes with θ = 10,000, unscaled; llama.cpp's converter asks for ``rotary_pct``. So
the file has both. Version 5 lets ``rope_scaling`` replace ``rope_parameters`` and adds θ and the
rotary fraction from their old names, so the two say the same. Sources: ``GPTNeoXConfig``,
``LlamaConfig`` and ``modeling_rope_utils.py`` of transformers 4.57.1 and 5.23.0.
"""

from typing import Any

OLD_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "llama": {"rope_theta": "rope_theta"},
}
"""Where version 4 has what version 5 keeps in ``rope_parameters``, by ``model_type``."""

EVERYWHERE = ("rope_theta", "partial_rotary_factor")
"""What ``rope_scaling`` of version 4 does not have, as it is not a matter of scaling."""


def portable_config(declared: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``config.json`` as version 5 writes it, with the names of version 4 too."""
    rope, names = declared["rope_parameters"], OLD_NAMES[declared["model_type"]]
    kept = {name: value for name, value in declared.items() if name not in EVERYWHERE}
    old = {names[name]: rope[name] for name in EVERYWHERE if name in names}
    if rope["rope_type"] != "default":
        scaling = {name: value for name, value in rope.items() if name not in EVERYWHERE}
        old["rope_scaling"] = scaling
    return kept | old | {"torch_dtype": declared["dtype"]}
