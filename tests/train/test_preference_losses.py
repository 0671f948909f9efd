"""Losses of pairs against TRL's values and gradients, exact accumulation, hostile padding and wrong arguments."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from settings.preference import FORMS, PreferenceLossConfig
from tests.golden_files import cases, golden
from train.objectives.preference_losses import Side, log1mexp, preference_loss

# How TRL's arguments are said here, by the golden file's name of a loss.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "cdpo": {"smoothing": 0.1},
    "cdpo_b05": {"smoothing": 0.2},
    "ipo": {"average": True},
    "sigmoid_norm": {"loss": ("sigmoid",), "average": True},
    "sigmoid_forward_kl": {"divergence": "forward_kl"},
    "sigmoid_js": {"divergence": "js"},
    "ld_sigmoid": {"excess": 0.3},
    "wpo_sigmoid": {"weighted": True},
    "mpo": {"loss": ("sigmoid", "bco_pair"), "weights": (0.8, 0.2), "nll": 1.0},
    "cpo": {"reference": False, "nll": 1.0},
    "cpo_hinge": {"reference": False, "loss": ("hinge",)},
    "cpo_ipo": {"reference": False, "loss": ("ipo",), "average": True},
    "cpo_simpo": {"reference": False, "average": True, "margin": 0.5, "nll": 0.5},
    "simpo": {"reference": False, "average": True, "margin": 0.5},
    "simpo_g16": {"reference": False, "average": True, "margin": 1.6},
    "simpo_smooth": {"reference": False, "average": True, "margin": 0.5},
    "alphapo": {"reference": False, "average": True, "margin": 0.5, "alpha": 0.25},
    "orpo": {"loss": ("orpo",), "reference": False, "nll": 1.0, "nll_prompt": True},
    "orpo_b1": {"loss": ("orpo",), "reference": False, "nll": 1.0, "nll_prompt": True},
    "orpo_term": {"loss": ("orpo",), "reference": False},
    "orpo_b1_term": {"loss": ("orpo",), "reference": False},
    "kto_weighted": {"loss": ("kto",), "desirable": 1.3, "undesirable": 0.8},
}
NAMES = sorted({key.split("/")[2] for key in golden("preference") if "/loss/" in key} - {"sft"})


def rules_of(name: str, case: str = "ragged") -> PreferenceLossConfig:
    hyper = json.loads(str(golden("preference")[f"{case}/loss/{name}/hyper"]))
    kind = hyper.get("loss_type", "sigmoid")
    form = {"loss": (kind,)} if kind in FORMS else {}
    smoothing = {"smoothing": hyper["label_smoothing"]} if hyper.get("label_smoothing") else {}
    return PreferenceLossConfig(**{"beta": hyper["beta"], **form, **smoothing, **ARGUMENTS.get(name, {})})


def sides_of(case: str, dtype: Any = jnp.float64) -> dict[str, Side]:
    def side(name: str) -> Side:
        keys = (f"{name}_logps", f"{name}_mask", f"ref_{name}_logps", f"log_sum_sq_{name}")
        return Side(*(jnp.asarray(golden("preference")[f"{case}/{key}"], dtype) for key in keys))

    return {name: side(name) for name in ("chosen", "rejected")}


def more_of(case: str, rules: PreferenceLossConfig, dtype: Any) -> dict[str, Any]:
    found, more = golden("preference"), dict[str, Any]()
    if "kto" in rules.loss:
        kl, ref = (jnp.asarray(found[f"{case}/kto/{name}"], dtype)[:, None] for name in ("kl_logps", "kl_ref_logps"))
        more["mismatched"] = Side(kl, jnp.ones_like(kl), ref)
    if rules.nll_prompt:
        mask = jnp.asarray(found[f"{case}/prompt_mask"], dtype)
        more["prompt_nll"] = -(jnp.asarray(found[f"{case}/prompt_logps"], dtype) * mask).sum(), mask.sum()
    return more


@functools.partial(jax.jit, static_argnums=1)
def value_and_grads(sides: dict[str, Side], rules: PreferenceLossConfig, more: dict[str, Any]) -> Any:
    def loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        given = [sides[name]._replace(logps=logps) for name, logps in (("chosen", chosen), ("rejected", rejected))]
        total, count, _ = preference_loss(*given, rules, **more)
        return total / count

    return jax.value_and_grad(loss, argnums=(0, 1))(sides["chosen"].logps, sides["rejected"].logps)


@functools.partial(jax.jit, static_argnums=1)
def loss_of(sides: dict[str, Side], rules: PreferenceLossConfig) -> Any:
    return preference_loss(sides["chosen"], sides["rejected"], rules)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    check_golden(name, ["ragged"])


@pytest.mark.more
@pytest.mark.parametrize("name", NAMES)
def test_golden_of_hard_cases(name: str) -> None:
    """Rows without a token, ratios of e^6, a policy that is its reference, a single pair."""
    check_golden(name, cases("preference"))


def check_golden(name: str, names: list[str]) -> None:
    tolerance = 3e-8 if name == "exo_pair" else 1e-9
    with jax.enable_x64(True):
        for case in names:
            at = f"{case}/loss/{name}"
            if f"{at}/value" not in golden("preference"):
                assert case == "empty"
                continue
            rules = rules_of(name, case)
            value, grads = value_and_grads(sides_of(case), rules, more_of(case, rules, jnp.float64))
            np.testing.assert_allclose(value, golden("preference")[f"{at}/value"], rtol=tolerance, atol=1e-12)
            for side, grad in zip(("chosen", "rejected"), grads, strict=True):
                wanted = golden("preference")[f"{at}/grad_{side}"]
                np.testing.assert_allclose(grad, wanted, rtol=tolerance, atol=tolerance)


def test_metrics() -> None:
    with jax.enable_x64(True):
        for case in cases("preference"):
            sides = sides_of(case)
            _, _, metrics = loss_of(sides, rules_of("sigmoid", case))
            names = [key.split("/metrics/")[1] for key in golden("preference") if key.startswith(f"{case}/metrics/")]
            assert len(names) == 6
            for name in names:
                total, count = metrics[name]
                np.testing.assert_allclose(total / count, golden("preference")[f"{case}/metrics/{name}"], rtol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_and_what_is_masked_changes_nothing(name: str) -> None:
    rules, sides = rules_of(name), sides_of("ragged", jnp.float32)
    more = more_of("ragged", rules, jnp.float32)
    value, grads = value_and_grads(sides, rules, more)
    np.testing.assert_allclose(value, golden("preference")[f"ragged/loss/{name}/value"], rtol=1e-5)
    if rules.weighted or rules.excess < 1:
        return
    spoilt = {
        key: side._replace(
            logps=jnp.where(side.mask > 0, side.logps, jnp.nan),
            ref_logps=jnp.where(side.mask > 0, side.ref_logps, jnp.nan),
        )
        for key, side in sides.items()
    }
    again, spoilt_grads = value_and_grads(spoilt, rules, more)
    np.testing.assert_array_equal(again, value)
    for left, right in zip(grads, spoilt_grads, strict=True):
        np.testing.assert_array_equal(left, right)


def test_micro_batches_add_up() -> None:
    """Exactly, where pairs do not depend on each other and no mean over tokens is added."""
    for name in ("sigmoid", "ipo", "simpo", "apo_down", "orpo_term"):
        rules, sides = rules_of(name), sides_of("ragged", jnp.float32)
        whole = loss_of(sides, rules)
        halves = [loss_of(jax.tree.map(lambda x, s=s: x[s], sides), rules) for s in (slice(0, 2), slice(2, None))]
        for n in (0, 1):
            np.testing.assert_allclose(sum(half[n] for half in halves), whole[n], rtol=1e-6)


def test_log1mexp_has_both_branches() -> None:
    x = jnp.array([-1e-6, -0.1, -0.6931, -0.7, -5.0, -30.0, -200.0], jnp.float32)
    wanted = np.log(-np.expm1(np.asarray(x, np.float64)))
    np.testing.assert_allclose(log1mexp(x), wanted, rtol=2e-6, atol=1e-15)
    assert np.isfinite(jax.grad(lambda x: log1mexp(x).sum())(x)).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"loss": ("sigmoied",)}, "Did you mean 'sigmoid'"),
        ({"loss": ()}, "preference.loss"),
        ({"loss": ("kto", "sigmoid")}, "take it alone"),
        ({"loss": ("sigmoid", "hinge"), "weights": (1.0,)}, "1 entries for 2 forms"),
        ({"loss": ("orpo",)}, "has no reference"),
        ({"loss": ("kto",), "reference": False}, "needs a reference"),
        ({"loss": ("hinge",), "smoothing": 0.1}, "acts on"),
        ({"loss": ("exo_pair",)}, "logarithm"),
        ({"loss": ("robust",), "smoothing": 0.5}, "below .5"),
        ({"divergence": "js", "reference": False}, "to a reference"),
        ({"alpha": 0.2}, "average=True"),
        ({"nll_prompt": True}, "without weight"),
        ({"beta": 0.0}, "positive"),
    ],
)
def test_wrong_rules(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PreferenceLossConfig(**arguments)


def test_what_is_missing_is_named() -> None:
    sides = [side._replace(ref_logps=None, log_sum_sq=None) for side in sides_of("ragged", jnp.float32).values()]
    for rules, words in (
        (PreferenceLossConfig(), "ref_logps"),
        (PreferenceLossConfig(weighted=True, reference=False), "log_sum_sq"),
        (PreferenceLossConfig(loss=("orpo",), reference=False, nll=1.0, nll_prompt=True), "prompt_nll"),
    ):
        with pytest.raises(ValueError, match=words):
            preference_loss(*sides, rules)
