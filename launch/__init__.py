"""Many runs: sweeps over settings, and what came out of them as a table and a picture."""
