"""GRPO recipes."""
