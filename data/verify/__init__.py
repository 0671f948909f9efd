"""Verifiers: bounded in time and memory, safe on hostile text.

`arithmetic`, `numbers`, `notation`, `choice`, `string` and `extract` are exact and run in place. `math` and `code` run
in worker processes of `pool`, code in a sandbox besides (docs/security.md). `pool.judge_of(task)` gives every task its
judge.
"""
