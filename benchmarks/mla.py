"""What latent attention costs at decode: bytes the compiled step touches and bytes a cached token takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.context import Context
from model.mla import absorbed, naive
from settings.model_parts import MLAConfig

# DeepSeek-V3 (2412.19437, section 4.2), and the grouped-query attention of Llama-3-70B beside it.
HEADS, SIZES = 128, MLAConfig(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
GQA_KEY_HEADS, GQA_HEAD_DIM = 8, 128


def decode_bytes(
    core: Callable[..., jax.Array], sizes: MLAConfig, heads: int, length: int, rows: int = 2, dtype: Any = jnp.float32
) -> float:
    """Bytes that one compiled decode step of `core` reads and writes for `rows` sequences of `length` cached tokens."""
    # Two rows: for a single one XLA:CPU drops the batch axis and copies the latents to transpose them.
    shapes = (
        (rows, heads, 1, sizes.nope_dim + sizes.rope_dim),
        (rows, 1, length, sizes.kv_rank),
        (rows, 1, length, sizes.rope_dim),
        (sizes.kv_rank, heads, sizes.nope_dim + sizes.v_dim),
    )
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    columns = [jax.ShapeDtypeStruct((rows, n), jnp.int32) for n in (1, 1, length, length)]
    context = Context(*columns, {}, jnp.int32(length - 1))
    compiled = jax.jit(functools.partial(core, window=None, scale=0.1)).lower(*given, context).compile()
    return float(compiled.cost_analysis()["bytes accessed"])


def bytes_per_cached_token(
    core: Callable[..., jax.Array], sizes: MLAConfig, heads: int, length: int = 4096, rows: int = 2
) -> float:
    """What one more cached token adds to `decode_bytes`: weights and queries drop out."""
    whole, half = (decode_bytes(core, sizes, heads, n, rows) for n in (length, length // 2))
    return (whole - half) / (length - length // 2) / rows


def bench_mla(repeats: int, length: int = 4096) -> dict[str, Any]:
    """Bytes per cached token (fp32) of both cores at DeepSeek-V3's sizes, and numbers cached per token and layer.

    `absorbed` reads R + rope numbers for the scores and R for the values (`latents`); the rest is the heads' scores.
    """
    del repeats  # counted, not timed
    found = {core.__name__: bytes_per_cached_token(core, SIZES, HEADS, length) for core in (absorbed, naive)}
    return {
        "length": length,
        "bytes_per_cached_token": {name: round(value) for name, value in found.items()},
        "latents": 4 * (2 * SIZES.kv_rank + SIZES.rope_dim),
        "naive_over_absorbed": round(found["naive"] / found["absorbed"], 1),
        "cached_numbers_per_token": {
            "mla": SIZES.kv_rank + SIZES.rope_dim,
            "gqa_8_heads_of_128": 2 * GQA_KEY_HEADS * GQA_HEAD_DIM,
            "mha_128_heads": HEADS * (SIZES.nope_dim + SIZES.rope_dim + SIZES.v_dim),
        },
    }
