"""The paper's figures at three minutes a run: the scale of the first results.

Two layers on the standard library's text, where no arm learns to use context beyond 128 tokens.
"""

from paper import mini  # beside this file

from glray import spec

TWO_LAYERS = spec.GPTNeoXModel(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512)

tiny = mini.derive(
    base={
        "name": "tiny",
        "corpus": spec.StdlibCorpus(),
        "model": TWO_LAYERS,
        "budget": {"seconds": 180},
        "optimizer": {"lr": 3e-3},
        "evaluation": {"num_tokens": 24_576, "every_tokens": 500_000},
        "compute": spec.ComputeSpec(micro_batch_tokens=2048, checkpoint_every_tokens=2_000_000),
    },
    sizes={
        "width64": (TWO_LAYERS.derive(hidden_size=64, intermediate_size=256), 4e-3),
        "width128": (TWO_LAYERS, 3e-3),
        "width192": (TWO_LAYERS.derive(hidden_size=192, intermediate_size=768), 2e-3),
    },
    tokens=2_000_000,
)
