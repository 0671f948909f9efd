"""A teacher's opinion as advantages, against tinker-cookbook's rule and TRL's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rl.distillation import discounted, early_weights, single_step_returns, teacher_advantages
from tests.golden_files import cases, golden

FILE = "distillation"


def logps_of(logits: Any, tokens: Any) -> Any:
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return np.take_along_axis(logps, tokens[..., None], -1)[..., 0]


def inputs(case: str) -> tuple[Any, ...]:
    found = {key.split("/", 1)[1]: value for key, value in golden(FILE).items() if key.startswith(f"{case}/")}
    mask = (found["labels"] != -100).astype(float)
    student, teacher = (logps_of(found[f"{name}_logits"], found["tokens"]) for name in ("student", "teacher"))
    return student, teacher, found["sampler_logps"], mask, found


@pytest.mark.parametrize("case", cases(FILE))
def test_on_policy_distillation(case: str) -> None:
    student, teacher, sampler, mask, found = inputs(case)
    for name in ("c1_d0", "c0.5_d0.95"):
        rules = json.loads(str(found[f"opd/{name}/hyper"]))
        gains = teacher_advantages(sampler, teacher, mask, rules["kl_penalty_coef"], rules["kl_discount_factor"])
        # Its sums of later tokens stand on prompts, too, where nothing is learnt.
        np.testing.assert_allclose(gains, found[f"opd/{name}/advantages"] * mask, rtol=1e-9, atol=1e-13)
        value = -(np.exp(student - sampler) * gains * mask).sum()
        np.testing.assert_allclose(value, found[f"opd/{name}/value"], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", cases(FILE))
def test_returns_of_minillm(case: str) -> None:
    student, teacher, _, mask, found = inputs(case)
    for name, gamma, normalise in (("g0_plain", 0.0, False), ("g1_plain", 1.0, False), ("g0.9_norm", 0.9, True)):
        gains = single_step_returns(student, teacher, mask, gamma, normalise)
        if normalise:  # TRL counts a masked token as 1e-4 of one
            power = np.power(gamma, np.arange(mask.shape[1]))
            exact, theirs = (discounted(power * m, 1.0) for m in (mask, np.maximum(mask, 1e-4)))
            gains = gains * exact / theirs
        wanted = found[f"minillm/advantage_{name}"]
        np.testing.assert_allclose(gains * mask, wanted * mask, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", cases(FILE))
def test_early_tokens_weigh_more(case: str) -> None:
    student, teacher, sampler, mask, found = inputs(case)
    for name in ("g0.5_current", "g0.5_rollout", "g2_rollout"):
        rules = json.loads(str(found[f"iw_opd/{name}/hyper"]))
        gains = teacher_advantages(sampler if rules["rollout_logps"] else student, teacher, mask)
        weights = early_weights(gains, rules["gamma"])
        value = -(student * weights * gains * mask).sum() / max(mask.sum(), 1)
        np.testing.assert_allclose(value, found[f"iw_opd/{name}/value"], rtol=1e-9, atol=1e-13)
