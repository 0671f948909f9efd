"""Prints docs/settings.md: `python -m settings > docs/settings.md`."""

from settings.table import page

print(page(), end="")
