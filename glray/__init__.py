"""Grow the sequence length while pretraining a language model, as a declarative pipeline on Ray."""

__version__ = "0.2.0"
