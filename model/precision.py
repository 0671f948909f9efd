"""Matrix products in the precision that the config asks for: plain, or the FP8 training of DeepSeek-V3.

The scheme is that of 2412.19437 section 3.3. A dense product and both products of its gradient take e4m3 operands;
activations and gradients carry one scale per 1 x 128 tile along the contraction, weights one per 128 x 128 block, and
sums are kept in fp32. Embeddings, head, router, norms and the core of attention never come here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from model.platform import float8_product, platform
from settings.setting import unknown

FLOAT8 = jnp.float8_e4m3fn
LARGEST = 448.0  # of e4m3
TILE = 128
# Smallest amax. Activations have that of the published kernels; gradients of a mean over many tokens lie far below it.
ACTIVATION_FLOOR, FLOOR = 1e-4, 1e-12

Tile = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Precision:
    """What the operands of a dense product are rounded to.

    `quantized` to e4m3, else nothing is rounded; `tiled` scales by tile and block, else one scale per tensor;
    `power_of_two` rounds scales up to powers of two (ue8m0); `block_gradients` gives gradients 128 x 128 blocks like
    weights, which diverged in the paper (appendix B.2).
    """

    quantized: bool = True
    tiled: bool = True
    power_of_two: bool = False
    block_gradients: bool = False


PRECISIONS: dict[str, Precision] = {
    "high": Precision(quantized=False),
    "fp8": Precision(),
    "fp8_pow2": Precision(power_of_two=True),
    "fp8_tensor": Precision(tiled=False),
    "fp8_block_gradient": Precision(block_gradients=True),
}


@flax.struct.dataclass
class Quantized:
    """`codes` [..., R, C] e4m3 and `scales` [..., ceil(R / r), ceil(C / c)] fp32, one per tile (r, c): factors."""

    codes: jax.Array
    scales: jax.Array
    tile: Tile = flax.struct.field(pytree_node=False)

    @property
    def values(self) -> jax.Array:
        """The numbers meant, fp32."""
        return self.codes.astype(jnp.float32) * _spread(self.scales, self.tile, self.codes.shape)

    @property
    def T(self) -> Quantized:
        """The last two axes exchanged: the codes stay the same."""
        return Quantized(self.codes.swapaxes(-1, -2), self.scales.swapaxes(-1, -2), self.tile[::-1])


def to_float8(x: jax.Array) -> jax.Array:
    """The nearest e4m3 codes; what is larger than 448 becomes 448, as in PyTorch (JAX's own cast makes it NaN)."""
    return jnp.clip(x, -LARGEST, LARGEST).astype(FLOAT8)


def quantize(x: jax.Array, tile: Tile, floor: float = FLOOR, power_of_two: bool = False) -> Quantized:
    """Rounds x [..., R, C] to e4m3 codes with one scale, max(amax, floor) / 448, per tile of the last two axes.

    Where a size is no multiple of the tile's, the last tile is partial, which equals padding with zeros. Not
    differentiable in a useful way: `dot` and `ragged_dot` are. Source: 2412.19437, section 3.3.2.
    """
    x = x.astype(jnp.float32)
    (rows, columns), (r, c) = x.shape[-2:], tile
    tiles = jnp.pad(jnp.abs(x), [(0, 0)] * (x.ndim - 2) + [(0, -rows % r), (0, -columns % c)])
    tiles = tiles.reshape(*x.shape[:-2], -(-rows // r), r, -(-columns // c), c)
    scales = jnp.maximum(tiles.max((-3, -1)), floor)
    scales = _divide(scales, jnp.full_like(scales, LARGEST))
    if power_of_two:
        mantissa, exponent = jnp.frexp(scales)
        scales = jnp.ldexp(jnp.ones_like(scales), exponent - (mantissa == 0.5))
    return Quantized(to_float8(_divide(x, _spread(scales, tile, x.shape))), scales, tile)


def dequantize(codes: Any, scale_inv: Any, block: int = TILE) -> np.ndarray:
    """Weights of a published FP8 checkpoint: codes [R, C] e4m3 x the scale of their block -> [R, C] fp32.

    `scale_inv` [ceil(R / block), ceil(C / block)] (the tensor `weight_scale_inv`) multiplies; blocks at the edges are
    partial. Raises ValueError where the two shapes do not belong together. Source: DeepSeek-V3's checkpoint format.
    """
    codes, scales = np.asarray(codes), np.asarray(scale_inv, np.float32)
    expected = tuple(-(-size // block) for size in codes.shape)
    if codes.ndim != 2 or scales.shape != expected:
        shapes = f"codes {codes.shape} and scales {scales.shape}"
        raise ValueError(f"{shapes} do not belong together: blocks of {block} x {block} need scales {expected}")
    values = codes.astype(np.float32)
    for row, scale in zip(range(0, len(values), block), scales, strict=True):  # whole scales would double the memory
        values[row : row + block] *= scale.repeat(block)[: codes.shape[1]]
    return values


def dot(x: jax.Array, kernel: jax.Array, precision: str, product: str = "auto", dtype: Any = None) -> jax.Array:
    """x [..., K] @ kernel [K, N] -> [..., N] of `dtype` (None: x's); `precision` is a name in PRECISIONS.

    Give the kernel as it is stored: it is cast to x's dtype where nothing is quantised, and quantised from full
    precision otherwise; its gradient has its dtype. Sizes need not be multiples of 128 (see `quantize`). Stacked
    experts [E, K, N] with rows [E, C, K] go through `jax.vmap`, sorted rows through `ragged_dot`. `product` is a name
    in PRODUCTS: how codes are multiplied, by default as suits the device.
    """
    recipe = PRECISIONS[precision]
    if not recipe.quantized:
        matmul = functools.partial(jnp.matmul, preferred_element_type=dtype)
        return by_rows(matmul, x, kernel.astype(x.dtype))
    return _apply(_products(product), recipe, x, kernel).astype(dtype or x.dtype)


def by_rows(product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """product(x, kernel) for x [..., K], its leading axes joined on CPU.

    The kernel's gradient sums over all of them, and XLA:CPU takes more than twice as long to sum over two axes as over
    one. Elsewhere the axes stay as they are sharded.
    """
    if platform() != "cpu":
        return product(x, kernel)
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


def operands(x: jax.Array, kernel: jax.Array, precision: str) -> tuple[jax.Array, jax.Array]:
    """The numbers that `dot` multiplies for x [..., K] and kernel [K, ...] (later axes joined), of their own dtypes.

    For a caller that takes the product apart, as absorbed latent attention does. Gradients pass straight through.
    """
    recipe = PRECISIONS[precision]
    if not recipe.quantized:
        return x, kernel
    rounded = _quantize_operands(recipe, x, kernel.reshape(kernel.shape[0], -1))
    pairs = zip((x, kernel), rounded, strict=True)
    left, right = (a + jax.lax.stop_gradient(b.values.reshape(a.shape).astype(a.dtype) - a) for a, b in pairs)
    return left, right


def ragged_dot(x: jax.Array, kernels: jax.Array, sizes: jax.Array, precision: str) -> jax.Array:
    """`jax.lax.ragged_dot` in a precision: rows x [T, K] sorted by group, kernels [E, K, N], sizes [E] -> [T, N].

    Rows and each kernel are quantised as in `dot`, so y and the gradient of x are those of `dot` group by group. In
    the gradient of the kernels a tile is 128 consecutive rows, whatever groups they belong to. The products are always
    emulated in fp32.
    """
    recipe = PRECISIONS[precision]
    if not recipe.quantized:
        return jax.lax.ragged_dot(x, kernels.astype(x.dtype), sizes)
    return _apply(_RAGGED, recipe, x, kernels, sizes)


class Products(NamedTuple):
    """The three products of a linear map on `Quantized` operands, fp32: y, the gradient of x, that of the kernel.

    y from x [..., K] and kernel; dx from dy [..., N] and kernel; dkernel from x [T, K] and dy [T, N].
    """

    output: Callable[..., jax.Array]
    rows: Callable[..., jax.Array]
    kernel: Callable[..., jax.Array]


def _apply(products: Products, recipe: Precision, x: jax.Array, kernel: jax.Array, *groups: jax.Array) -> jax.Array:
    y = _linear(products, recipe, x.astype(jnp.float32), kernel.astype(jnp.float32), *groups)
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(products: Products, recipe: Precision, x: jax.Array, kernel: jax.Array, *groups: jax.Array) -> jax.Array:
    return _forward(products, recipe, x, kernel, *groups)[0]


def _forward(products: Products, recipe: Precision, x: jax.Array, kernel: jax.Array, *groups: jax.Array) -> Any:
    rows, blocks = _quantize_operands(recipe, x, kernel)
    y = products.output(rows, blocks, *groups).reshape(*x.shape[:-1], kernel.shape[-1])
    return y, (rows, blocks, groups)


def _backward(products: Products, recipe: Precision, saved: Any, dy: jax.Array) -> Any:
    rows, blocks, groups = saved
    across, along = ((TILE, TILE),) * 2 if recipe.block_gradients else ((1, TILE), (TILE, 1))
    dx = products.rows(_quantize_rows(dy, recipe, across), blocks, *groups)
    dx = dx.reshape(*dy.shape[:-1], blocks.codes.shape[-2])
    # Only codes are kept for this, as on the paper's hardware: the tiles along tokens are cut from what they mean.
    x = rows.values.reshape(-1, rows.codes.shape[-1])
    x, dy = (part.reshape(-1, part.shape[-1]) for part in (x, dy))
    along_x = _quantize_rows(x, recipe, (TILE, 1), ACTIVATION_FLOOR)
    return dx, products.kernel(along_x, _quantize_rows(dy, recipe, along), *groups), *(None for _ in groups)


_linear.defvjp(_forward, _backward)


def _quantize_operands(recipe: Precision, x: jax.Array, kernel: jax.Array) -> tuple[Quantized, Quantized]:
    blocks = quantize(kernel, _tile(recipe, (TILE, TILE), kernel), power_of_two=recipe.power_of_two)
    return _quantize_rows(x, recipe, (1, TILE), ACTIVATION_FLOOR), blocks


def _quantize_rows(x: jax.Array, recipe: Precision, tile: Tile, floor: float = FLOOR) -> Quantized:
    # Tiles of one row never leave it, and a reshape could cost a sharded sequence its sharding.
    if x.ndim == 1 or not recipe.tiled or tile[0] > 1:
        x = x.reshape(-1, x.shape[-1])
    return quantize(x, _tile(recipe, tile, x), floor, recipe.power_of_two)


def _tile(recipe: Precision, tile: Tile, x: jax.Array) -> Tile:
    return tile if recipe.tiled else (x.shape[-2], x.shape[-1])


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    # XLA turns division by anything it knows to be broadcast into a product with the reciprocal, which is off by a
    # unit in the last place; it may not assume that 0 x is 0.
    return x / (y + 0.0 * x)


def _spread(scales: jax.Array, tile: Tile, shape: tuple[int, ...]) -> jax.Array:
    """Scales of tiles -> scales of elements [..., R, C]."""
    rows = jnp.repeat(scales, tile[0], -2)[..., : shape[-2], :]
    return jnp.repeat(rows, tile[1], -1)[..., : shape[-1]]


def _dequantized_product(a: Quantized, b: Quantized) -> jax.Array:
    """a [..., M, K] b [K, N] with the scales applied first: one fp32 product, equal but for fp32 rounding."""
    return jnp.matmul(a.values, b.values, precision=jax.lax.Precision.HIGHEST)


def _slab_product(a: Quantized, b: Quantized, dtype: Any = FLOAT8) -> jax.Array:
    """a [..., M, K] b [K, N] = sum over slabs of K of (codes a codes b) x scales a x scales b, fp32."""
    operands = (_slabs(a, dtype), _slabs(b.T, dtype))

    def add(total: jax.Array, slab: Any) -> tuple[jax.Array, None]:
        (left, left_scale), (right, right_scale) = slab
        # The default precision would let an H100 sum in less than fp32.
        product = jax.lax.dot_general(
            left,
            right,
            (((left.ndim - 1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return total + product * left_scale[..., None] * right_scale, None

    start = jnp.zeros((*a.codes.shape[:-1], b.codes.shape[-1]), jnp.float32)
    return jax.lax.scan(add, start, operands)[0]


def _slabs(a: Quantized, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Codes [S, ..., M, slab] and scales [S, ..., M] of a [..., M, K] cut along K into S slabs."""
    (*lead, rows, columns), slab = a.codes.shape, a.tile[1]
    padded = jnp.pad(a.codes, [(0, 0)] * (len(lead) + 1) + [(0, -columns % slab)])
    codes = jnp.moveaxis(padded.reshape(*lead, rows, -1, slab), -2, 0)
    scales = jnp.repeat(a.scales, a.tile[0], -2)[..., :rows, :]
    return codes.astype(dtype), jnp.moveaxis(scales, -1, 0)


def _matrix_products(product: Callable[[Quantized, Quantized], jax.Array]) -> Products:
    return Products(product, lambda dy, kernel: product(dy, kernel.T), lambda x, dy: product(x.T, dy))


# "native" multiplies float8 codes, "slabs" the same codes as fp32; "dequantized" is the fastest without float8 units.
PRODUCTS: dict[str, Products] = {
    "native": _matrix_products(_slab_product),
    "slabs": _matrix_products(functools.partial(_slab_product, dtype=jnp.float32)),
    "dequantized": _matrix_products(_dequantized_product),
}


def _products(choice: str) -> Products:
    name = float8_product(choice)
    if name not in PRODUCTS:
        raise ValueError(unknown("float8 product", name, PRODUCTS))
    return PRODUCTS[name]


def _ragged(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x, kernels, sizes, precision=jax.lax.Precision.HIGHEST)


def _ragged_kernel_gradient(x: Quantized, dy: Quantized, sizes: jax.Array) -> jax.Array:
    kernels = jax.ShapeDtypeStruct((len(sizes), x.codes.shape[-1], dy.codes.shape[-1]), jnp.float32)
    (gradient,) = jax.linear_transpose(lambda kernels: _ragged(x.values, kernels, sizes), kernels)(dy.values)
    return gradient


_RAGGED = Products(
    lambda x, kernels, sizes: _ragged(x.values, kernels.values, sizes),
    lambda dy, kernels, sizes: _ragged(dy.values, kernels.T.values, sizes),
    _ragged_kernel_gradient,
)
