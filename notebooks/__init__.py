"""Notebooks, and what runs them: `python -m notebooks`."""
