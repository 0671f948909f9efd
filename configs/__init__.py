"""Experiments: one file is one recipe. Imports ml_collections and files of this package only."""
