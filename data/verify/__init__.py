"""Verifiers: exact, bounded in time and memory, safe on hostile text."""
