"""Loss and gradients on eight devices, supervised and GRPO, of every slot on every kind of mesh: those of one device.

One table: CASES x MESHES; with SAGAX_FULL=1 in the environment (make test-all) the whole grid x MESHES.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.sharding import make_mesh, on_mesh
from rl.grpo import grpo_objective
from tests.grid import GRID, Case, case_of, demonstrations, rollout_batch
from train.accumulate import accumulate
from train.batches import on_devices
from train.objectives.losses import sft_objective

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESHES = {
    "fsdp8": {"fsdp": 8},
    "fsdp4-tensor2": {"fsdp": 4, "tensor": 2},
    "expert4-fsdp2": {"expert": 4, "fsdp": 2},
    "context4-data2": {"context": 4, "data": 2},
}
CASES = [
    ("gqa", "glu", 0, "scanned"),
    ("mla", "moe", 1, "stack"),
    ("mingru", "peer", 0, "stack"),
    ("minlstm", "moe", 0, "stack"),
    ("gqa", "glu", 1, "recurrent"),
    ("gqa+", "moe", 0, "stack"),
    ("gqa+", "glu", 1, "scanned"),
    ("gated_delta", "moe", 1, "stack"),
]
if os.environ.get("SAGAX_FULL"):
    CASES = list(dict.fromkeys([*CASES, *GRID]))


def learnt(case: Case, batches: Any, params: Any) -> Any:
    """Loss, gradients and what layers report of both objectives, each per token."""
    found = []
    for objective, batch in zip((sft_objective(case.model), grpo_objective(case.model)), batches, strict=True):
        sums = accumulate(objective, params, batch, jax.random.key(0))
        mean = functools.partial(jax.tree.map, lambda x, n=sums.count: x / n)
        reports = mean(sums.metrics.get("sums", {}))
        found.append({"loss": mean(sums.total), "gradients": mean(sums.gradients), "reports": reports})
    return found


@functools.lru_cache(maxsize=1)
def alone(*name: Any) -> tuple[Any, Any]:
    """Both batches, and what one device learns from them."""
    case = case_of(*name)
    batches = [jax.tree.map(jnp.asarray, x) for x in (demonstrations(), rollout_batch(case, case.params))]
    return batches, jax.jit(functools.partial(learnt, case))(batches, case.params)


@pytest.mark.more_but(
    "gqa-glu-0-scanned-fsdp4-tensor2",
)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", CASES, ids=lambda name: "-".join(map(str, name)))
def test_eight_devices_learn_what_one_does(name: tuple[Any, ...], mesh: str) -> None:
    case, devices = case_of(*name), make_mesh(MESHES[mesh])
    batches, wanted = alone(*name)
    params = jax.device_put(case.params, case.model.shardings(devices))
    batches = [on_devices(batch, devices) for batch in batches]
    found = on_mesh(devices)(jax.jit(functools.partial(learnt, case)))(batches, params)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves([part["gradients"] for part in wanted]))
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1.0, largest), err_msg=where)
