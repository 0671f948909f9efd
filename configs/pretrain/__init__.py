"""Training published models from nothing on pods; docs/pods.md has what `launch.plan` says of each.

Rows are GSM8K's demonstrations, packed, and every token is learnt: point data.task, data.path and tokenizer.path at
what is there. The step is the same for any text.
"""
