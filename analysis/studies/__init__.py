"""Measured studies of what models hold inside: each a command over the runs of a recipe in configs/ablations."""
