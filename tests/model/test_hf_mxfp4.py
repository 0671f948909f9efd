"""MXFP4 checkpoints, as gpt-oss is released: multiplied out, whole and shard by shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from model import hf
from model.hf.quantised import Microscaled
from model.sharding import make_mesh
from tests.model.experts import assert_same_tree, saved, tamper

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
LEVELS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


class Held:
    """An array as a tensor of a file."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, "U8"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.array[index]


def by_hand(codes: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Number by number: a sign and a level, times a power of two; [E, R, G, 16] and [E, R, G] -> [E, 32 G, R]."""
    experts, rows, groups, _ = codes.shape
    values = np.zeros((experts, 32 * groups, rows), np.float32)
    for e, r, g, i in np.ndindex(*codes.shape):
        for half, code in enumerate((codes[e, r, g, i] & 15, codes[e, r, g, i] >> 4)):
            number = LEVELS[code & 7] * (-1 if code & 8 else 1) * 2.0 ** (int(exponents[e, r, g]) - 127)
            values[e, 32 * g + 2 * i + half, r] = number
    return values


def drawn(experts: int, rows: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (experts, rows, groups, 16)).astype(np.uint8)
    return codes, rng.integers(118, 125, (experts, rows, groups)).astype(np.uint8)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A gpt-oss as released, its experts MXFP4 and the rest bfloat16; and the parameters that it stands for."""
    folder = tmp_path_factory.mktemp("mxfp4") / "mxfp4"
    plain = folder.with_name("plain")
    sizes: dict[str, Any] = {"d_ff": 64, "param_dtype": "bfloat16"}
    for place in (folder, plain):
        saved("gpt_oss", place, **sizes)
    names = [name for name in load_file(plain / "model.safetensors") if name.endswith(("gate_up_proj", "down_proj"))]
    codes = {name: drawn(4, *((128, 1) if "gate" in name else (32, 2)), seed=i) for i, name in enumerate(names)}

    def pack(tensors: dict[str, np.ndarray]) -> None:
        for name, (blocks, scales) in codes.items():
            del tensors[name]
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}

    def unpack(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {name: by_hand(*pair).astype(jnp.bfloat16) for name, pair in codes.items()}

    tamper(folder, pack, quantization_config=CONFIG)
    return folder, hf.load(tamper(plain, unpack))[1]


def test_reference(shared: Path) -> None:
    """What transformers unpacks, exactly; whole and in parts."""
    with np.load(shared / "golden" / "mxfp4.npz") as golden:
        tensor = Microscaled(Held(golden["blocks"]), Held(golden["scales"]))
        want = golden["weight"]
    assert tensor.shape == want.shape
    np.testing.assert_array_equal(tensor[slice(0, 2), slice(0, 64), slice(0, 6)], want)
    np.testing.assert_array_equal(by_hand(tensor.codes.array, tensor.exponents.array), want)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(40):
        part = tuple(slice(*sorted(map(int, rng.choice(size + 1, 2, replace=False)))) for size in want.shape)
        np.testing.assert_array_equal(tensor[part], want[part])


def test_released_weights_are_multiplied_out(released: Any) -> None:
    folder, params = released
    model, loaded = hf.load(folder)
    assert model.config.param_dtype == "bfloat16"
    assert_same_tree(loaded, params)
    wide = hf.load(folder, dtype="float32")[1]
    assert_same_tree(wide, jax.tree.map(lambda x: x.astype(jnp.float32), params))


@pytest.mark.parametrize("axes", [{"expert": 4, "fsdp": 2}, {"fsdp": 4, "tensor": 2}])
def test_every_device_reads_its_part(released: Any, axes: dict[str, int]) -> None:
    folder, params = released
    model, loaded = hf.load(folder, make_mesh(axes))
    assert_same_tree(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == model.shardings(make_mesh(axes))


def test_what_is_saved_is_plain(released: Any, tmp_path: Path) -> None:
    folder, params = released
    hf.save(tmp_path / "out", *hf.load(folder))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_same_tree(hf.load(tmp_path / "out")[1], params)


@pytest.mark.parametrize("break_", ["half of the scales", "no scales", "floats", "no word of it"])
def test_codes_and_scales_must_fit(released: Any, tmp_path: Path, break_: str) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    tensors = load_file(released[0] / "model.safetensors")
    scales = tensors[f"{name}_scales"]
    other: dict[str, tuple[dict[str, Any], str]] = {
        "half of the scales": (
            {f"{name}_scales": scales[:, ::2]},
            rf"{name}_blocks, U8.*shape \(4, 16, 2\); expected U8,",
        ),
        "no scales": ({f"{name}_scales": None}, f"missing: {name}; left over: {name}_blocks$"),
        "floats": ({f"{name}_scales": scales.astype(np.float32)}, "F32 of shape"),
        "no word of it": ({}, "left over: .*_blocks"),
    }
    changes, message = other[break_]

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.clear()
        tensors |= {key: value for key, value in (whole | changes).items() if value is not None}

    whole = tensors
    saved("gpt_oss", tmp_path / "out", d_ff=64, param_dtype="bfloat16")
    config = {} if break_ == "no word of it" else {"quantization_config": CONFIG}
    with pytest.raises(ValueError, match=message):
        hf.load(tamper(tmp_path / "out", change, **config))
