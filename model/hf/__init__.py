"""Hugging Face weights: a folder in the Hub's layout in, the same out."""

from model.hf.config import to_hf
from model.hf.weights import describe, load, save

__all__ = ["describe", "load", "save", "to_hf"]
