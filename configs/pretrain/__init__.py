"""Training published models from nothing on pods; docs/pods.md has what `launch.plan` says of each."""
