"""Thoughts that differ between samples: dropped-out states and soft thoughts, drawn in a rollout and replayed."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.thoughts import Ending
from infer.feedback import choose, dropout_masks, gumbel, thought_seeds
from infer.sampler import Rollout
from infer.thoughts import ThoughtNoise, Thoughts
from model.latent import Columns, mean_cosine, think
from model.sharding import make_mesh, on_mesh
from rl.batch import RolloutRows, from_tree, to_tree
from rl.grpo import grpo_objective
from rl.returns import estimate
from rl.rollout import RolloutOptions, RolloutWorker
from rl.rules import RolloutRules
from rl.sampling import rollout_thoughts
from rl.soft_density import soft_density
from rl.soft_thoughts import first_thoughts
from rl.source import RolloutSource
from settings.data import SoftConfig
from settings.rl import RLConfig
from tests.rl.test_rollout import RULES, Digits
from tests.rl.test_thoughts_rl import ENDING, IDS, TOKENIZER, model_of, params_of
from tests.sampled import generate

SOFT = SoftConfig(feedback="soft", soft_tokens=3)
ENDINGS = {"state": ENDING, "soft": ENDING._replace(soft=SOFT)}
DROPOUT, ONE_SIDED, TWO_SIDED = (
    ("state", {"thought_dropout": 0.5}),
    ("soft", {"thought_noise": "one_sided"}),
    ("soft", {"thought_noise": "two_sided", "thought_noise_scale": 0.5}),
)
QUIET = ("soft", {})


@functools.cache
def sampled(kind: str, feedback: str, **changes: Any) -> tuple[RolloutRows, RolloutRules]:
    """A rollout of two prompts with three thoughts, four samples each, and its rules."""
    rules = replace(RULES, **changes)
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=2, seed=0))
    model = model_of(kind)
    options = RolloutOptions(seed=5, ending=ENDINGS[feedback], say=lambda _: None)
    worker = RolloutWorker(model, asked, Digits(), TOKENIZER, rules, options)
    batch = RolloutSource(worker, rules, seed=5).next(params_of(model), 0)
    return jax.tree.map(jnp.asarray, batch), rules


@functools.partial(jax.jit, static_argnums=(0, 3))
def measured(kind: str, params: Any, batch: RolloutRows, thoughts: Thoughts) -> dict[str, Any]:
    """The metrics of an update."""
    return grpo_objective(model_of(kind), thoughts=thoughts)(params, batch, jax.random.key(0))[2]


def deviation(kind: str, batch: RolloutRows, rules: RolloutRules, ending: Ending) -> float:
    """How far the ratio of new to old probabilities, of thoughts and of tokens, is from 1 at most."""
    thoughts = rollout_thoughts(rules, ending)
    assert thoughts is not None
    return float(measured(kind, params_of(model_of(kind)), batch, thoughts)["ratio_deviation/max"])


@pytest.mark.more_but("stack-how0", "stack-how1")
@pytest.mark.parametrize("how", [DROPOUT, ONE_SIDED, TWO_SIDED, QUIET])
@pytest.mark.parametrize("kind", ["stack", "recurrent"])
def test_a_fresh_rollout_is_on_policy(kind: str, how: tuple[str, dict[str, Any]]) -> None:
    """And what its thoughts were belongs to it: with those of other samples it is another policy."""
    feedback, changes = how
    batch, rules = sampled(kind, feedback, **changes)
    assert deviation(kind, batch, rules, ENDINGS[feedback]) <= 1e-5
    swapped = {
        name: value[::-1]
        for name in ("thought_seeds", "soft_ids", "soft_scores")
        if (value := getattr(batch, name)) is not None
    }
    assert bool(swapped) == bool(changes)
    if swapped:
        assert deviation(kind, batch.replace(**swapped), rules, ENDINGS[feedback]) > 1e-2


@pytest.mark.parametrize("slots", [0, 2])
def test_how_alike_thoughts_are(slots: int) -> None:
    """The mean cosine over all pairs, as a pass over the prompts has it."""
    model = model_of("stack")
    params, prompts = params_of(model), [[*TOKENIZER.encode(text), *ENDING.tokens] for text in ("1+2=", "3+4=", "5+6=")]
    rows = jnp.array(prompts)
    columns = Columns(
        rows, jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape), jnp.ones_like(rows), rows == IDS.latent
    )
    run = jax.jit(lambda params: think(model, params, columns, thoughts=3, capture=("thoughts",)).captured["thoughts"])
    total, pairs = mean_cosine(run(params))
    assert int(pairs) == 9
    found = generate(model, params, prompts, jax.random.key(0), n=2, max_new_tokens=2, thoughts=3, slots=slots)
    assert found.thought_cosine is not None
    np.testing.assert_allclose(found.thought_cosine, total / pairs, atol=1e-5)
    assert -1 < found.thought_cosine < 0.999


def test_thoughts_of_a_group_differ() -> None:
    """With noise the first token has another distribution in every sample, without it the same in a group."""
    for (feedback, changes), most in ((DROPOUT, 4), (ONE_SIDED, 4), (QUIET, 1)):
        batch, rules = sampled("stack", feedback, **changes)
        drawn = batch.thought_seeds if batch.soft_ids is None else batch.soft_scores
        found = 1 if drawn is None else len(np.unique(np.asarray(drawn).reshape(8, -1)[:4], axis=0))
        assert found == most
        assert (rules.thoughts_differ, batch.shared.tokens.shape[0]) == (most > 1, 2)


@pytest.mark.more_but("how1")
@pytest.mark.parametrize("how", [DROPOUT, ONE_SIDED])
def test_slots_and_order_do_not_matter(how: tuple[str, dict[str, Any]]) -> None:
    batch, _ = sampled("stack", how[0], **how[1])
    again, _ = sampled("stack", how[0], **how[1], slots=3)
    for name in ("tokens", "thought_seeds", "soft_ids"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name), err_msg=name)
    np.testing.assert_allclose(batch.old_logps, again.old_logps, atol=1e-5)


@pytest.mark.more
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("soft", [None, SOFT])
def test_eight_devices_think_what_one_does(soft: SoftConfig | None) -> None:
    """Also where fewer samples sit at a time."""
    model = model_of("stack")
    params, prompts = params_of(model), [[*TOKENIZER.encode(text), *ENDING.tokens] for text in ("1+2=", "3+4=", "5+6=")]
    noise = ThoughtNoise(0.5) if soft is None else ThoughtNoise(kind="one_sided")
    rules: dict[str, Any] = {"n": 8, "max_new_tokens": 4, "thoughts": 3, "soft": soft, "noise": noise, "slots": 8}
    wanted = generate(model, params, prompts, jax.random.key(0), **rules)
    mesh = make_mesh({"fsdp": 8})
    placed = jax.device_put(params, model.shardings(mesh))
    found = on_mesh(mesh)(generate)(model, placed, prompts, jax.random.key(0), **rules)
    for name in ("tokens", "thought_seeds", *(["soft_ids"] if soft else [])):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(found.logps, wanted.logps, atol=1e-5)


@pytest.mark.parametrize("how", [DROPOUT, ONE_SIDED])
def test_rows_that_forgot_their_thoughts_are_refused(how: tuple[str, dict[str, Any]]) -> None:
    batch, rules = sampled("stack", how[0], **how[1])
    forgotten = batch.replace(thought_seeds=None, soft_ids=None)
    with pytest.raises(ValueError, match="without the seeds or tokens of their thoughts"):
        deviation("stack", forgotten, rules, ENDINGS[how[0]])


def test_a_batch_is_kept_with_its_thoughts() -> None:
    batch, _ = sampled("stack", *ONE_SIDED[:1], **ONE_SIDED[1])
    again = from_tree(jax.tree.map(np.asarray, to_tree(batch)))
    for name in ("soft_ids", "soft_scores", "soft_density", "soft_mask"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))


def test_density() -> None:
    """Its slope by the distance of score and log-prob; mirrored, a bad thought never becomes more likely."""
    slope = jax.vmap(jax.grad(lambda logp, score, gain: soft_density(score[None], logp[None], gain)))
    apart = jnp.array([0.0, 0.5, 1.5, -0.5, -1.5])
    zero, good, bad = jnp.zeros(5), jnp.ones(5), -jnp.ones(5)
    np.testing.assert_allclose(slope(zero, apart, good), [0, 0.3935, 0.7769, -0.6487, -3.4817], atol=1e-4)
    np.testing.assert_allclose(slope(zero, apart, bad), [0, 0.3935, 0.7769, 0.3935, 0.7769], atol=1e-4)
    value = [soft_density(apart[:, None], zero[:, None], gain) for gain in (None, bad)]
    np.testing.assert_allclose(value[0], -apart - np.exp(-apart), rtol=1e-6)
    np.testing.assert_array_equal(value[0], value[1])


def test_noise() -> None:
    """One-sided noise is the same draw, moved up; about 1.1 % and 4.9 % of it stand at the bounds."""
    seeds, number = jnp.arange(50, dtype=jnp.uint32), jnp.int32(1)
    two, one = (gumbel(ThoughtNoise(kind=kind), seeds, number, 2000) for kind in ("two_sided", "one_sided"))
    assert (float(two.min()), float(two.max()), float(one.min())) == (-1.5, 3.0, 0.0)
    np.testing.assert_allclose(one, two + 1.5, atol=1e-6)
    assert abs(float((two == -1.5).mean()) - 0.011) < 2e-3 and abs(float((two == 3).mean()) - 0.049) < 3e-3
    other = gumbel(ThoughtNoise(kind="two_sided", scale=0.5), seeds, jnp.int32(2), 2000)
    assert abs(float(jnp.corrcoef(two.ravel(), other.ravel())[0, 1])) < 0.02 and float(other.max()) == 1.5


def test_masks_and_seeds() -> None:
    masks = np.asarray(dropout_masks(0.25, jnp.arange(40, dtype=jnp.uint32), 500))
    assert set(np.unique(masks)) == {0.0, np.float32(4 / 3)} and abs((masks == 0).mean() - 0.25) < 0.01
    assert len(np.unique(masks, axis=0)) == 40
    seeds = thought_seeds(jax.random.key(3), np.arange(6))
    assert len(set(seeds.tolist())) == 6
    np.testing.assert_array_equal(thought_seeds(jax.random.key(3), np.array([4, 1])), seeds[[4, 1]])


def test_choice() -> None:
    """Without noise the likeliest; with it never outside of the top-p set, unless that is too small."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.06, 0.04]]))
    plain = choose(logits, replace(SOFT, soft_tokens=2))
    assert plain.ids.tolist() == [[0, 1]] and plain.scores is plain.logps
    push = jnp.array([[0.0, 0.0, 9.0, 9.0, 9.0]])
    for top_p, ids in ((0.75, [0, 1]), (0.85, [2, 0]), (0.99, [2, 3])):
        found = choose(logits, replace(SOFT, soft_tokens=2, soft_top_p=top_p), push)
        assert found.ids.tolist() == [ids], top_p
        np.testing.assert_allclose(found.scores - found.logps, push[0, jnp.array(ids)][None], atol=1e-6)


def rollout(**arrays: Any) -> Rollout:
    """A rollout of two groups of three samples of two tokens."""
    rest = dict(tokens=None, finished=None, prompts=None, prompt_mask=None)
    given = dict(mask=np.ones((6, 2)), lengths=np.full(6, 2), group_of=np.repeat([0, 1], 3), logps=np.zeros((6, 2)))
    return Rollout(**rest, **given | arrays)  # type: ignore[arg-type]


def test_the_first_thought_of_the_best_sample_is_learnt_from() -> None:
    """Of the good ones the likeliest by the mean over thoughts and tokens; a group of bad ones has none."""
    density, logps = np.full((6, 2), -1.0), np.zeros((6, 2))
    density[0], logps[1] = -9.0, -0.1
    gains = np.array([1.0, 0.5, -1.0, -1.0, 0.0, 0.0])
    kept = first_thoughts(rollout(logps=logps), density, gains)
    assert kept[:, 0].tolist() == [0, 1, 0, 0, 0, 0] and kept[:, 1].all()
    by_token = first_thoughts(rollout(logps=logps), density, np.stack([gains, gains], 1))
    np.testing.assert_array_equal(by_token, kept)


def test_what_was_cut_is_not_learnt_from() -> None:
    """It may stay in its group's mean, or not; one that is left alone has nothing to be compared with."""
    rewards, mask = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]), jnp.ones((8, 2))
    ended = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    plain = dict(scale="none", baseline="group")
    gains = {
        kind: np.asarray(estimate(rewards, mask, RLConfig(unfinished=kind, **plain), finished=ended))  # type: ignore[arg-type]
        for kind in ("learn", "zero", "leave_out")
    }
    np.testing.assert_allclose(gains["learn"], [0.5, -0.5, -0.5, 0.5, 0.5, -0.5, 0.5, -0.5])
    np.testing.assert_allclose(gains["zero"], [0.5, -0.5, 0, 0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(gains["leave_out"], [1 / 3, -2 / 3, 0, 1 / 3, 0, 0, 0, 0], atol=1e-6)
    none = estimate(rewards, mask, RLConfig(unfinished="leave_out"), finished=np.zeros(8, bool))
    assert not np.asarray(none).any()
    by_token = estimate(rewards, mask, RLConfig(unfinished="zero", estimator="reinforce_pp"), finished=ended)
    assert not np.asarray(by_token)[~ended].any() and np.asarray(by_token)[ended].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"thought_dropout": 0.1, "thought_noise": "one_sided"}, "is of states, rl.thought_noise='one_sided' of soft"),
        ({"first_thought": "best"}, "chooses among soft thoughts that were drawn"),
        ({"thought_dropout": 0.1, "loops": "uniform"}, "does not replay thoughts that differ"),
        ({"thought_noise": "one_sided", "teacher": "start"}, "does not replay thoughts that differ"),
        ({"unfinished": "leave_out", "estimator": "reinforce_pp"}, "is of estimator=\"group\", found 'reinforce_pp'"),
        ({"thought_dropout": 1.0}, "thought_dropout"),
    ],
)
def test_rules_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RLConfig(**changes)


def test_noise_on_the_wrong_kind_of_thought() -> None:
    with pytest.raises(ValueError, match="is of soft thoughts, and these are states"):
        Thoughts(3, noise=ThoughtNoise(kind="one_sided"))
    with pytest.raises(ValueError, match="these thoughts are mixtures"):
        Thoughts(3, soft=SOFT, noise=ThoughtNoise(0.1))
