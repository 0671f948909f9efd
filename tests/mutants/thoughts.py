"""The breaks of thoughts that differ between samples, and of thoughts that tell their steps."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

DIFFER, TELL = "tests/rl/test_soft_thoughts.py", "tests/train/test_step_thoughts.py"

THOUGHTS = (
    Mutant("infer/feedback.py", "inside |= logps >= ", "inside &= logps >= ", DIFFER),
    Mutant("infer/feedback.py", "drawn - LOW if", "drawn if", DIFFER),
    Mutant("infer/feedback.py", "return kept / (1 - rate)", "return kept", DIFFER),
    Mutant("infer/feedback.py", "jax.random.fold_in(jax.random.key(seed), number)", "jax.random.key(seed)", DIFFER),
    Mutant("infer/feedback.py", "softmax(scores / rules.soft_temperature)", "softmax(scores)", TELL),
    Mutant(
        "infer/rows.py",
        "None if seeds is None else seeds[rows]",
        "None if seeds is None else seeds[rows[::-1]]",
        DIFFER,
    ),
    Mutant("infer/prefill.py", "return total / pairs", "return total", DIFFER),
    Mutant("rl/soft_density.py", "other + stop_gradient(value - other)", "value", DIFFER),
    Mutant("rl/soft_thoughts.py", "first - 1 : first - 1 + count", "first : first + count", DIFFER),
    Mutant("rl/soft_thoughts.py", "kept[best, 0] = float(good[best])", "kept[best, 0] = 1.0", DIFFER),
    Mutant("rl/soft_thoughts.py", "    if drawn is None:\n", "    if False:\n", DIFFER),
    Mutant("rl/returns.py", '**rule, singleton="zero"', '**rule, singleton="raw"', DIFFER),
    Mutant("data/thoughts/rows.py", "enumerate(chain.steps[:count])", "enumerate(chain.steps)", TELL),
    Mutant("train/objectives/thoughts.py", "out.hidden[:, each - 1 : -1]", "out.hidden[:, each:]", TELL),
    Mutant("train/objectives/thoughts.py", "weight * count * missed", "weight * missed", TELL),
    Mutant(
        "model/latent.py", "jnp.triu(there[:, :, None] & there[:, None], 1)", "there[:, :, None] & there[:, None]", TELL
    ),
)
