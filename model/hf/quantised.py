"""Tensors that files hold as codes and scales, multiplied out as they are read: FP8 with a scale for each square block,
and MXFP4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.hf.checks import quantisation
from model.hf.files import FP8, STORED, Tensor
from model.precision import dequantize

SCALE = "_scale_inv"
CODES, EXPONENTS = "_blocks", "_scales"
SCALED, MICROSCALED = f"{FP8} x scales", "MXFP4 x scales"
READABLE = (*STORED, SCALED, MICROSCALED)
# The sixteen numbers of four bits: a sign, two bits of exponent, one of mantissa.
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
TOGETHER, BIAS = 32, 127  # numbers that share a power of two, and how that is stored


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A matrix of FP8 codes with one scale for each block (DeepSeek-V3, 2412.19437 section 3.3.2)."""

    codes: Tensor
    scales: Tensor
    block: int
    dtype: str = SCALED

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        bounds = [cut.indices(size)[:2] for cut, size in zip(index, self.shape, strict=True)]
        first = [start // self.block for start, _ in bounds]
        codes = self.codes[tuple(slice(f * self.block, stop) for f, (_, stop) in zip(first, bounds, strict=True))]
        scales = tuple(slice(f, -(-stop // self.block)) for f, (_, stop) in zip(first, bounds, strict=True))
        whole = dequantize(codes, self.scales[scales], self.block)
        return whole[tuple(slice(start - f * self.block, None) for f, (start, _) in zip(first, bounds, strict=True))]


@dataclasses.dataclass(frozen=True)
class Microscaled:
    """Matrices of MXFP4 (OCP microscaling formats, 1.0) as gpt-oss is released: codes [E, R, G, 16], two in a byte, the
    low half first, and exponents [E, R, G] of groups of 32; read as [E, 32 G, R].
    """

    codes: Tensor
    exponents: Tensor
    dtype: str = MICROSCALED

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups, _ = self.codes.shape
        return experts, TOGETHER * groups, rows

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        (first, last), (start, stop), (low, high) = (
            cut.indices(size)[:2] for cut, size in zip(index, self.shape, strict=True)
        )
        groups = slice(start // TOGETHER, -(-stop // TOGETHER))
        within = slice(start - TOGETHER * groups.start, stop - TOGETHER * groups.start)
        found = np.empty((last - first, stop - start, high - low), np.float32)
        for row, expert in zip(found, range(first, last), strict=True):  # one at a time, to hold little beside it
            part = (slice(expert, expert + 1), slice(low, high), groups)
            codes, exponents = self.codes[*part, slice(None)][0], self.exponents[part][0]
            pairs = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], TOGETHER)
            numbers = np.ldexp(E2M1[pairs], exponents.astype(np.int32)[..., None] - BIAS)
            row[...] = numbers.reshape(high - low, -1).T[within]
        return found


def joined(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with codes and scales joined as a config.json says; ValueError for those that do not fit."""
    how = quantisation(config)
    if how is None:
        return dict(tensors)
    return _with_scales(dict(tensors), how.block) if how.method == "fp8" else _with_exponents(tensors)


def _with_scales(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    pairs = {name: name + SCALE for name in tensors if name + SCALE in tensors}
    for name, scale in pairs.items():
        shape, scale_shape = tensors[name].shape, tensors[scale].shape
        expected = tuple(-(-size // block) for size in shape)
        if tensors[name].dtype != FP8 or len(shape) != 2 or scale_shape != expected:
            what = f"{scale} of shape {scale_shape} scales {name}, {tensors[name].dtype} of shape {shape}"
            raise ValueError(f"{what}; expected an {FP8} matrix and scales {expected}, one per {block} x {block} block")
    joined = {name: Scaled(tensors[name], tensors[scale], block) for name, scale in pairs.items()}
    return {name: joined.get(name, tensor) for name, tensor in tensors.items() if name not in pairs.values()}


def _with_exponents(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    homes = [name.removesuffix(CODES) for name in tensors if name.endswith(CODES)]
    homes = [home for home in homes if home + EXPONENTS in tensors]
    pairs = {home: (tensors[home + CODES], tensors[home + EXPONENTS]) for home in homes}
    for home, (codes, exponents) in pairs.items():
        fits = codes.dtype == exponents.dtype == "U8" and codes.shape == (*exponents.shape, TOGETHER // 2)
        if not fits or len(codes.shape) != 4:
            raise ValueError(
                f"{home}{CODES}, {codes.dtype} of shape {codes.shape}, has the scales {home}{EXPONENTS},"
                f" {exponents.dtype} of shape {exponents.shape}; expected U8, [E, R, G, {TOGETHER // 2}] and [E, R, G]"
            )
    taken = {home + end for home in homes for end in (CODES, EXPONENTS)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in taken}
    return rest | {home: Microscaled(*pair) for home, pair in pairs.items()}
