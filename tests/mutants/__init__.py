"""Deliberate breaks of the code, each of which `make test` must notice."""
