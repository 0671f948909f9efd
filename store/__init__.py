"""What a run leaves on disk: run directory, checkpoints and their sums, JSON lines, locks."""
