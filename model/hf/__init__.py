"""Hugging Face weights: a folder in the Hub's layout in, the same out."""

from model.hf.config import from_hf, to_hf
from model.hf.weights import describe, load, save

__all__ = ["describe", "from_hf", "load", "save", "to_hf"]
