"""Supervised fine-tuning recipes."""
