"""Distances of a student from its teacher, against TRL's values and gradients, in blocks as at once."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import cases, golden
from train.objectives.distillation_losses import between, divergence, of_hidden, of_top_k, on_support, support_of

FILE = "distillation"


def names(prefix: str) -> list[str]:
    return sorted(
        {key.split("/")[2] for key in golden(FILE) if key.split("/")[1:2] == [prefix] and key.endswith("grad")}
    )


def inputs(case: str) -> tuple[Any, Any, Any]:
    arrays = (golden(FILE)[f"{case}/{name}"] for name in ("student_logits", "teacher_logits", "labels"))
    student, teacher, labels = arrays
    return jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(labels != -100, student.dtype)


def compare(per_token: Any, prefix: str, name: str) -> None:
    """The batch loss, its gradient in the student's logits and the losses of single tokens."""

    @jax.jit
    def run(student: Any, teacher: Any, mask: Any) -> Any:
        def loss(student: Any) -> Any:
            tokens = per_token(student, teacher) * mask
            return tokens.sum() / jnp.maximum(mask.sum(), 1), tokens

        return jax.value_and_grad(loss, has_aux=True)(student)

    for case in cases(FILE):
        at = f"{case}/{prefix}/{name}"
        if f"{at}/value" not in golden(FILE):
            continue
        with jax.enable_x64(True):
            given = inputs(case)
            (value, tokens), grad = run(*given)
        np.testing.assert_allclose(value, golden(FILE)[f"{at}/value"], rtol=1e-9, atol=1e-13, err_msg=at)
        np.testing.assert_allclose(grad, golden(FILE)[f"{at}/grad"], rtol=1e-9, atol=1e-13, err_msg=at)
        if f"{at}/tokens" in golden(FILE):
            wanted = golden(FILE)[f"{at}/tokens"]
            np.testing.assert_allclose(tokens, wanted * np.asarray(given[2]), rtol=1e-9, atol=1e-13, err_msg=at)


def hyper(prefix: str, name: str) -> dict[str, Any]:
    return json.loads(str(golden(FILE)[f"ragged/{prefix}/{name}/hyper"]))


@pytest.mark.parametrize("name", [name for name in names("jsd") if "num_items" not in name])
def test_whole_vocabulary(name: str) -> None:
    rules = hyper("jsd", name)
    compare(functools.partial(divergence, beta=rules["beta"], temperature=rules["temperature"]), "jsd", name)


@pytest.mark.parametrize("name", names("topk"))
def test_top_k(name: str) -> None:
    rules = hyper("topk", name)

    def apart(student: Any, teacher: Any) -> Any:
        ids, present = support_of(student, teacher, rules["top_k"], rules["beta"])
        taken = [jnp.take_along_axis(jax.nn.log_softmax(x), ids, -1) for x in (student, teacher)]
        return on_support(*taken, rules["beta"], rules["add_tail"], present)

    compare(apart, "topk", name)


@pytest.mark.parametrize("name", names("student_topk"))
def test_top_k_of_the_student(name: str) -> None:
    rules = hyper("student_topk", name)

    def apart(student: Any, teacher: Any) -> Any:
        ids, _ = support_of(student, teacher, rules["top_k"], 1)
        taken = [jnp.take_along_axis(jax.nn.log_softmax(x), ids, -1) for x in (student, teacher)]
        return on_support(*taken, rules["alpha"])

    compare(apart, "student_topk", name)


def test_per_token_measures() -> None:
    with jax.enable_x64(True):
        for case in cases(FILE):
            student, teacher, mask = inputs(case)
            found = {
                "forward_kl": divergence(student, teacher, 0),
                "reverse_kl": divergence(student, teacher, 1),
            }
            for name, value in found.items():
                wanted = golden(FILE)[f"{case}/{name}"] * np.asarray(mask)
                np.testing.assert_allclose(value * mask, wanted, rtol=1e-9, atol=1e-13)


def test_blocks_are_the_whole() -> None:
    """Also the gradients, with blocks that do not divide the tokens."""
    key = jax.random.split(jax.random.key(0), 5)
    hidden, other = jax.random.normal(key[0], (3, 7, 8)), jax.random.normal(key[1], (3, 7, 12))
    head, theirs = jax.random.normal(key[2], (20, 8)), jax.random.normal(key[3], (20, 12))
    weight = jax.random.normal(key[4], (3, 7))

    def at_once(hidden: Any, head: Any) -> Any:
        student, teacher = 0.5 * hidden @ head.T, 2 * other @ theirs.T
        return (weight * divergence(student, teacher, 0.3, 1.5)).sum()

    def in_blocks(hidden: Any, head: Any) -> Any:
        return (weight * of_hidden((hidden, head, 0.5), (other, theirs, 2.0), 0.3, 1.5, block=5)).sum()

    for left, right in zip(
        *(jax.tree.leaves(jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, head)) for f in (at_once, in_blocks)),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_all_of_a_vocabulary_as_top_k_is_the_whole() -> None:
    key = jax.random.split(jax.random.key(1), 3)
    hidden, head = jax.random.normal(key[0], (2, 3, 8)), jax.random.normal(key[1], (11, 8))
    teacher = jax.nn.log_softmax(jax.random.normal(key[2], (2, 3, 11)))
    ids = jnp.broadcast_to(jnp.arange(11), (2, 3, 11))
    for beta in (0, 0.5):
        found = jax.jit(functools.partial(of_top_k, beta=beta, tail=False))((hidden, head, 1.0), ids, teacher)
        wanted = between(jax.nn.log_softmax(hidden @ head.T), teacher, beta)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
