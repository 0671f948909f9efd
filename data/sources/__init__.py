"""Where batches come from, and how they resume."""
