"""The start-up self-check: says in words what would make a run learn nothing."""

from __future__ import annotations


def complaints(history: list[dict[str, float]]) -> list[str]:
    """Sentences about the rollouts so far; those about one rollout come with the first, the others once three agree."""
    last, first = history[-1], len(history) == 1
    found = []
    if first and last["completions/clipped_ratio"] == 1:
        found.append(
            "every completion was cut at max_new_tokens and none ended by itself: raise rl.max_new_tokens, or check"
            " that the demonstrations ended with the end token and that the prompt template is the one trained on"
        )
    if first and last["completions/eos_rate"] == 0:
        found.append("no end token was seen in any completion: the model may never learn when to stop")
    if len(history) == 3 and all(stats["frac_reward_zero_std"] == 1 for stats in history):
        found.append(
            "in three rollouts every group had equal rewards, so every advantage is zero and nothing is learned"
        )
    if len(history) == 3 and all(stats["reward"] == 0 for stats in history):
        found.append(
            "in three rollouts no completion was rewarded: the task is too hard for this model, or its answers are not"
            " in the form the verifier reads (see samples.jsonl for the reasons)"
        )
    return found
