"""Strategies at test time: how many candidates are sampled, and which of them is the answer."""
