"""Ablations: `python -m launch.sweep` trains every setting of a file's `sweep()`, `python -m launch.report` compares."""
