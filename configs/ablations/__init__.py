"""Ablations: launch.sweep trains every setting that a file's `sweep()` yields, launch.report compares them."""
