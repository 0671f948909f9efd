"""Multi-token prediction: the loss is the paper's, segments stay apart, and nothing leaks from later tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model import parameter_count
from tests.model.common import assert_close, random_params, tiny, tokens_of
from train.objectives.losses import sft_objective

DEPTH = 2


def batch_of(tokens: Any, mask: Any = None) -> TokenRows:
    """One segment a row, every token wanted unless told otherwise."""
    tokens = jnp.asarray(tokens)
    ones = jnp.ones(tokens.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = ones.astype(jnp.float32) if mask is None else jnp.asarray(mask, jnp.float32)
    return TokenRows(tokens=tokens, mask=mask, positions=positions, segments=ones)


def model_and_params(**changes: Any) -> tuple[Any, Any]:
    model = tiny(mtp={"depth": DEPTH, "weight": 0.3}, **changes)
    return model, random_params(model)


def test_the_loss_is_weighted_by_lambda_over_depth_and_divided_by_all_tokens() -> None:
    model, params = model_and_params()
    batch = batch_of(tokens_of(model, (2, 9)))
    batch = batch.replace(mask=batch.mask.at[0, 6].set(0))

    @jax.jit
    def measured(params: Any) -> Any:
        hidden = model.apply(params, batch.tokens).hidden
        outputs = model.predict_ahead(params, hidden, batch.tokens)
        logps = [jax.nn.log_softmax(model.logits(params, out.hidden)) for out in outputs]
        return sft_objective(model)(params, batch, jax.random.key(0)), logps

    (total, count, metrics), ahead = jax.device_get(measured(params))
    want, tokens, mask = 0.0, np.asarray(batch.tokens), np.asarray(batch.mask)
    for k, logps in enumerate(ahead):
        for row in range(2):
            for i in range(9 - k - 2):
                want -= float(logps[row, i, tokens[row, i + k + 2]] * mask[row, i + k + 2])
    assert float(total - metrics["loss"][0]) == pytest.approx(0.3 / DEPTH * want, rel=1e-5)
    assert float(count) == 2 * 8 - 1
    assert [float(metrics[f"mtp/loss_{k}"][1]) for k in (1, 2)] == [2 * 7 - 1, 2 * 6 - 1]


def test_packed_documents_do_not_see_each_other() -> None:
    model, params = model_and_params()
    first, second = np.asarray(tokens_of(model, (2, 6)))
    loss = jax.jit(lambda p, batch: sft_objective(model)(p, batch, jax.random.key(0))[0])
    apart = [loss(params, batch_of(row[None])) for row in (first, second)]
    packed = batch_of(np.concatenate([first, second])[None])
    packed = packed.replace(segments=jnp.asarray([[1] * 6 + [2] * 6]), positions=jnp.asarray([[*range(6), *range(6)]]))
    assert float(loss(params, packed)) == pytest.approx(float(sum(apart)), rel=1e-5)


def test_a_module_sees_one_token_further_and_no_more() -> None:
    model, params = model_and_params()
    tokens = jnp.asarray(tokens_of(model, (1, 8)))
    changed = tokens.at[0, 5].add(1)

    def hidden(tokens: jax.Array) -> list[jax.Array]:
        out = model.apply(params, tokens).hidden
        return [o.hidden[0] for o in model.predict_ahead(params, out, tokens)]

    for k, (before, after) in enumerate(zip(hidden(tokens), hidden(changed), strict=True)):
        seen_from = 5 - (k + 1)
        assert_close(after[:seen_from], before[:seen_from])
        assert np.abs(np.asarray(after - before))[seen_from : 8 - k - 1].max(-1).min() > 1e-4


def test_the_concatenation_is_embedding_then_state() -> None:
    model, params = model_and_params()
    tokens = tokens_of(model, (1, 6))
    hidden = model.apply(params, tokens).hidden
    half = model.config.d_model
    deaf = jax.tree.map(lambda x: x, params)
    deaf["mtp_0"] = params["mtp_0"] | {"proj": params["mtp_0"]["proj"].at[half:].set(0)}
    out = [model.predict_ahead(deaf, h, tokens)[0].hidden for h in (hidden, 2 * hidden + 1)]
    assert_close(out[0], out[1])


def test_modules_share_embedding_and_head_and_train() -> None:
    model, params = model_and_params(tied=False)
    block = parameter_count(params["mtp_0"]["block"])
    width = model.config.d_model
    assert parameter_count(params["mtp_0"]) == block + 3 * width + 2 * width**2
    batch = batch_of(tokens_of(model, (2, 8)))
    gradients = jax.jit(jax.grad(lambda p: sft_objective(model)(p, batch, jax.random.key(0))[0]))(params)
    for leaf in jax.tree.leaves(gradients["mtp_1"]):
        assert np.abs(leaf).max() > 0
