"""How alike two representations of the same examples are: mutual nearest neighbours, CKA, CKNNA, and what chance gives.

    test = permutation_test(thoughts, steps, jax.random.key(0), covariates=questions)  # test.alignment.score, test.p

Either side is the features [N, D] of one layer, an array [N, L, D] of several, or a list of [N, D_l] of any widths.

Source: The Platonic Representation Hypothesis (2405.07987), section 3 and appendices; minyoungg/platonic-rep. Every
score is of rows of unit length, and the score of two models is the largest over all pairs of layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from settings.setting import unknown

Blocks = tuple[jax.Array, ...]  # [N, L, D] each: layers that share one limit on outliers
Side = ArrayLike | Sequence[ArrayLike]  # [N, D], [N, L, D], or a sequence of [N, D_l]
Ids = tuple[Sequence[Any], Sequence[Any]]  # of both sides, [N] each

MEASURES = ("mutual_knn", "cka", "cknna")
MODES = ("exact", "approximate")
TIE = 1e-6  # cosines that differ by less are as near as each other in float32
EPSILON = 1e-6  # the published denominators


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is compared: the `kind` of score, its `k` neighbours, and where outliers are clamped.

    kind: "mutual_knn", "cka" (linear; k is not used) or "cknna". quantile: of the absolute values; 1 clamps nothing.
    mode: see `clamp_outliers`. Raises ValueError for values that are none.
    """

    kind: str = "mutual_knn"
    k: int = 10
    quantile: float = 0.95
    mode: str = "exact"

    def __post_init__(self) -> None:
        if self.kind not in MEASURES:
            raise ValueError(unknown("measure", self.kind, MEASURES))
        if self.mode not in MODES:
            raise ValueError(unknown("mode of clamping", self.mode, MODES))
        if not 0 < self.quantile <= 1:
            raise ValueError(f"the quantile of outliers must lie in (0, 1], found {self.quantile}")
        if self.k < (least := 2 if self.kind == "cknna" else 1):
            raise ValueError(f"{self.kind} takes k of at least {least}, found {self.k}")


PUBLISHED = Measure()


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The largest of the `scores` [La, Lb], and the pair of `layers` that has it.

    It is the larger the more pairs there are: compare it with the maxima of a `permutation_test`, not with `chance`.
    """

    score: float
    layers: tuple[int, int]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class PermutationTest:
    """An alignment beside the same maximum over layer pairs where b's examples are shuffled.

    maxima [P]: one for each permutation; mean: theirs; p: the share of permutations, the unshuffled order counted as
    one, that score at least as much.
    """

    alignment: Alignment
    p: float
    mean: float
    maxima: np.ndarray


def chance(n: int, k: int) -> float:
    """The mutual k-NN score that one pair of unrelated layers is expected to have on `n` examples: k / (n - 1)."""
    return k / (n - 1)


def mutual_knn(a: ArrayLike, b: ArrayLike, k: int = 10) -> float:
    """The share of an example's k nearest neighbours in a [N, D] that are so in b [N, D'], too, averaged over examples.

    Neighbours by cosine, an example is not its own. Equally near ones share the places that are left, so that the score
    is the mean over ties broken by chance: by their order, repeated rows would look aligned. Raises as `align`.
    """
    return align(a, b, Measure("mutual_knn", k, quantile=1)).score


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Centred kernel alignment of unit rows a [N, D] and b [N, D'], linear kernel, biased estimate; raises as `align`.

    Source: Kornblith et al. (1905.00414), section 3.
    """
    return align(a, b, Measure("cka", quantile=1)).score


def cknna(a: ArrayLike, b: ArrayLike, k: int = 10) -> float:
    """CKA of a [N, D] and b [N, D'] restricted to mutual neighbours, unbiased estimate of HSIC; raises as `align`.

    Source: 2405.07987, appendix A; the estimate is equation 5 of Song et al. (JMLR 13, 2012).
    """
    return align(a, b, Measure("cknna", k, quantile=1)).score


def align(
    a: Side,
    b: Side,
    measure: Measure = PUBLISHED,
    *,
    ids: Ids | None = None,
    covariates: ArrayLike | None = None,
) -> Alignment:
    """The score of every pair of layers, and the largest.

    ids: names of both sides' examples, which must be the same in the same order. covariates [N, Q]: features, such as
    those of the question alone, whose linear part is taken out of both sides first (`residuals`).

    Raises ValueError for sides of other lengths or orders, NaN and infinite values, layers that are the same in every
    example (all examples would be equally near), k >= N, and covariates that leave nothing.
    """
    left, right, _ = _sides(a, b, measure, ids, covariates)
    return _best(_all_pairs(left, right, measure))


def permutation_test(
    a: Side,
    b: Side,
    key: jax.Array,
    measure: Measure = PUBLISHED,
    *,
    permutations: int = 1000,
    ids: Ids | None = None,
    covariates: ArrayLike | None = None,
) -> PermutationTest:
    """`align` beside what it gives for b's examples in random orders; arguments and errors as there.

    The maximum over layer pairs is taken for each order anew, which removes the bias of a maximum. With covariates the
    shuffled residuals are made residuals again: two unrelated sides from which the same features were taken share what
    is missing, and score more than chance.
    """
    if permutations < 1:
        raise ValueError(f"at least one permutation is needed, found {permutations}")
    left, right, basis = _sides(a, b, measure, ids, covariates)
    alignment = _best(_all_pairs(left, right, measure))
    orders = jax.vmap(partial(jax.random.permutation, x=len(left[0])))(jax.random.split(key, permutations))
    maxima = np.asarray(_shuffled(left, right, basis, orders, measure))
    least = alignment.score - EPSILON
    p = (1 + int((maxima >= least).sum())) / (1 + permutations)
    return PermutationTest(alignment, p, float(maxima.mean()), maxima)


def clamp_outliers(features: ArrayLike, quantile: float = 0.95, mode: str = "exact") -> jax.Array:
    """Features [N, ...] clamped to plus and minus a quantile of their absolute values.

    mode: "exact" takes the element int(quantile * size) of all of them in order; "approximate" the mean over examples
    of the quantile of each. Of an array [N, L, D] one limit serves all layers, as published. Raises ValueError for
    another mode or quantile.
    """
    Measure(quantile=quantile, mode=mode)
    features = jnp.asarray(features)
    if quantile == 1:
        return features
    sizes = jnp.abs(features).reshape(len(features), -1)
    if mode == "exact":
        limit = jnp.sort(sizes.ravel())[int(quantile * sizes.size)]
    else:
        limit = jnp.quantile(sizes, quantile, axis=1).mean()
    return jnp.clip(features, -limit, limit)


def residuals(features: ArrayLike, covariates: ArrayLike) -> jax.Array:
    """What a linear regression of features [N, ...] on covariates [N, Q] and a constant leaves.

    Raises ValueError for covariates that are not [N, Q], hold NaN, or have so many independent columns that fewer than
    two dimensions are left.
    """
    table = jnp.asarray(features, jnp.float32)
    return _without(table, _basis(covariates, len(table)))


def _basis(covariates: ArrayLike, n: int) -> jax.Array:
    """Orthonormal columns [N, r] that span those of covariates [N, Q] and a constant."""
    table = np.asarray(covariates, np.float64)
    if table.ndim != 2 or len(table) != n:
        raise ValueError(f"covariates must be [N, Q] with the {n} examples of both sides, found shape {table.shape}")
    _check_finite(table, "covariates")
    left, sizes, _ = np.linalg.svd(np.c_[np.ones(n), table], full_matrices=False)
    rank = int((sizes > sizes[0] * n * np.finfo(np.float32).eps).sum())
    if n - rank < 2:
        raise ValueError(
            f"covariates span {rank} of {n} dimensions, the constant included, and leave nothing to compare:"
            " give more examples or fewer features"
        )
    return jnp.asarray(left[:, :rank], jnp.float32)


def _without(features: jax.Array, basis: jax.Array) -> jax.Array:
    """Features [N, ...] less their part in the columns of basis [N, r]."""
    flat = features.reshape(len(features), -1)
    inside = jnp.matmul(basis.T, flat, precision="highest")
    return (flat - jnp.matmul(basis, inside, precision="highest")).reshape(features.shape)


def _sides(
    a: Side, b: Side, measure: Measure, ids: Ids | None, covariates: ArrayLike | None
) -> tuple[Blocks, Blocks, jax.Array | None]:
    """Both sides as checked blocks, and the basis of the covariates, which are taken out of them."""
    left, right = _blocks(a, "a"), _blocks(b, "b")
    n = len(left[0])
    if len(right[0]) != n:
        raise ValueError(f"a has {n} examples and b {len(right[0])}: both must hold the same ones in the same order")
    if ids is not None:
        _check_ids(*ids, n)
    least = 4 if measure.kind == "cknna" else 2
    if n < least:
        raise ValueError(f"{measure.kind} needs at least {least} examples, found {n}")
    if measure.kind != "cka" and measure.k >= n:
        raise ValueError(
            f"k = {measure.k} neighbours need more than {measure.k} examples, found {n}: choose a smaller k"
        )
    if covariates is None:
        return left, right, None
    basis = _basis(covariates, n)
    return _left_over(left, basis, "a"), _left_over(right, basis, "b"), basis


def _blocks(side: Side, name: str) -> Blocks:
    """A side as blocks [N, L, D]: an array is one of them, of a sequence every layer."""
    several = isinstance(side, list | tuple)
    layers: Sequence[Any] = side if isinstance(side, list | tuple) else [side]
    arrays = [np.asarray(layer, np.float32) for layer in layers]
    for array in arrays:
        if array.ndim not in ((2,) if several else (2, 3)) or 0 in array.shape:
            raise ValueError(f"{name} must be [N, D], [N, L, D] or a list of [N, D], found an array of {array.shape}")
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"the layers of {name} hold {[len(array) for array in arrays]} examples: they must be as many")
    blocks = [array if array.ndim == 3 else array[:, None] for array in arrays]
    for number, features in enumerate(layer for block in blocks for layer in np.moveaxis(block, 1, 0)):
        _check_finite(features, f"{name}, layer {number}")
        if (features == features[:1]).all():
            n, width = features.shape
            raise ValueError(f"{name}, layer {number}: the {width} features are the same in all {n} examples")
    return tuple(jnp.asarray(block) for block in blocks)


def _left_over(blocks: Blocks, basis: jax.Array, name: str) -> Blocks:
    """Blocks without their part in the basis; raises ValueError for a layer that lies in it but for rounding."""
    left = tuple(_without(block, basis) for block in blocks)
    before = np.concatenate([np.linalg.norm(block, axis=(0, 2)) for block in blocks])
    after = np.concatenate([np.linalg.norm(block, axis=(0, 2)) for block in left])
    for layer in np.flatnonzero(after <= 1e-5 * before):
        raise ValueError(f"{name}, layer {layer}: the covariates explain all of it, nothing is left to compare")
    return left


def _check_finite(table: np.ndarray, name: str) -> None:
    wrong = ~np.isfinite(table)
    if wrong.any():
        rows = np.flatnonzero(wrong.reshape(len(table), -1).any(1))
        raise ValueError(
            f"{name}: {wrong.sum()} values are NaN or infinite, in {len(rows)} of {len(table)} examples,"
            f" the first in example {rows[0]}"
        )


def _check_ids(left: Sequence[Any], right: Sequence[Any], n: int) -> None:
    if len(left) != n or len(right) != n:
        raise ValueError(f"{n} examples have {len(left)} ids on side a and {len(right)} on side b")
    differing = [i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y]
    if differing:
        i = differing[0]
        raise ValueError(
            f"{len(differing)} of {n} examples are others on side b than on side a, the first in row {i}:"
            f" {left[i]!r} and {right[i]!r}. Put both in the same order"
        )


def _best(scores: jax.Array) -> Alignment:
    table = np.asarray(scores)
    i, j = np.unravel_index(table.argmax(), table.shape)
    return Alignment(float(table[i, j]), (int(i), int(j)), table)


def _cosines(blocks: Blocks, measure: Measure) -> jax.Array:
    """The cosines [L, N, N] between examples, layer by layer, of clamped features; a row of zeros has 0 to all."""
    kernels = []
    for block in blocks:
        clamped = clamp_outliers(block, measure.quantile, measure.mode)
        size = jnp.linalg.norm(clamped, axis=-1, keepdims=True)
        unit = jnp.where(size > 0, clamped / jnp.where(size > 0, size, 1), 0)
        kernels.append(jnp.einsum("nld,mld->lnm", unit, unit, precision="highest"))
    return jnp.concatenate(kernels)


def neighbours(cosines: jax.Array, k: int) -> jax.Array:
    """Weights [..., N, N] that say which k columns are nearest to each row, itself excluded: 1, 0, or a share of ties.

    Those nearer than the k-th count 1; those as near as the k-th share the places that are left.
    """
    others = jnp.where(jnp.eye(cosines.shape[-1], dtype=bool), -jnp.inf, cosines)
    last = jax.lax.top_k(others, k)[0][..., -1:]
    nearer, tied = others > last + TIE, jnp.abs(others - last) <= TIE
    share = (k - nearer.sum(-1, keepdims=True)) / tied.sum(-1, keepdims=True)
    return nearer + tied * share


def hsic(x: jax.Array, y: jax.Array) -> jax.Array:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion of kernels [N, N], diagonals left out."""
    n = len(x)
    x, y = (jnp.where(jnp.eye(n, dtype=bool), 0, kernel) for kernel in (x, y))
    means = x.sum() * y.sum() / ((n - 1) * (n - 2))
    return ((x * y.T).sum() + means - 2 * x.sum(0) @ y.sum(1) / (n - 2)) / (n * (n - 3))


# A measure is a view of cosines [L, N, N], whose leaves are [L, N, N] or [L], and the scores [La, Lb] of two views.
View = tuple[jax.Array, ...]


def _knn_view(cosines: jax.Array, k: int) -> View:
    return (neighbours(cosines, k) / np.sqrt(cosines.shape[-1] * k),)


def _cka_view(cosines: jax.Array, k: int) -> View:
    middle = cosines - cosines.mean(1, keepdims=True)
    middle = middle - middle.mean(2, keepdims=True)
    return (middle / (jnp.linalg.norm(middle, axis=(1, 2), keepdims=True) + EPSILON),)


def _product(a: View, b: View) -> jax.Array:
    return jnp.einsum("anm,bnm->ab", a[0], b[0], precision="highest")


def _cknna_view(cosines: jax.Array, k: int) -> View:
    near = neighbours(cosines, k)
    return near, near * cosines, jax.lax.map(lambda kernel: hsic(kernel, kernel), near * cosines)


def _cknna_scores(a: View, b: View) -> jax.Array:
    def pair(x: View, y: View) -> jax.Array:
        return hsic(x[1] * y[0], y[1] * x[0]) / (jnp.sqrt(x[2] * y[2]) + EPSILON)

    return jax.lax.map(lambda x: jax.lax.map(lambda y: pair(x, y), b), a)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a measure looks at cosines, and how two such views are scored."""

    view: Callable[[jax.Array, int], View]
    scores: Callable[[View, View], jax.Array]


KINDS = {
    "mutual_knn": Kind(_knn_view, _product),
    "cka": Kind(_cka_view, _product),
    "cknna": Kind(_cknna_view, _cknna_scores),
}


@partial(jax.jit, static_argnames="measure")
def _all_pairs(left: Blocks, right: Blocks, measure: Measure) -> jax.Array:
    """The scores [La, Lb] of all pairs of layers."""
    kind = KINDS[measure.kind]
    return kind.scores(*(kind.view(_cosines(blocks, measure), measure.k) for blocks in (left, right)))


@partial(jax.jit, static_argnames="measure")
def _shuffled(left: Blocks, right: Blocks, basis: jax.Array | None, orders: jax.Array, measure: Measure) -> jax.Array:
    """The largest score for each of the orders [P, N] of the right side."""
    kind = KINDS[measure.kind]
    view = lambda blocks: kind.view(_cosines(blocks, measure), measure.k)  # noqa: E731
    fixed, moved = view(left), view(right) if basis is None else ()

    def largest(order: jax.Array) -> jax.Array:
        if basis is None:
            other = tuple(x if x.ndim == 1 else x[:, order][:, :, order] for x in moved)
        else:
            other = view(tuple(_without(block[order], basis) for block in right))
        return kind.scores(fixed, other).max()

    return jax.lax.map(largest, orders)
