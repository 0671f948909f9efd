"""Recurrent depth (2502.05171): prelude -> the core again and again, from a state of its own -> coda."""

from model.depth.core import layers_of
from model.depth.draw import draw_depth
from model.depth.exit import CRITERIA, Exit

__all__ = ["CRITERIA", "Exit", "draw_depth", "layers_of"]
