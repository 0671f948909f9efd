"""Which examples to learn from, by published rules: a pool of rows and a seed in, chosen rows and what was dropped out.

`python -m data.select` is the command (docs/selecting.md). Runs are ranked by `python -m rl.select`, whose scores of
accuracies stand in `accuracy.py`.
"""
