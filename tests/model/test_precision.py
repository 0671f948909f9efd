"""FP8: codes and scales against the reference's, products and gradients against a plain NumPy emulation."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from model import platform
from model.platform import float8_product
from model.precision import PRECISIONS, PRODUCTS, dequantize, dot, operands, quantize, ragged_dot, to_float8
from model.sharding import make_mesh

FP8 = [name for name, recipe in PRECISIONS.items() if recipe.quantized]
WAYS: dict[str, Callable[..., Any]] = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(f))(jnp.stack([2 * x, x]))),
}


def draw(seed: int, *shape: int, spread: float = 1.0) -> jax.Array:
    """Normal numbers whose rows differ in size by e^spread."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape) * np.exp(spread * rng.standard_normal((*shape[:-1], 1))), jnp.float32)


def rounded(x: Any, tile: tuple[int, int] | None, floor: float, power_of_two: bool) -> np.ndarray:
    """The definition, tile by tile: code x scale of a matrix, float64; tiles at the edges are partial."""
    x = np.asarray(x, np.float32)
    rows, columns = tile or x.shape
    found = np.empty(x.shape)
    for r, c in itertools.product(range(0, x.shape[0], rows), range(0, x.shape[1], columns)):
        part = x[r : r + rows, c : c + columns]
        scale = np.float32(max(np.abs(part).max(), np.float32(floor))) / np.float32(448)
        if power_of_two:
            scale = np.float32(2.0 ** math.ceil(math.log2(scale)))
        codes = np.clip(part / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        found[r : r + rows, c : c + columns] = codes.astype(np.float64) * np.float64(scale)
    return found


def emulated(name: str, x: Any, kernel: Any, dy: Any) -> tuple[np.ndarray, ...]:
    """y, dx and dkernel of matrices as DeepSeek-V3 multiplies them (2412.19437, figures 6 and 7)."""
    tiled, pow2 = name != "fp8_tensor", name == "fp8_pow2"

    def cut(matrix: Any, tile: tuple[int, int], floor: float = 1e-12) -> np.ndarray:
        return rounded(matrix, tile if tiled else None, floor, pow2)

    across, along = ((128, 128), (128, 128)) if name == "fp8_block_gradient" else ((1, 128), (128, 1))
    rows, blocks = cut(x, (1, 128), 1e-4), cut(kernel, (128, 128))
    return rows @ blocks, cut(dy, across) @ blocks.T, cut(rows, (128, 1), 1e-4).T @ cut(dy, along)


def products_of(
    name: str, x: jax.Array, kernel: jax.Array, dy: jax.Array, product: str = "auto"
) -> tuple[jax.Array, ...]:
    """y, dx and dkernel of `dot`."""
    y, pull = jax.vjp(functools.partial(dot, precision=name, product=product), x, kernel)
    return y, *pull(dy)


compiled = jax.jit(products_of, static_argnums=(0, 4))


def assert_equal_to_rounding(got: Any, want: Any, tolerance: float = 1e-6) -> None:
    """Every part within `tolerance` of its largest number."""
    for found, expected in zip(got, want, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def error(got: Any, want: Any) -> float:
    """Relative, in the Frobenius norm."""
    return float(np.linalg.norm(np.asarray(got - want)) / np.linalg.norm(np.asarray(want)))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "fp8.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("way", WAYS)
def test_codes_and_scales_are_the_references(golden: dict[str, np.ndarray], way: str) -> None:
    """Exactly, row of zeros, spike of 3e4 and scales in powers of two included."""
    rows = WAYS[way](lambda x: quantize(x, (1, 128), 1e-4))(jnp.asarray(golden["x"]))
    blocks = WAYS[way](lambda w: quantize(w, (128, 128)))(jnp.asarray(golden["w"]))
    powers = WAYS[way](lambda x: quantize(x, (1, 128), 1e-4, power_of_two=True))(jnp.asarray(golden["x"]))
    for got, name in ((rows.codes, "a"), (rows.scales, "sa"), (blocks.codes, "b"), (blocks.scales, "sb")):
        np.testing.assert_array_equal(np.asarray(got).view(golden[name].dtype), golden[name], name)
    np.testing.assert_array_equal(powers.scales, golden["sa_ue8m0"])
    np.testing.assert_array_equal(rows.scales[5], np.float32(1e-4) / np.float32(448))
    assert not np.asarray(rows.codes[5]).astype(np.float32).any()


@pytest.mark.parametrize("product", PRODUCTS)
def test_product_is_the_references(golden: dict[str, np.ndarray], product: str) -> None:
    got = jax.jit(functools.partial(dot, precision="fp8", product=product))(golden["x"], golden["w"].T)
    assert_equal_to_rounding([got], [golden["c"]])


def test_the_cast_saturates() -> None:
    x = jnp.asarray([0.0, 1.06, 447.0, 464.0, 465.0, -1e9, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(
        to_float8(x).astype(jnp.float32), [0.0, 1.0, 448.0, 448.0, 448.0, -448.0, 448.0, jnp.nan]
    )


@pytest.mark.parametrize("shape", [(2, 5), (130, 200), (3, 128, 129)], ids=str)
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)], ids=str)
def test_partial_tiles_follow_the_definition(shape: tuple[int, ...], tile: tuple[int, int]) -> None:
    x = draw(0, *shape)
    found = quantize(x, tile)
    assert found.scales.shape == (*shape[:-2], *(-(-size // t) for size, t in zip(shape[-2:], tile, strict=True)))
    for got, turned, matrix in zip(
        found.values.reshape(-1, *shape[-2:]),
        found.T.values.reshape(-1, *shape[:-3:-1]),
        x.reshape(-1, *shape[-2:]),
        strict=True,
    ):
        np.testing.assert_allclose(got, rounded(matrix, tile, 1e-12, False), rtol=1e-6)
        np.testing.assert_array_equal(got, turned.T)


def test_padding_with_zeros_changes_nothing() -> None:
    x = draw(1, 100, 200)
    whole = quantize(jnp.pad(x, ((0, 28), (0, 56))), (128, 128)).values
    np.testing.assert_array_equal(quantize(x, (128, 128)).values, whole[:100, :200])


def test_what_is_not_finite_stays_so() -> None:
    """A blown-up activation must reach the guard of the training step, not be clipped to a number."""
    x = draw(2, 4, 128)
    for bad in (np.nan, np.inf):
        y = dot(x.at[1, 7].set(bad), draw(3, 128, 8), "fp8")
        assert np.isnan(np.asarray(y[1])).all()
        assert np.isfinite(np.asarray(y[jnp.asarray([0, 2, 3])])).all()


@pytest.mark.more_but(
    "(256, 256, 128)-fp8-slabs",
    "(256, 256, 128)-fp8_tensor-dequantized",
    "(150, 200, 130)-fp8_pow2-native",
    "(3, 40, 300)-fp8_pow2-slabs",
)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("sizes", [(256, 256, 128), (150, 200, 130), (3, 40, 300)], ids=str)
def test_output_and_gradients_are_the_emulations(name: str, product: str, sizes: tuple[int, int, int]) -> None:
    T, K, N = sizes
    inputs = draw(4, T, K), draw(5, K, N), draw(6, T, N)
    assert_equal_to_rounding(compiled(name, *inputs, product), emulated(name, *inputs))


@pytest.mark.parametrize("name", FP8)
def test_output_and_gradients_are_near_the_exact_ones(name: str) -> None:
    inputs = draw(7, 256, 384, spread=0), draw(8, 384, 200, spread=0), draw(9, 256, 200, spread=0)
    got, exact = compiled(name, *inputs), compiled("high", *inputs)
    assert all(0.01 < error(*pair) < 0.05 for pair in zip(got, exact, strict=True))


def test_tiles_confine_an_outlier() -> None:
    """One huge activation spoils one tile; with a scale per tensor it spoils every token (section 3.3.2)."""
    x, kernel = draw(10, 8, 256).at[0, 0].set(1e6), draw(11, 256, 64)
    want = dot(x, kernel, "high")[1:]
    assert error(dot(x, kernel, "fp8")[1:], want) < 0.05
    assert error(dot(x, kernel, "fp8_tensor")[1:], want) > 0.5


def test_blocks_lose_the_gradients_of_quiet_tokens() -> None:
    """Tokens whose gradients are 1e-6 of their neighbours' survive in tiles, not in blocks (appendix B.2)."""
    x, kernel, dy = draw(12, 128, 64), draw(13, 64, 256), draw(14, 128, 256).at[1:].multiply(1e-6)
    want = compiled("high", x, kernel, dy)[1][1:]
    assert error(compiled("fp8", x, kernel, dy)[1][1:], want) < 0.05
    assert error(compiled("fp8_block_gradient", x, kernel, dy)[1][1:], want) > 0.5


def test_powers_of_two_make_retiling_free() -> None:
    """Codes under such scales are cut into other tiles without being rounded again (section 3.3.3)."""
    inputs = draw(15, 256, 256, spread=0), draw(16, 256, 128, spread=0), draw(17, 256, 128, spread=0)
    want = compiled("high", *inputs)[2]
    rows = quantize(inputs[0], (1, 128), 1e-4, power_of_two=True).values
    again = quantize(rows, (128, 1), 1e-4, power_of_two=True).values
    assert error(again, rows) < 1e-4
    assert error(compiled("fp8_pow2", *inputs)[2], want) < 0.9 * error(compiled("fp8", *inputs)[2], want)


def test_activations_far_below_the_floor_fade() -> None:
    """Their scale is 1e-4 / 448 at least, in every product, as in the published kernels."""
    inputs = 1e-9 * draw(47, 40, 100, spread=0), draw(48, 100, 30), draw(49, 40, 30)
    got = compiled("fp8", *inputs)
    assert_equal_to_rounding(got, emulated("fp8", *inputs))
    assert error(got[0], compiled("high", *inputs)[0]) > 0.1


def test_tiny_gradients_are_not_flushed() -> None:
    """A mean over many tokens only moves the scales: 2^-30 of the gradient gives 2^-30 of the products."""
    x, kernel, dy = draw(18, 130, 100), draw(19, 100, 60), draw(20, 130, 60)
    small, large = compiled("fp8", x, kernel, 2.0**-30 * dy), compiled("fp8", x, kernel, dy)
    for got, want in zip(small[1:], large[1:], strict=True):
        np.testing.assert_array_equal(got * 2.0**30, want)


@pytest.mark.parametrize("name", ["high", "fp8"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_dtypes(name: str, stored: str) -> None:
    """y and dx have that of x, the gradient of the kernel has the kernel's own."""
    x, kernel, dy = draw(21, 4, 130).astype("bfloat16"), draw(22, 130, 20).astype(stored), draw(23, 4, 20)
    got = compiled(name, x, kernel, dy.astype("bfloat16"))
    assert [part.dtype.name for part in got] == ["bfloat16", "bfloat16", stored]


def test_gradient_of_stored_weights_is_not_rounded_to_the_compute_dtype() -> None:
    x, kernel, dy = draw(24, 64, 128), draw(25, 128, 32), draw(26, 64, 32)
    x, dy = x.astype("bfloat16"), dy.astype("bfloat16")
    got = compiled("fp8", x, kernel, dy)[2]
    assert_equal_to_rounding([got], emulated("fp8", x, kernel, dy)[2:])


def test_leading_axes() -> None:
    """[B, S, K] and [K] are rows like any others, in every recipe."""
    x, kernel, dy = draw(27, 3, 50, 140), draw(28, 140, 30), draw(29, 3, 50, 30)
    for name in FP8:
        y, dx, dkernel = compiled(name, x, kernel, dy)
        flat = compiled(name, x.reshape(150, 140), kernel, dy.reshape(150, 30))
        assert_equal_to_rounding((y.reshape(150, 30), dx.reshape(150, 140), dkernel), flat)
    row = dot(x[0, 0], kernel, "fp8")
    assert_equal_to_rounding([row], [dot(x[0, :1], kernel, "fp8")[0]])


@pytest.mark.parametrize("product", PRODUCTS)
def test_vmap_over_experts_equals_a_loop(product: str) -> None:
    inputs = draw(30, 3, 40, 130), draw(31, 3, 130, 50), draw(32, 3, 40, 50)
    got = jax.jit(jax.vmap(functools.partial(products_of, "fp8", product=product)))(*inputs)
    want = [compiled("fp8", *one, product) for one in zip(*inputs, strict=True)]
    assert_equal_to_rounding(got, [jnp.stack(parts) for parts in zip(*want, strict=True)])


def test_ragged_dot_equals_dot_group_by_group() -> None:
    """Groups of whole tiles, one of them empty, so that the gradient of the kernels agrees as well."""
    sizes = (128, 0, 256)
    x, kernels, dy = draw(33, 384, 130), draw(34, 3, 130, 50), draw(35, 384, 50)

    @jax.jit
    def grouped(x: jax.Array, kernels: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda x, kernels: ragged_dot(x, kernels, jnp.asarray(sizes), "fp8"), x, kernels)
        return y, *pull(dy)

    bounds = np.cumsum((0, *sizes))
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    want = [compiled("fp8", x[p], k, dy[p]) for p, k in zip(parts, kernels, strict=True) if p.start < p.stop]
    dkernels = jnp.stack([want[0][2], jnp.zeros((130, 50)), want[1][2]])
    joined = [jnp.concatenate(part) for part in zip(*(one[:2] for one in want), strict=True)]
    assert_equal_to_rounding(grouped(x, kernels, dy), (*joined, dkernels))
    plain = ragged_dot(x, kernels, jnp.asarray(sizes), "high")
    assert_equal_to_rounding([plain], [jnp.concatenate([x[:128] @ kernels[0], x[128:] @ kernels[2]])])


def test_operands_are_what_dot_multiplies() -> None:
    x, kernel = draw(36, 3, 50, 140), draw(37, 140, 30)
    for name in PRECISIONS:
        left, right = operands(x, kernel, name)
        assert_equal_to_rounding([left @ right], [dot(x, kernel, name)])
    straight = jax.grad(lambda x: (operands(x, kernel, "fp8")[0] * x).sum())(x)
    np.testing.assert_allclose(straight, operands(x, kernel, "fp8")[0] + x, rtol=1e-6)


def test_a_token_does_not_see_its_neighbours() -> None:
    """Rollouts and training batch tokens differently and must agree on each of them."""
    x, kernel = draw(38, 64, 200), draw(39, 200, 30)
    np.testing.assert_array_equal(quantize(x, (1, 128)).values[7:9], quantize(x[7:9], (1, 128)).values)
    assert_equal_to_rounding([dot(x, kernel, "fp8")[7:9]], [dot(x[7:9], kernel, "fp8")])


@pytest.mark.more
def test_jit_and_remat_change_nothing() -> None:
    inputs = draw(40, 2, 70, 150), draw(41, 150, 60), draw(42, 2, 70, 60)
    want = products_of("fp8", *inputs)
    assert_equal_to_rounding(compiled("fp8", *inputs), want)
    y, pull = jax.vjp(jax.checkpoint(functools.partial(dot, precision="fp8")), *inputs[:2])
    assert_equal_to_rounding((y, *pull(inputs[2])), want)


@pytest.mark.more_but("{'fsdp': 2, 'tensor': 4}-native", "{'data': 2, 'context': 4}-dequantized")
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("product", ["native", "dequantized"])
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "context": 4}], ids=str)
def test_eight_devices_equal_one(product: str, mesh: dict[str, int]) -> None:
    """Rows and channels cut inside tiles: shards of 40 and 80 channels, a sequence in four."""
    inputs = draw(43, 8, 40, 160), draw(44, 160, 320), draw(45, 8, 40, 320)
    want = compiled("fp8", *inputs, product)
    axes = (("data", "fsdp"), "context", None), ("fsdp", "tensor"), (("data", "fsdp"), "context", "tensor")
    devices = make_mesh(mesh)
    shardings = [jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(*names)) for names in axes]
    with jax.set_mesh(devices):
        got = compiled("fp8", *jax.device_put(inputs, tuple(shardings)), product)
    assert_equal_to_rounding(got, want)


@pytest.mark.parametrize("shape", [(256, 512), (200, 300), (5, 3)], ids=str)
def test_dequantize(shape: tuple[int, int]) -> None:
    x = draw(46, *shape)
    blocks = quantize(x, (128, 128))
    values = dequantize(np.asarray(blocks.codes), np.asarray(blocks.scales))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, blocks.values)
    np.testing.assert_allclose(values, rounded(x, (128, 128), 1e-12, False), rtol=1e-6)
    small = quantize(x, (16, 16))
    np.testing.assert_array_equal(dequantize(small.codes, small.scales, 16), small.values)


def test_dequantize_golden(golden: dict[str, np.ndarray]) -> None:
    values = dequantize(golden["b"].view(ml_dtypes.float8_e4m3fn), golden["sb"])
    assert 0.01 < error(values, golden["w"]) < 0.05


def test_dequantize_refuses_scales_of_another_shape() -> None:
    codes = np.zeros((200, 300), ml_dtypes.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"codes \(200, 300\) and scales \(3, 2\).*need scales \(2, 3\)"):
        dequantize(codes, np.ones((3, 2)))


@pytest.mark.parametrize(
    "device, expected",
    [
        ({"platform": "cpu"}, "dequantized"),
        ({"platform": "gpu", "compute_capability": "8.0"}, "dequantized"),
        ({"platform": "gpu", "compute_capability": "8.9"}, "native"),
        ({"platform": "gpu", "compute_capability": "9.0"}, "native"),
        ({"platform": "gpu", "compute_capability": "10.0"}, "native"),
        ({"platform": "gpu", "compute_capability": "gfx942"}, "dequantized"),
        ({"platform": "tpu", "device_kind": "TPU v5p"}, "dequantized"),
        ({"platform": "tpu", "device_kind": "TPU7x"}, "native"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value,
)
def test_the_product_is_chosen_by_the_device(device: dict[str, str], expected: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("SAGAX_FLOAT8", raising=False)
    monkeypatch.setattr(platform.jax, "devices", lambda: [SimpleNamespace(**device)])
    assert float8_product() == expected
    monkeypatch.setenv("SAGAX_FLOAT8", "slabs")
    assert float8_product() == "slabs"
    assert float8_product("native") == "native"


def test_an_unknown_product_names_the_nearest(monkeypatch: Any) -> None:
    monkeypatch.setenv("SAGAX_FLOAT8", "nativ")
    with pytest.raises(ValueError, match=r"unknown float8 product 'nativ'\. Did you mean 'native'"):
        dot(jnp.ones((1, 2)), jnp.ones((2, 2)), "fp8")
